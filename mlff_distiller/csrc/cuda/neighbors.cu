// Kernels of the neighbour list.
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
#include "core/skin.h"
#include "cuda/neighbors.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kPlanThreads = 512;
constexpr int kScanThreads = 1024;
constexpr int kScanItems = 4;  // per thread and round
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr double kMostCells = 5e8;  // shifts stay within int32 with room for sums

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// --- to build or not -----------------------------------------------------------------------------

// See core/skin.h. One thread.
__global__ void decide_begin(State* state, const Box* box, double cutoff, double skin,
                             int keep_list) {
  state->faults = 0;
  state->blocks_done = 0;
  state->fault_edge = state->fault_atom = state->close_edge = INT_MAX;
  int rebuild = state->force_rebuild || !state->built;
  state->allowed2 = -1.0;
  if (!rebuild && !keep_list) {
    const bool all_periodic = box->periodic[0] && box->periodic[1] && box->periodic[2];
    const double allowed =
        allowed_move(state->built_cell, box->given, all_periodic, cutoff, skin, state->map);
    if (allowed > 0.0) {
      state->allowed2 = allowed * allowed;
    } else {
      rebuild = 1;
    }
  }
  state->rebuild = rebuild;
}

// The last block that is done tells `condition`, if there is one, whether a list is to be built.
__global__ void find_moved(State* state, const double* positions, const double* built,
                           int64_t n_rows, Condition condition) {
  const int64_t i = thread_index();
  if (i < n_rows && state->allowed2 >= 0.0) {
    const double d2 = moved_squared(positions + 3 * i, built + 3 * i, state->map);
    if (!(d2 <= state->allowed2)) {  // NaN, too
      atomicExch(&state->rebuild, 1);
      __threadfence();
    }
  }
  if (!condition) return;
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(&state->blocks_done, 1u) != gridDim.x - 1) return;
  set_condition(condition, atomicOr(&state->rebuild, 0) != 0);
}

// --- bins ----------------------------------------------------------------------------------------

__device__ __forceinline__ double fraction(const Box* box, int axis, const double* x) {
  const double* d = box->dual + 3 * axis;
  return d[0] * x[0] + d[1] * x[1] + d[2] * x[2];
}

