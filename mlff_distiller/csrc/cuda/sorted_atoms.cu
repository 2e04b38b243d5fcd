#include "core/potential.h"
#include "cuda/neighbors.h"
#include "cuda/sorted_atoms.h"

namespace mlff {
namespace gpu {

void SortedAtoms::set(const ModelFile& model, int64_t n, const int64_t* atomic_numbers,
                      const double* positions, const double* cell, const std::array<bool, 3>& pbc,
                      double reach) {
  check_atoms(model, n, atomic_numbers, positions);
  const Box box = make_box(cell, pbc, reach);
  std::array<double, 9> basis, to_fraction;
  for (size_t a = 0; a < 3; ++a) {
    for (size_t b = 0; b < 3; ++b) {
      basis[3 * a + b] = box.basis[3 * a + b];
      to_fraction[3 * b + a] = box.dual[3 * a + b];
    }
  }
  spatial_order(n, positions, basis, to_fraction, pbc, places);
  numbers.assign(atomic_numbers, atomic_numbers + n);
  species.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = order()[static_cast<size_t>(i)];
    species[static_cast<size_t>(i)] = model.species_of(static_cast<int>(atomic_numbers[from]));
  }
}

}  // namespace gpu
}  // namespace mlff
