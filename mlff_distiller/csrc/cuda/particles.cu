#include <cmath>

#include "core/error.h"
#include "core/potential.h"
#include "cuda/current_device.h"
#include "cuda/particles.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr double kFixedPoint = 4294967296.0;  // 2^32
constexpr double kMost = 9.2e18;              // below 2^63

// rows[row] = (from[slot] + corrections[slot]) scale, in double throughout. One thread per slot; it
// reads 4 bytes of most particles that the model does not see. Bound by latency.
template <typename T>
__global__ void gather_particles(const T* from, const float* corrections,
                                 const int* particle_of_slot, const int* row_of_particle, int64_t n,
                                 double scale, double* rows) {
  const int64_t slot = thread_index();
  if (slot >= n) return;
  const int64_t row = row_of_particle[particle_of_slot[slot]];
  if (row < 0) return;
  for (int k = 0; k < 3; ++k) {
    double x = from[4 * slot + k];
    if (corrections) x += corrections[4 * slot + k];
    rows[3 * row + k] = x * scale;
  }
}

// to[.][slot] += rows[row] scale, rounded to nearest. Atomic, since kernels of other streams add as
// well (OpenMM's PME); sums of integers are the same in any order.
__global__ void add_particle_forces(const double* rows, const int* particle_of_slot,
                                    const int* row_of_particle, int64_t n, int64_t stride,
                                    double scale, unsigned long long* to) {
  const int64_t slot = thread_index();
  if (slot >= n) return;
  const int64_t row = row_of_particle[particle_of_slot[slot]];
  if (row < 0) return;
  for (int k = 0; k < 3; ++k) {
    const double force = fmin(fmax(rows[3 * row + k] * scale, -kMost), kMost);
    atomicAdd(&to[k * stride + slot], static_cast<unsigned long long>(llrint(force)));
  }
}

}  // namespace

ParticlePotential::ParticlePotential(const std::string& path, const ParticleOptions& options)
    : options_(options), model_(read_model_file(path)), system_(model_, options.system) {
  const CurrentDevice current(options_.system.device);
  positions_.require(3 * static_cast<int64_t>(options_.particles.size()));
  check(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming), "making an event");
}

ParticlePotential::~ParticlePotential() { static_cast<void>(cudaEventDestroy(ready_)); }

void ParticlePotential::set_rows(int64_t n_particles, const std::vector<int64_t>& order) {
  std::vector<int> rows(static_cast<size_t>(n_particles), -1);
  names_.resize(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const int particle = options_.particles[static_cast<size_t>(order[i])];
    names_[i] = particle;
    rows[static_cast<size_t>(particle)] = static_cast<int>(i);
  }
  row_of_particle_.assign(rows);
}

void ParticlePotential::gather(const ParticleArrays& arrays, cudaStream_t stream) {
  const int64_t n = arrays.n_particles;
  const dim3 grid(blocks_for(n, kThreads)), block(kThreads);
  if (arrays.double_positions) {
    MLFF_LAUNCH((gather_particles<double>), grid, block, 0, stream, arrays.double_positions,
                arrays.corrections, arrays.particle_of_slot, row_of_particle_.data(), n,
                options_.angstrom, positions_.data());
  } else {
    MLFF_LAUNCH((gather_particles<float>), grid, block, 0, stream, arrays.positions,
                arrays.corrections, arrays.particle_of_slot, row_of_particle_.data(), n,
                options_.angstrom, positions_.data());
  }
}

// Once: the host puts the atoms in order, and needs to know where they are.
void ParticlePotential::sort(const ParticleArrays& arrays, const double* cell,
                             const std::array<bool, 3>& pbc, cudaStream_t stream) {
  const int64_t n = static_cast<int64_t>(options_.particles.size());
  std::vector<int64_t> as_given(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) as_given[static_cast<size_t>(i)] = i;
  set_rows(arrays.n_particles, as_given);
  gather(arrays, stream);
  PinnedMemory<double> positions;
  check(
      cudaMemcpyAsync(positions.require(3 * n), positions_.data(),
                      static_cast<size_t>(3 * n) * sizeof(double), cudaMemcpyDeviceToHost, stream),
      "copying positions from the device");
  check(cudaStreamSynchronize(stream), "copying positions from the device");
  atoms_.set(model_, n, options_.atomic_numbers.data(), positions.data(), cell, pbc,
             model_.cutoff + options_.system.skin);
  set_rows(arrays.n_particles, atoms_.order());
  sorted_ = true;
}

void ParticlePotential::start(const ParticleArrays& arrays, const double* cell,
                              const std::array<bool, 3>& pbc, bool forces, cudaStream_t stream) {
  const CurrentDevice current(options_.system.device);
  if (!sorted_) sort(arrays, cell, pbc, stream);
  // What finish() has added before is read by then, so that the system may write forces again.
  gather(arrays, stream);
  check(cudaEventRecord(ready_, stream), "taking positions");
  StepInput input;
  input.n_local = input.n_rows = static_cast<int64_t>(options_.particles.size());
  input.species = atoms_.species.data();
  input.device_positions = positions_.data();
  input.ready = ready_;
  input.cell = cell;
  input.pbc = pbc;
  input.new_atoms = !known_;
  input.names = names_.data();
  input.forces = forces_ = forces;
  input.to_host = false;
  system_.start(input);
  known_ = true;
}

double ParticlePotential::finish(const ParticleArrays& arrays, cudaStream_t stream) {
  const CurrentDevice current(options_.system.device);
  const StepResult& result = system_.complete();
  // A force is a sum of gradients of pairs, and so is the virial: where one is not finite, both are
  // not.
  double sum = result.energy;
  for (double part : result.virial) sum += part;
  if (!std::isfinite(sum)) throw InputError(kNotFiniteResult);
  if (forces_) {
    const int64_t n = arrays.n_particles;
    MLFF_LAUNCH(add_particle_forces, dim3(blocks_for(n, kThreads)), dim3(kThreads), 0, stream,
                result.device_forces, arrays.particle_of_slot, row_of_particle_.data(), n,
                arrays.stride, options_.angstrom * options_.energy_per_ev * kFixedPoint,
                arrays.forces);
  }
  return result.energy * options_.energy_per_ev;
}

}  // namespace gpu
}  // namespace mlff