// One block: extent of open axes, then bins per axis so that there are at most max_bins.
__global__ void __launch_bounds__(kPlanThreads)
    plan_bins(State* state, const Box* box, const double* positions, int64_t n_rows, double radius,
              int64_t max_bins) {
  if (!state->rebuild) return;
  __shared__ double low[3][kPlanThreads / kWarp], high[3][kPlanThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  for (int axis = 0; axis < 3; ++axis) {
    double least = 1e300, most = -1e300;
    if (!box->periodic[axis]) {
      for (int64_t i = threadIdx.x; i < n_rows; i += blockDim.x) {
        const double s = fraction(box, axis, positions + 3 * i);
        if (s < least) least = s;  // not for NaN
        if (s > most) most = s;
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const double a = __shfl_xor_sync(kAllLanes, least, step);
      const double b = __shfl_xor_sync(kAllLanes, most, step);
      least = a < least ? a : least;
      most = b > most ? b : most;
    }
    if (lane == 0) {
      low[axis][warp] = least;
      high[axis][warp] = most;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double bins[3];
  for (int axis = 0; axis < 3; ++axis) {
    double length = box->height[axis];
    if (!box->periodic[axis]) {
      double least = low[axis][0], most = high[axis][0];
      for (int w = 1; w < warps; ++w) {
        least = low[axis][w] < least ? low[axis][w] : least;
        most = high[axis][w] > most ? high[axis][w] : most;
      }
      const bool usable = most >= least && most - least < 1e30;  // else no or absurd positions
      state->origin[axis] = usable ? least : 0.0;
      length = usable ? most - least : 0.0;
    }
    // The cap keeps products of three within double's integers.
    bins[axis] = fmin(fmax(floor(length / radius), 1.0), 65536.0);
    state->per_bin[axis] = length;
  }
  while (bins[0] * bins[1] * bins[2] > static_cast<double>(max_bins)) {
    const int axis =
        bins[0] >= bins[1] ? (bins[0] >= bins[2] ? 0 : 2) : (bins[1] >= bins[2] ? 1 : 2);
    bins[axis] = floor(0.5 * (bins[axis] + 1.0));
    if (bins[0] + bins[1] + bins[2] <= 3.0) break;
  }
  for (int axis = 0; axis < 3; ++axis) {
    const double width = state->per_bin[axis] / bins[axis];
    state->bins[axis] = static_cast<int>(bins[axis]);
    state->per_bin[axis] = fmax(width, radius);
    // Rounding must not lose a bin: distances just below the radius reach 1 - 1e-12 bins further.
    state->range[axis] =
        box->periodic[axis] ? static_cast<int>(ceil(radius / width * (1.0 + 1e-12))) : 1;
  }
  state->num_bins = state->bins[0] * state->bins[1] * state->bins[2];
}

__global__ void clear_counts(const State* state, int* bin_counts, int* incoming_counts,
                             int64_t n_rows) {
  if (!state->rebuild) return;
  const int64_t i = thread_index();
  if (i < state->num_bins) bin_counts[i] = 0;
  if (i < n_rows) incoming_counts[i] = 0;
}

__global__ void bin_rows(State* state, const Box* box, const double* positions, const int* species,
                         int64_t n_rows, int* bin, int* wrap, int* bin_counts) {
  const int64_t i = thread_index();
  if (i >= n_rows || !state->rebuild) return;
  int index = 0;
  bool good = true;
  for (int axis = 0; axis < 3; ++axis) {
    double s = fraction(box, axis, positions + 3 * i);
    const int bins = state->bins[axis];
    int cells = 0;
    if (box->periodic[axis]) {
      const double whole = floor(s);
      good = good && fabs(whole) < kMostCells;  // false for NaN
      cells = good ? static_cast<int>(whole) : 0;
      s = (s - whole) * bins;
    } else {
      s = (s - state->origin[axis]) / state->per_bin[axis];
      good = good && fabs(s) < 1e15;
    }
    const int b = good ? static_cast<int>(fmin(fmax(s, 0.0), static_cast<double>(bins - 1))) : 0;
    index = index * bins + b;
    wrap[3 * i + axis] = cells;
  }
  if (!good) {
    atomicOr(&state->faults, static_cast<unsigned>(kNotFinite));
    atomicMin(&state->fault_atom, static_cast<int>(i));
  }
  if (!good || species[i] < 0) index = -1;
  bin[i] = index;
  if (index >= 0) atomicAdd(&bin_counts[index], 1);
}

// --- grouping ------------------------------------------------------------------------------------

// offsets [n + 1] and cursor [n]: exclusive sums of counts. One block.
__global__ void __launch_bounds__(kScanThreads)
    scan_counts(const State* state, const int* counts, const int* count, int64_t fixed,
                int* offsets, int* cursor) {
  if (!state->rebuild) return;
  __shared__ int sums[kWarp];
  const int64_t n = count ? *count : fixed;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int carry = 0;
  for (int64_t base = 0; base < n; base += kScanThreads * kScanItems) {
    const int64_t first = base + static_cast<int64_t>(threadIdx.x) * kScanItems;
    int value[kScanItems], own = 0;
    for (int k = 0; k < kScanItems; ++k) {
      value[k] = first + k < n ? counts[first + k] : 0;
      own += value[k];
    }
    int inclusive = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    if (lane == kWarp - 1) sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
      int sum = sums[lane];
      for (int step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += other;
      }
      sums[lane] = sum;
    }
    __syncthreads();
    int running = carry + inclusive - own + (warp > 0 ? sums[warp - 1] : 0);
    for (int k = 0; k < kScanItems; ++k) {
      if (first + k < n) {
        offsets[first + k] = running;
        if (cursor) cursor[first + k] = running;
      }
      running += value[k];
    }
    carry += sums[kWarp - 1];
    __syncthreads();  // before the next round overwrites the sums
  }
  if (threadIdx.x == 0) offsets[n] = carry;
}

// Writes items to their group in any order.
__global__ void scatter_items(const State* state, const int* keys, const int* count, int64_t fixed,
                              int* cursor, int* unordered) {
  if (!state->rebuild) return;
  const int64_t i = thread_index(), n = count ? *count : fixed;
  if (i >= n) return;
  const int key = keys[i];
  if (key >= 0) unordered[atomicAdd(&cursor[key], 1)] = static_cast<int>(i);
}

// Puts each item at its rank within the group.
__global__ void rank_items(const State* state, const int* keys, const int* count, int64_t fixed,
                           const int* offsets, const int* unordered, int* ordered) {
  if (!state->rebuild) return;
  const int64_t i = thread_index(), n = count ? *count : fixed;
  if (i >= n) return;
  const int key = keys[i];
  if (key < 0) return;
  const int begin = offsets[key], end = offsets[key + 1];
  int rank = 0;
  for (int p = begin; p < end; ++p) rank += unordered[p] < i;
  ordered[begin + rank] = static_cast<int>(i);
}

// --- lists ---------------------------------------------------------------------------------------

struct FindArguments {
  State* state;
  const Box* box;
  const double* positions;
  const int *bin, *wrap, *bin_offsets, *binned;
  int64_t n_local;
  double radius;
  int* counts;         // written by the first pass
  const int* offsets;  // read by the second
  int *senders, *receivers, *shifts, *incoming_counts;
};

// One warp per centre. (i, j, S) and (j, i, -S) give the same bits for the distance, as every
// difference and product changes only its sign: the list is symmetric without exception.
template <bool kWrite>
__global__ void __launch_bounds__(kThreads, 5) find_neighbors(FindArguments p) {
  const int64_t c = thread_index() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (c >= p.n_local || !p.state->rebuild) return;
  if (kWrite && p.state->num_edges == 0) return;
  int found = 0;
  const int at = kWrite ? p.offsets[c] : 0;
  const int home = p.bin[c];
  if (home >= 0) {
    const int* bins = p.state->bins;
    const int* range = p.state->range;
    const int own[3] = {home / (bins[1] * bins[2]), home / bins[2] % bins[1], home % bins[2]};
    const double x[3] = {p.positions[3 * c], p.positions[3 * c + 1], p.positions[3 * c + 2]};
    const double* basis = p.box->basis;
    int d[3];
    for (d[0] = -range[0]; d[0] <= range[0]; ++d[0]) {
      for (d[1] = -range[1]; d[1] <= range[1]; ++d[1]) {
        for (d[2] = -range[2]; d[2] <= range[2]; ++d[2]) {
          int index = 0, image[3];
          bool inside = true;
          for (int axis = 0; axis < 3; ++axis) {
            int b = own[axis] + d[axis];
            image[axis] = 0;
            if (p.box->periodic[axis]) {
              image[axis] = b >= 0 ? b / bins[axis] : -((bins[axis] - 1 - b) / bins[axis]);
              b -= image[axis] * bins[axis];
            } else {
              inside = inside && b >= 0 && b < bins[axis];
            }
            index = index * bins[axis] + b;
          }
          if (!inside) continue;
          const int end = p.bin_offsets[index + 1];
          for (int base = p.bin_offsets[index]; base < end; base += kWarp) {
            bool take = base + lane < end;
            int j = 0, shift[3] = {0, 0, 0};
            if (take) {
              j = p.binned[base + lane];
              for (int axis = 0; axis < 3; ++axis) {
                shift[axis] =
                    image[axis] - p.wrap[3 * static_cast<int64_t>(j) + axis] + p.wrap[3 * c + axis];
              }
              double d2 = 0.0;
              for (int a = 0; a < 3; ++a) {
                const double r =
                    (p.positions[3 * static_cast<int64_t>(j) + a] - x[a]) +
                    (shift[0] * basis[a] + shift[1] * basis[3 + a] + shift[2] * basis[6 + a]);
                d2 += r * r;
              }
              const bool self = j == c && !(shift[0] | shift[1] | shift[2]);
              take = d2 < p.radius * p.radius && !self;
            }
            const unsigned mask = __ballot_sync(kAllLanes, take);
            if (kWrite && take) {
              const int e = at + found + __popc(mask & ((1u << lane) - 1u));
              p.senders[e] = j;
              p.receivers[e] = static_cast<int>(c);
              const int* t = p.box->transform;
              for (int l = 0; l < 3; ++l) {
                p.shifts[3 * static_cast<int64_t>(e) + l] =
                    shift[0] * t[l] + shift[1] * t[3 + l] + shift[2] * t[6 + l];
              }
              atomicAdd(&p.incoming_counts[j], 1);
            }
            found += __popc(mask);
          }
        }
      }
    }
  }
  if (!kWrite && lane == 0) p.counts[c] = found;
}

// One thread.
__global__ void check_capacity(State* state, const int* offsets, int64_t n_local,
                               int64_t capacity) {
  if (!state->rebuild) return;
  state->needed_edges = offsets[n_local];
  state->num_edges = state->needed_edges <= capacity ? offsets[n_local] : 0;
  if (state->needed_edges > capacity)
    atomicOr(&state->faults, static_cast<unsigned>(kTooManyEdges));
}

// After an overflow every list is empty, so that the rest of the step stays within its memory.
__global__ void drop_overflow(const State* state, int* offsets, int64_t n_local) {
  const int64_t c = thread_index();
  if (c > n_local || !state->rebuild || state->needed_edges == state->num_edges) return;
  offsets[c] = 0;
}

__global__ void finish_build(State* state, const Box* box, const double* positions, double* built,
                             int64_t n_rows) {
  if (!state->rebuild) return;
  const int64_t i = thread_index();
  if (i < 3 * n_rows) built[i] = positions[i];
  if (i > 0) return;
  state->built = state->needed_edges == state->num_edges;
  state->force_rebuild = 0;
  ++state->num_builds;
  for (int k = 0; k < 9; ++k) state->built_cell[k] = box->given[k];
}

__global__ void request_build(State* state) { state->force_rebuild = 1; }

}  // namespace

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
