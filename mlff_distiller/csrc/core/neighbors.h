// Cell-list neighbour list on the CPU, without torch.
//
// For every centre i, all (j, S) with  |r_j - r_i + S·cell| < cutoff,  (j, S) != (i, 0).
//
// Open, periodic and mixed boundaries, triclinic and skewed cells, cells smaller than the cutoff
// (several images of one atom, its own images included), atoms outside of the cell: shifts refer
// to the positions as they were given. Cost O(n) for a bounded density.
//
// The result is a pure function of the input: each centre's list is sorted by (sender, shift) and
// the distance of an edge is evaluated so that (i, j, S) and (j, i, -S) give the same bits. The
// list is therefore symmetric without exception and does not depend on the number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace mlff {

// Edges in CSR form: edge e in [offsets[i], offsets[i + 1]) goes from senders[e] to receiver i.
struct NeighborList {
  NeighborList();
  ~NeighborList();
  NeighborList(NeighborList&&) noexcept;
  NeighborList& operator=(NeighborList&&) noexcept;

  std::vector<int64_t> offsets;                // n + 1
  std::vector<int32_t> senders;                // n_edges
  std::vector<std::array<int32_t, 3>> shifts;  // n_edges, lattice vectors added to the sender

  int64_t num_centres() const {
    return offsets.empty() ? 0 : static_cast<int64_t>(offsets.size()) - 1;
  }
  int64_t num_edges() const { return offsets.empty() ? 0 : offsets.back(); }
  size_t bytes() const;  // work buffers included

  struct Workspace;
  std::unique_ptr<Workspace> work;  // of build_neighbor_list
};

// Overwrites `out`, whose vectors and work buffers keep their capacity: a rebuild of similar size
// allocates nothing.
//
//   n            number of atoms, 0 allowed
//   positions    3n, Å
//   cell         9, rows are lattice vectors, Å. Rows of open directions are ignored; may be null
//                when no direction is periodic.
//   cutoff       Å, > 0; an edge at exactly the cutoff is left out
//   num_threads  OpenMP threads; <= 0 takes the OpenMP default
//
// Throws mlff::InputError (error.h), with one line: cutoff not finite or <= 0, positions not
// finite, a periodic cell that is singular or left-handed, more atoms or shifts than int32 holds.
void build_neighbor_list(int64_t n, const double* positions, const double* cell,
                         const std::array<bool, 3>& pbc, double cutoff, int num_threads,
                         NeighborList& out);

}  // namespace mlff
