// Atoms in an order of near neighbours, as the rows of a System: made when their number or kinds
// change, and kept.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/model_file.h"
#include "core/spatial_order.h"

namespace mlff {
namespace gpu {

struct SortedAtoms {
  std::vector<int64_t> numbers;  // atomic, as the caller has them
  std::vector<int32_t> species;  // of row i
  // Caller's index of row i.
  const std::vector<int64_t>& order() const { return places.order; }

  // For lists that reach as far as this, Angstrom. Throws InputError for elements that the model
  // does not know and positions that are not finite.
  void set(const ModelFile& model, int64_t n, const int64_t* atomic_numbers,
           const double* positions, const double* cell, const std::array<bool, 3>& pbc,
           double reach);

  SpatialOrder places;
};

}  // namespace gpu
}  // namespace mlff
