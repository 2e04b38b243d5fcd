// The order of atoms in memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace mlff {

struct SpatialOrder {
  std::vector<int64_t> order;  // order[i] is the atom at place i
  size_t bytes() const;

  // Work space, kept: systems are sorted again with every neighbour list.
  std::vector<double> fraction;
  std::vector<std::pair<uint64_t, int64_t>> keys;
};

// Orders atoms along a space-filling curve, so that neighbours' rows are near in memory. Small
// systems, which fit the cache in any order, are left as they are.
//   positions    [n][3], Angstrom
//   cell         rows, invertible; rows of open directions are unit vectors
//   to_fraction  its inverse
void spatial_order(int64_t n, const double* positions, const std::array<double, 9>& cell,
                   const std::array<double, 9>& to_fraction, const std::array<bool, 3>& pbc,
                   SpatialOrder& out);

}  // namespace mlff
