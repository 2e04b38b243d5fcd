// mlff::Potential (core/potential.h) on a GPU: what ASE and OpenMM call.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "core/potential.h"
#include "cuda/system.h"

namespace mlff {
namespace gpu {

class Potential {
 public:
  // Loads an exported student. Throws InputError, and DeviceError if the device fails.
  Potential(const std::string& path, const SystemOptions& options);
  ~Potential();
  Potential(const Potential&) = delete;
  Potential& operator=(const Potential&) = delete;

  // As mlff::Potential::compute. Atoms are put in an order of near neighbours when their number or
  // kinds change, and keep it.
  void compute(int64_t n, const int64_t* atomic_numbers, const double* positions,
               const double* cell, const std::array<bool, 3>& pbc, PotentialResult& result,
               unsigned outputs = kForces);

  const ModelFile& model() const;
  const System& system() const;
  double skin() const;
  const TableReport& table_report() const;
  int64_t num_builds() const;   // neighbour lists built so far
  int64_t num_edges() const;    // in the present list, skin included
  size_t memory_bytes() const;  // on the device

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gpu
}  // namespace mlff
