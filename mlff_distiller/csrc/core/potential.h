// Potential energy of an atomistic system: neighbour list with skin, engine, forces, virial.
// What ASE and OpenMM call; LAMMPS has its own neighbour lists and uses engine.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/skin.h"

namespace mlff {

struct PotentialOptions {
  EngineOptions engine;
  double skin = kDefaultSkin;  // Angstrom
};

struct PotentialResult {
  double energy = 0.0;                // eV
  std::vector<double> energies;       // [n] eV, per atom, sums to energy
  std::vector<double> forces;         // [n][3] eV/Angstrom
  std::array<double, 9> virial{};     // eV, 3x3 symmetric; stress = -virial / volume
  std::vector<double> atom_virials;   // [n][9] eV if asked for, sums to virial, not symmetric
  std::vector<double> uncertainties;  // [n] eV/Angstrom if asked for, see graph.h
};

enum PotentialOutputs : unsigned {
  kEnergy = 0,        // always
  kForces = 1u << 0,  // and virial
  kAtomVirials = 1u << 1,
  kUncertainties = 1u << 2,
};

// What programs that would go on with such a result are told.
extern const char* const kNotFiniteResult;

class Potential {
 public:
  // Loads an exported student. Throws InputError.
  explicit Potential(const std::string& path, const PotentialOptions& options = {});
  Potential(ModelFile model, const PotentialOptions& options);
  ~Potential();
  Potential(const Potential&) = delete;
  Potential& operator=(const Potential&) = delete;

  // positions [n][3] Angstrom, need not be wrapped; cell: 9 numbers, rows are lattice vectors
  // (ignored, may be null, without pbc). Throws InputError, one line, for NaN or infinite
  // positions, unknown elements, flat or left-handed cells of periodic systems, atoms on top of
  // each other, and uncertainties of a model that has no data for them. `result` keeps its
  // capacity: no allocation per call once warm.
  void compute(int64_t n, const int64_t* atomic_numbers, const double* positions,
               const double* cell, const std::array<bool, 3>& pbc, PotentialResult& result,
               unsigned outputs = kForces);

  const ModelFile& model() const;
  Engine& engine();
  double skin() const;
  const TableReport& table_report() const;
  int64_t num_builds() const;       // neighbour lists built so far
  int64_t num_edges() const;        // in the present list, skin included
  double neighbor_seconds() const;  // wall time in neighbour search and edge vectors so far
  size_t memory_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Throws InputError for elements that the model does not know and positions that are not finite.
void check_atoms(const ModelFile& model, int64_t n, const int64_t* atomic_numbers,
                 const double* positions);

// 9-component virials of atoms from pair gradients: each edge gives half of
// -(x_n - x_c) (outer) D to either end (the gauge of LAMMPS' pairwise potentials; its per-atom
// numbers are a convention, their sum is the virial). Adds to atom_virials [n_rows][9], row major:
// component 3 a + b is edge-vector component a times gradient component b.
void add_atom_virials(int64_t n_local, const int64_t* offsets, const int32_t* senders,
                      const double* edge_vectors, const double* pair_gradients,
                      double* atom_virials);

}  // namespace mlff
