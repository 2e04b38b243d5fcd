// The neighbour list: its memory, and the order of its kernels, which are in neighbors_*-inl.h.
//
// A build: bounding box of open directions and the grid of bins (plan); rows grouped by bin; one
// warp per centre counts, then writes, its neighbours bin by bin; edges grouped by sender. Grouping
// counts with atomics, which fill a group in any order, and then ranks its members by index: the
// lists do not depend on the order in which threads ran. Bins are as long as the radius or longer,
// so that 27 of them are searched; where a periodic cell is narrower there is one bin and several
// images of it.
//
// What bounds it: a build reads about 430 candidates per centre at the density of water, 32 at a
// time, twice; it happens every 10 to 50 steps, and costs less than one of them.
#include <climits>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/lattice.h"
#include "cuda/neighbors.h"
#include "cuda/neighbors_bins-inl.h"
#include "cuda/neighbors_decide-inl.h"
#include "cuda/neighbors_groups-inl.h"
#include "cuda/neighbors_search-inl.h"

namespace mlff {
namespace gpu {

Box make_box(const double* cell, const std::array<bool, 3>& pbc, double reach) {
  const Lattice lattice(cell, pbc);
  lattice.repeats(reach);  // a search through more of them would not end
  Box box;
  std::memset(&box, 0, sizeof(box));
  std::array<Vec3, 3> basis = lattice.reduced;
  complete_basis(basis, pbc);
  for (int k = 0; k < 3; ++k) {
    const Vec3 dual = pbc[k] ? lattice.dual[k] : basis[k];
    for (int a = 0; a < 3; ++a) {
      box.given[3 * k + a] = lattice.given[k][a];
      box.basis[3 * k + a] = basis[k][a];
      box.dual[3 * k + a] = dual[a];
      box.transform[3 * k + a] = static_cast<int>(lattice.transform[k][a]);
    }
    box.periodic[k] = pbc[k];
    box.height[k] = pbc[k] ? 1.0 / std::sqrt(dot(dual, dual)) : 0.0;
  }
  return box;
}

NeighborList::NeighborList(double cutoff, double skin) : cutoff_(cutoff), skin_(skin) {
  State state;
  std::memset(&state, 0, sizeof(state));
  state_.assign(&state, 1);
  std::memset(host_state_.require(1), 0, sizeof(State));
  box_.require(1);
  std::memset(host_box_.require(1), 0, sizeof(Box));
}

// Not of the rows, some of which may only be there for the size (system.cu): bins decide the order
// of edges, which must not depend on that.
int64_t NeighborList::most_bins(int64_t n_local) { return n_local > 64 ? n_local : 64; }

// Every buffer whose size depends on the atoms.
template <typename Self, typename F>
void NeighborList::each_of_atoms(Self& list, int64_t n_local, int64_t n_rows, F&& f) {
  const int64_t max_bins = most_bins(n_local);
  f(list.host_species_, n_rows);
  f(list.host_positions_, 3 * n_rows);
  f(list.species_, n_rows);
  f(list.positions_, 3 * n_rows);
  f(list.built_positions_, 3 * n_rows);
  f(list.bin_, n_rows);
  f(list.bin_counts_, max_bins);
  f(list.bin_offsets_, max_bins + 1);
  f(list.bin_cursor_, max_bins);
  f(list.unordered_, n_rows);
  f(list.binned_, n_rows);
  f(list.wrap_, 3 * n_rows);
  f(list.counts_, n_local);
  f(list.offsets_, n_local + 1);
  f(list.incoming_counts_, n_rows);
  f(list.incoming_offsets_, n_rows + 1);
  f(list.incoming_cursor_, n_rows);
}

// Every buffer whose size depends on the edges; the first one says for how many there is room.
template <typename Self, typename F>
void NeighborList::each_of_edges(Self& list, int64_t edges, F&& f) {
  f(list.senders_, edges);
  f(list.receivers_, edges);
  f(list.shifts_, 3 * edges);
  f(list.incoming_unordered_, edges);
  f(list.incoming_, edges);
}

void NeighborList::resize(int64_t n_local, int64_t n_rows, bool keep_list) {
  if (n_local == n_local_ && n_rows == n_rows_ && keep_list == keep_list_) return;
  if (n_rows > INT_MAX / 4) {
    throw InputError("a device holds at most 2^29 atoms, got " + std::to_string(n_rows) +
                     "; use more ranks");
  }
  n_local_ = n_rows_ = -1;  // until all of it is there
  each_of_atoms(*this, n_local, n_rows, require);
  max_bins_ = most_bins(n_local);
  n_local_ = n_local;
  n_rows_ = n_rows;
  keep_list_ = keep_list;
  ++generation_;
}

void NeighborList::reserve_edges(int64_t count) {
  if (count <= capacity_) return;
  if (count > INT_MAX / 4) {
    throw InputError("a device holds at most 2^29 pairs of neighbours, got " +
                     std::to_string(count) + "; use more ranks or a smaller cutoff");
  }
  capacity_ = 0;  // until all of it is there
  senders_.require(count);
  const int64_t capacity = senders_.count();
  each_of_edges(*this, capacity, require);
  capacity_ = capacity;
  ++generation_;
}

void NeighborList::set_skin(double skin) {
  if (skin == skin_) return;
  skin_ = skin;
  ++generation_;
}

void NeighborList::upload_species(cudaStream_t stream) {
  check(cudaMemcpyAsync(species_.data(), host_species_.data(),
                        static_cast<size_t>(n_rows_) * sizeof(int), cudaMemcpyHostToDevice, stream),
        "copying species to the device");
}

void NeighborList::upload(const double* device_positions, cudaStream_t stream) {
  check(cudaMemcpyAsync(box_.data(), host_box_.data(), sizeof(Box), cudaMemcpyHostToDevice, stream),
        "copying the cell to the device");
  if (n_rows_ == 0) return;
  check(cudaMemcpyAsync(
            positions_.data(), device_positions ? device_positions : host_positions_.data(),
            static_cast<size_t>(3 * n_rows_) * sizeof(double),
            device_positions ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice, stream),
        "copying positions to the device");
}

void NeighborList::force_rebuild(cudaStream_t stream) {
  MLFF_LAUNCH(request_build, dim3(1), dim3(1), 0, stream, state_.data());
}

void NeighborList::update(cudaStream_t stream) {
  State* state = state_.data();
  const int64_t n = n_rows_;
  const dim3 one(1), rows(blocks_for(n, kThreads)), block(kThreads);
  MLFF_LAUNCH(decide_begin, one, one, 0, stream, state, box_.data(), cutoff_, skin_,
              int(keep_list_));
  const Condition condition = build_.begin(stream);
  MLFF_LAUNCH(find_moved, rows, block, 0, stream, state, positions_.data(), built_positions_.data(),
              n, condition);
  build_.run(stream, [this](cudaStream_t s) { build(s); });
}

void NeighborList::build(cudaStream_t stream) {
  State* state = state_.data();
  const Box* box = box_.data();
  const double radius = cutoff_ + skin_;
  const int64_t n = n_rows_;
  const dim3 one(1), block(kThreads), wide(kScanThreads);
  const dim3 rows(blocks_for(n, kThreads)), coordinates(blocks_for(3 * n, kThreads));
  const dim3 cells(blocks_for(n > max_bins_ ? n : max_bins_, kThreads));
  const dim3 centres(blocks_for(n_local_ * kWarp, kThreads)),
      edges(blocks_for(capacity_, kThreads));
  const int* no_count = nullptr;
  const int* num_bins = &state->num_bins;
  const int* num_edges = &state->num_edges;

  MLFF_LAUNCH(plan_bins, one, dim3(kPlanThreads), 0, stream, state, box, positions_.data(), n,
              radius, max_bins_);
  MLFF_LAUNCH(clear_counts, cells, block, 0, stream, state, bin_counts_.data(),
              incoming_counts_.data(), n);
  MLFF_LAUNCH(bin_rows, rows, block, 0, stream, state, box, positions_.data(), species_.data(), n,
              bin_.data(), wrap_.data(), bin_counts_.data());
  MLFF_LAUNCH(scan_counts, one, wide, 0, stream, state, bin_counts_.data(), num_bins, int64_t(0),
              bin_offsets_.data(), bin_cursor_.data());
  MLFF_LAUNCH(scatter_items, rows, block, 0, stream, state, bin_.data(), no_count, n,
              bin_cursor_.data(), unordered_.data());
  MLFF_LAUNCH(rank_items, rows, block, 0, stream, state, bin_.data(), no_count, n,
              bin_offsets_.data(), unordered_.data(), binned_.data());

  FindArguments find{state,
                     box,
                     positions_.data(),
                     bin_.data(),
                     wrap_.data(),
                     bin_offsets_.data(),
                     binned_.data(),
                     n_local_,
                     radius,
                     counts_.data(),
                     offsets_.data(),
                     senders_.data(),
                     receivers_.data(),
                     shifts_.data(),
                     incoming_counts_.data()};
  MLFF_LAUNCH((find_neighbors<false>), centres, block, 0, stream, find);
  MLFF_LAUNCH(scan_counts, one, wide, 0, stream, state, counts_.data(), no_count, n_local_,
              offsets_.data(), static_cast<int*>(nullptr));
  MLFF_LAUNCH(check_capacity, one, one, 0, stream, state, offsets_.data(), n_local_, capacity_);
  MLFF_LAUNCH(drop_overflow, dim3(blocks_for(n_local_ + 1, kThreads)), block, 0, stream, state,
              offsets_.data(), n_local_);
  MLFF_LAUNCH((find_neighbors<true>), centres, block, 0, stream, find);
  MLFF_LAUNCH(scan_counts, one, wide, 0, stream, state, incoming_counts_.data(), no_count, n,
              incoming_offsets_.data(), incoming_cursor_.data());
  MLFF_LAUNCH(scatter_items, edges, block, 0, stream, state, senders_.data(), num_edges, int64_t(0),
              incoming_cursor_.data(), incoming_unordered_.data());
  MLFF_LAUNCH(rank_items, edges, block, 0, stream, state, senders_.data(), num_edges, int64_t(0),
              incoming_offsets_.data(), incoming_unordered_.data(), incoming_.data());
  MLFF_LAUNCH(finish_build, coordinates, block, 0, stream, state, box, positions_.data(),
              built_positions_.data(), n);
}

NeighborView NeighborList::view() const {
  NeighborView view;
  view.n_local = n_local_;
  view.n_rows = n_rows_;
  view.edge_capacity = capacity_;
  view.species = species_.data();
  view.positions = positions_.data();
  view.box = box_.data();
  view.state = state_.data();
  view.offsets = offsets_.data();
  view.senders = senders_.data();
  view.receivers = receivers_.data();
  view.shifts = shifts_.data();
  view.incoming_offsets = incoming_offsets_.data();
  view.incoming_edges = incoming_.data();
  return view;
}

void NeighborList::download_state(cudaStream_t stream) {
  check(cudaMemcpyAsync(host_state_.data(), state_.data(), sizeof(State), cudaMemcpyDeviceToHost,
                        stream),
        "copying the state of the neighbour list");
}

size_t NeighborList::bytes() const {
  BytesOnDevice bytes;
  each_of_atoms(*this, 0, 0, bytes);
  each_of_edges(*this, 0, bytes);
  bytes(box_, 1);
  bytes(state_, 1);
  return bytes.total;
}

}  // namespace gpu
}  // namespace mlff
