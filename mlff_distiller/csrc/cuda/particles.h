// A model on the atoms of another program, where that keeps them in device memory: OpenMM's CUDA
// platform. Positions are taken from there and forces added there; what crosses the bus is the cell
// up, sums and the state of the neighbour list down.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/model_file.h"
#include "cuda/device_memory.h"
#include "cuda/sorted_atoms.h"
#include "cuda/system.h"

namespace mlff {
namespace gpu {

// Particles lie in slots. Which one is in a slot changes as that program likes, on the stream of
// these arrays: it puts near ones near.
struct ParticleArrays {
  int64_t n_particles = 0;                // slots with one
  const int* particle_of_slot = nullptr;  // [n_particles]
  // [n_particles][4], their x, y, z and something else; one of the two.
  const float* positions = nullptr;
  const double* double_positions = nullptr;
  const float* corrections = nullptr;  // [n_particles][4] to be added to them, or null
  // Fixed point, in units of 2^-32: [3][stride].
  unsigned long long* forces = nullptr;
  int64_t stride = 0;
};

struct ParticleOptions {
  SystemOptions system;
  std::vector<int64_t> atomic_numbers;
  std::vector<int> particles;  // the model's atoms, distinct
  double angstrom = 1.0;       // in their unit of length
  double energy_per_ev = 1.0;  // their unit of energy
};

class ParticlePotential {
 public:
  // Throws InputError, and DeviceError if the device fails. Everything is in the context that is
  // current, and has to be again whenever this is called or destroyed.
  ParticlePotential(const std::string& path, const ParticleOptions& options);
  ~ParticlePotential();
  ParticlePotential(const ParticlePotential&) = delete;
  ParticlePotential& operator=(const ParticlePotential&) = delete;

  // Takes the positions in turn with other work on `stream`, and lets the device compute beside it.
  // Throws InputError for cells and elements that cannot be.
  //   cell  9 Angstrom, rows; without pbc not used
  void start(const ParticleArrays& arrays, const double* cell, const std::array<bool, 3>& pbc,
             bool forces, cudaStream_t stream);
  // The energy, in their unit. Adds forces, if start() was asked for them, in turn with other work
  // on `stream`. Throws InputError for positions or results that are not finite and for atoms at
  // one point; no force was added then.
  double finish(const ParticleArrays& arrays, cudaStream_t stream);

  const System& system() const { return system_; }

 private:
  void sort(const ParticleArrays& arrays, const double* cell, const std::array<bool, 3>& pbc,
            cudaStream_t stream);
  void gather(const ParticleArrays& arrays, cudaStream_t stream);
  void set_rows(int64_t n_particles, const std::vector<int64_t>& order);

  ParticleOptions options_;
  ModelFile model_;
  System system_;
  SortedAtoms atoms_;
  bool sorted_ = false, known_ = false;  // the order; the system knows the atoms in it
  bool forces_ = false;                  // of the step that was started
  std::vector<int64_t> names_;           // particle of each row
  DeviceMemory<int> row_of_particle_;    // -1: not the model's
  DeviceMemory<double> positions_;       // [rows][3] Angstrom
  cudaEvent_t ready_ = nullptr;          // positions_ are there
};

}  // namespace gpu
}  // namespace mlff
