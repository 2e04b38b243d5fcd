// Neighbour list on the device: cell list, skin, and the decision to rebuild, without the host.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/conditional.h"
#include "cuda/device_memory.h"
#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// What can be wrong with the positions; bits of State::faults.
enum Fault : unsigned {
  kNotFinite = 1u,     // a position or an edge vector
  kOnTop = 2u,         // two atoms as near as kSamePoint (core/lattice.h)
  kTooManyEdges = 4u,  // the list did not fit; State::needed_edges says how many there are
};

// The box of this step, made by make_box.
struct Box {
  double given[9];   // Angstrom, rows; zero for open directions
  double basis[9];   // reduced cell, rows; unit normals for open directions
  double dual[9];    // 1/Angstrom (open: 1), fraction_k = dual_k . x
  double height[3];  // Angstrom, between opposite faces of the reduced cell; open: 0
  int periodic[3];
  int transform[9];  // reduced_k = sum_l transform[k][l] given_l
};

// Checks and reduces a cell (core/lattice.h) for lists that reach as far as this, Angstrom. Throws
// InputError.
Box make_box(const double* cell, const std::array<bool, 3>& pbc, double reach);

// One per system, on the device; a copy comes back with every step's results.
struct State {
  int rebuild;        // 1 while this step builds a list
  int built;          // 0 before the first list
  int force_rebuild;  // set by the host
  unsigned faults;    // this step's; an overflow stays until the list is built anew
  int fault_edge;     // lowest edge with a fault, INT_MAX if none
  int fault_atom;     // lowest atom with a position that is not finite, INT_MAX if none
  int fault_centre, fault_sender;  // of fault_edge
  // An edge shorter than the distance to warn of (the lowest), INT_MAX if none.
  int close_edge, close_centre, close_sender;
  unsigned blocks_done;   // of find_moved
  double close_distance;  // Angstrom
  // Cell list of the last build: bins along each axis, how many of them to look into on either
  // side, and for open axes where the first begins and how long each is, Angstrom.
  int bins[3], range[3], num_bins;
  double origin[3], per_bin[3];
  int num_edges;  // 0 after an overflow
  int64_t num_builds;
  int64_t needed_edges;     // by the last build
  double map[9], allowed2;  // see decide_begin in neighbors_decide-inl.h
  double built_cell[9];
};

// Lists as the other kernels read them. Edge e of centre c, offsets[c] <= e < offsets[c + 1], comes
// from row senders[e] shifted by shifts[3 e ...] lattice vectors; the order is a function of the
// input alone. incoming_edges[incoming_offsets[r] ... incoming_offsets[r + 1]) are the edges whose
// sender is row r, ascending.
struct NeighborView {
  int64_t n_local = 0, n_rows = 0;
  int64_t edge_capacity = 0;
  const int* species = nullptr;       // [n_rows]
  const double* positions = nullptr;  // [n_rows][3]
  const Box* box = nullptr;
  State* state = nullptr;
  const int* offsets = nullptr;           // [n_local + 1]
  const int* senders = nullptr;           // [capacity]
  const int* receivers = nullptr;         // [capacity]
  const int* shifts = nullptr;            // [capacity][3]
  const int* incoming_offsets = nullptr;  // [n_rows + 1]
  const int* incoming_edges = nullptr;    // [capacity]
};

// Owns positions, species, box and lists of one system. The host does not know whether update()
// builds: its kernels are always all enqueued, so that a step is the same sequence whatever happens
// (and can be captured in a graph), and those of a build are skipped where there is nothing to do
// (conditional.h).
class NeighborList {
 public:
  // radius: cutoff plus skin; edges beyond the cutoff are in the list. Angstrom.
  NeighborList(double cutoff, double skin);

  // Room for a system. Changes the memory, and forces a rebuild, only if something grew or the
  // sizes changed. `keep_list`: the caller says when to rebuild (LAMMPS), the device does not.
  void resize(int64_t n_local, int64_t n_rows, bool keep_list);
  // Room for at least this many edges.
  void reserve_edges(int64_t count);
  // For later builds, Angstrom.
  void set_skin(double skin);

  // Page-locked places where the host writes the input of a step; upload() copies them.
  int* host_species() { return host_species_.data(); }
  double* host_positions() { return host_positions_.data(); }
  Box* host_box() { return host_box_.data(); }
  void upload_species(cudaStream_t stream);
  // Box and positions; positions come from `device_positions` [n_rows][3] if that is not null.
  void upload(const double* device_positions, cudaStream_t stream);
  // The next update builds whatever the positions are.
  void force_rebuild(cudaStream_t stream);

  void update(cudaStream_t stream);

  NeighborView view() const;
  // Copies the state to page-locked memory; valid once the stream has been synchronised.
  void download_state(cudaStream_t stream);
  const State& host_state() const { return *host_state_.data(); }
  double cutoff() const { return cutoff_; }
  double skin() const { return skin_; }
  // Changes whenever any memory moved: captured graphs are stale then.
  int64_t generation() const { return generation_; }
  size_t bytes() const;  // on the device

 private:
  void build(cudaStream_t stream);
  static int64_t most_bins(int64_t n_local);
  // Call f(buffer, count of its items) for every buffer; see require and BytesOnDevice.
  template <typename Self, typename F>
  static void each_of_atoms(Self& list, int64_t n_local, int64_t n_rows, F&& f);
  template <typename Self, typename F>
  static void each_of_edges(Self& list, int64_t edges, F&& f);

  double cutoff_, skin_;
  int64_t n_local_ = -1, n_rows_ = -1, max_bins_ = 0, capacity_ = 0, generation_ = 0;
  bool keep_list_ = false;
  Conditional build_;
  PinnedMemory<int> host_species_;
  PinnedMemory<double> host_positions_;
  PinnedMemory<Box> host_box_;
  PinnedMemory<State> host_state_;
  DeviceMemory<int> species_;
  DeviceMemory<double> positions_, built_positions_;
  DeviceMemory<Box> box_;
  DeviceMemory<State> state_;
  // Cell list: bin of each row, rows grouped by bin, whole cells that wrapping moved each row by.
  DeviceMemory<int> bin_, bin_counts_, bin_offsets_, bin_cursor_, unordered_, binned_, wrap_;
  // Lists.
  DeviceMemory<int> counts_, offsets_, senders_, receivers_, shifts_;
  DeviceMemory<int> incoming_counts_, incoming_offsets_, incoming_cursor_, incoming_unordered_,
      incoming_;
};

}  // namespace gpu
}  // namespace mlff
