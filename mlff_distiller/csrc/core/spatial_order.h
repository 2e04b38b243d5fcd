// The order of atoms in memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace mlff {

// Orders atoms along a space-filling curve, so that neighbours' rows are near in memory: order[i]
// is the atom at place i. Small systems, which fit the cache in any order, are left as they are.
//   positions    [n][3], Angstrom
//   cell         rows, invertible; rows of open directions are unit vectors
//   to_fraction  its inverse
void spatial_order(int64_t n, const double* positions, const std::array<double, 9>& cell,
                   const std::array<double, 9>& to_fraction, const std::array<bool, 3>& pbc,
                   std::vector<int64_t>& order);

}  // namespace mlff
