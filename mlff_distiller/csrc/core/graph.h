// What the engines take and give: a graph of atoms in, energies and pair gradients out, rows of
// ghosts exchanged in between.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlff {

enum class Precision { kFloat32, kFloat64 };

// A directed graph over `n_rows` atoms, of which the first `n_local` are centres and the rest are
// ghosts (copies of atoms that some process, maybe this one, owns as centres).
//
// Edge e of centre c, offsets[c] <= e < offsets[c+1], connects it to row senders[e];
// edge_vectors[3 e ...] = x_sender - x_centre in Angstrom. The graph must be symmetric: if c sees
// n, then whoever owns n sees c (with the reversed vector). Edges at or beyond the cutoff are
// allowed and contribute exactly nothing (a skin). Rows with species -1 (atoms that the model is
// not meant to see) must have no edges and be nobody's neighbour; they get energy 0.
struct Graph {
  int64_t n_local = 0;
  int64_t n_rows = 0;
  const int32_t* species = nullptr;      // [n_rows] index into ModelFile::elements, or -1
  const int64_t* offsets = nullptr;      // [n_local + 1]
  const int32_t* senders = nullptr;      // [n_edges]
  const double* edge_vectors = nullptr;  // [n_edges][3], Angstrom
  const int64_t* names = nullptr;        // [n_rows] what errors call the rows; null: their index
};

struct Outputs {
  // [n_local] eV, reference energies and ZBL included. Required.
  double* atomic_energies = nullptr;
  // [n_edges][3] eV/Angstrom, or null for energies only. D of edge (c, n) is the share of
  // dE/d(x_n - x_c) that this directed edge holds, E being the energy of ALL processes:
  //   F_n -= D,  F_c += D,  virial -= (x_n - x_c) (outer) D, each directed edge once.
  // With ghosts, F_n of a ghost has to be sent to its owner (LAMMPS: reverse communication).
  double* pair_gradients = nullptr;
  // [n_local], or null for 1: pair_gradients become those of the sum of weight times energy of
  // atoms (heat flux: weights are coordinates). Atomic energies are not affected.
  const double* energy_weights = nullptr;
  // [n_local] eV/Angstrom, or null: the expected error of the force on each atom, see
  // mlff_distiller/students/uncertainty.py. 0 for rows with species -1. The model needs
  // ModelFile::has_uncertainty.
  double* uncertainties = nullptr;
};

// Rows to be filled in for ghosts between two stages. `rows` is contiguous, row r at
// rows + r * row_bytes; rows [0, n_local) are valid, rows [n_local, n_rows) must be set to the row
// of the atom's owner. row_bytes is a multiple of 64.
struct ExchangeRequest {
  void* rows = nullptr;
  size_t row_bytes = 0;
  int64_t n_local = 0;
  int64_t n_rows = 0;
  int layer = 0;          // interaction whose message (or its reverse) needs the rows, from 0
  bool backward = false;  // false: features of senders; true: adjoints of receivers
};

// How ghost rows get their values; the LAMMPS pair style implements it with comm->forward_comm.
// Reverse passes gather as well, so there is only this one direction: owner to ghost.
class GhostExchange {
 public:
  virtual ~GhostExchange() = default;
  virtual void forward(const ExchangeRequest& request) = 0;
};

// Filter-table facts for `info`.
struct TableReport {
  bool tabulated = false;
  int64_t intervals = 0;          // most of any interaction
  double value_error = 0.0;       // max |w_table - w| / max |w|, worst interaction
  double derivative_error = 0.0;  // max |w'_table - w'| / max |w'|, worst interaction
  size_t bytes = 0;               // all interactions
};

// CPU seconds since the last reset, by phase and summed over threads (geometry: wall time of the
// calling thread); filled only when profiling is on.
struct Profile {
  double geometry = 0.0;        // distances, spline arguments, ZBL
  double edges_forward = 0.0;   // messages
  double dense_forward = 0.0;   // message and update networks
  double dense_backward = 0.0;  //
  double edges_backward = 0.0;  // adjoints of messages, pair gradients
};

}  // namespace mlff
