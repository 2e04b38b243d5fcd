// What a step needs before it: sizes, memory, the input in page-locked memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "cuda/system_impl-inl.h"

namespace mlff {
namespace gpu {
namespace {

int64_t address(const void* pointer) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
}

// Rows on the device. Ghosts that this process owns come and go with every list of LAMMPS, and a
// captured step serves many lists only if its sizes stay: they are rounded up by a sixteenth, and
// kept while they fit and a quarter of them at most is idle.
template <typename T>
int64_t TypedSystem<T>::rows_for(const StepInput& input) const {
  const int64_t n = input.n_local, ghosts = input.n_rows - n;
  if (ghosts == 0 || !options_.graph) return input.n_rows;
  const int64_t room = n == input_.n_local ? rows_ - n : 0;
  constexpr int64_t kLeast = 64;
  if (ghosts <= room && 3 * room <= 4 * ghosts + 3 * kLeast) return rows_;
  return n + ghosts + ghosts / 16 + kLeast / 4;
}

// Everything of a step that may allocate, or that the graph does not repeat.
template <typename T>
void TypedSystem<T>::prepare(const StepInput& input) {
  const int64_t n = input.n_local, given = input.n_rows;
  if (n < 0 || given < n) {
    throw InputError("a system must have 0 <= n_local <= n_rows, got " + std::to_string(n) +
                     " and " + std::to_string(given));
  }
  if (given > n && !input.ghosts.sources) throw InputError("ghosts need their sources, got none");
  const bool sizes = !prepared_ || input.new_atoms || n != input_.n_local || given != input_.n_rows;
  const int64_t rows = sizes ? rows_for(input) : rows_;
  prepared_ = false;  // until all of it is there: memory may run out halfway
  input_ = input;
  input_.forces = input.forces || input.atom_virials;
  rows_ = rows;
  list_.set_skin(input.skin >= 0.0 ? input.skin : options_.skin);
  if (given == n) {
    *list_.host_box() = make_box(input.cell, input.pbc, list_.cutoff() + list_.skin());
  } else {
    *list_.host_box() = make_box(nullptr, {false, false, false}, 0.0);
  }
  // A first guess, the density of water; grow_after_overflow() knows better.
  constexpr int64_t kNeighbors = 64;
  if (sizes) {
    list_.resize(n, rows, input.keep_list);
    list_.reserve_edges(n * kNeighbors);
  }
  network_.resize(list_.view(), input_.forces);
  if (input_.forces) {
    forces_.require(3 * rows);
    host_forces_.require(3 * rows);
  }
  if (input.atom_virials) {
    atom_virials_.require(9 * rows);
    host_atom_virials_.require(9 * rows);
  }
  host_energies_.require(n);
  totals_.require(kTotals * total_shares(n));
  host_totals_.require(kTotals * total_shares(n));
  if (input.energy_weights) {
    weights_.require(n);
    std::memcpy(host_weights_.require(n), input.energy_weights,
                static_cast<size_t>(n) * sizeof(double));
  }
  ghosts_.resize(input.ghosts, n, rows - n, row_bytes(5));
  copy_positions();
  if (sizes || input.new_list) copy_atoms(sizes);
  prepared_ = true;
}

// To page-locked memory, which no copy is reading: every step ends with a wait. Rows that are
// only there for the size lie where the first atom is and have no species, so nothing sees them.
template <typename T>
void TypedSystem<T>::copy_positions() {
  const int64_t given = input_.n_rows;
  if (input_.device_positions || given == 0) return;
  double* to = list_.host_positions();
  std::memcpy(to, input_.positions, static_cast<size_t>(3 * given) * sizeof(double));
  for (int64_t i = 3 * given; i < 3 * rows_; ++i) to[i] = to[i % 3];
}

// What only changes with the list, on the step's stream.
template <typename T>
void TypedSystem<T>::copy_atoms(bool species) {
  const cudaStream_t stream = stream_.get();
  const int64_t n = input_.n_local, given = input_.n_rows;
  if (species && given > 0) {
    std::copy_n(input_.species, given, list_.host_species());
    std::fill_n(list_.host_species() + given, rows_ - given, -1);
    list_.upload_species(stream);
  }
  ghosts_.upload(input_.ghosts, given - n, stream);
  list_.force_rebuild(stream);
}

template <typename T>
CapturedStep::Key TypedSystem<T>::key() const {
  return {list_.generation(),
          network_.generation(),
          input_.n_local,
          rows_,
          input_.forces | input_.atom_virials << 1 | (input_.energy_weights != nullptr) << 2 |
              input_.to_host << 3,
          address(input_.device_positions),
          address(forces_.data()),
          address(atom_virials_.data()),
          address(weights_.data()),
          address(ghosts_.sources()),
          address(host_forces_.data()),
          address(host_atom_virials_.data()),
          address(host_energies_.data()),
          address(host_weights_.data())};
}

template <typename T>
bool TypedSystem<T>::grow_after_overflow() {
  const State& state = list_.host_state();
  if (!(state.faults & kTooManyEdges)) return false;
  list_.reserve_edges(state.needed_edges + state.needed_edges / 16);
  list_.force_rebuild(stream_.get());
  network_.resize(list_.view(), input_.forces);
  return true;
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
