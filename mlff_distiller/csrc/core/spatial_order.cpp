#include "core/spatial_order.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/memory.h"

namespace mlff {
namespace {

constexpr int64_t kSortFrom = 512;  // atoms
constexpr double kSortBin = 3.0;    // Angstrom

// Bits of three 21-bit numbers, interleaved: near in the result is near in space.
uint64_t morton(const uint64_t* x) {
  uint64_t key = 0;
  for (int a = 0; a < 3; ++a) {
    uint64_t v = x[a] & 0x1FFFFF;
    v = (v | v << 32) & 0x1F00000000FFFFull;
    v = (v | v << 16) & 0x1F0000FF0000FFull;
    v = (v | v << 8) & 0x100F00F00F00F00Full;
    v = (v | v << 4) & 0x10C30C30C30C30C3ull;
    v = (v | v << 2) & 0x1249249249249249ull;
    key |= v << a;
  }
  return key;
}

}  // namespace

size_t SpatialOrder::bytes() const {
  Bytes bytes;
  bytes(order), bytes(fraction), bytes(keys);
  return bytes.total;
}

void spatial_order(int64_t n, const double* positions, const std::array<double, 9>& cell,
                   const std::array<double, 9>& to_fraction, const std::array<bool, 3>& pbc,
                   SpatialOrder& out) {
  std::vector<int64_t>& order = out.order;
  std::vector<double>& fraction = out.fraction;
  std::vector<std::pair<uint64_t, int64_t>>& keys = out.keys;
  order.resize(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  if (n < kSortFrom) return;
  fraction.resize(static_cast<size_t>(3 * n));
  keys.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    for (int a = 0; a < 3; ++a) {
      double x = 0.0;
      for (int b = 0; b < 3; ++b) {
        x += positions[3 * i + b] * to_fraction[static_cast<size_t>(3 * b + a)];
      }
      fraction[static_cast<size_t>(3 * i + a)] =
          pbc[static_cast<size_t>(a)] ? x - std::floor(x) : x;
    }
  }
  double bins[3], low[3];
  for (int a = 0; a < 3; ++a) {
    double length = 0.0;
    for (int b = 0; b < 3; ++b) {
      length += cell[static_cast<size_t>(3 * a + b)] * cell[static_cast<size_t>(3 * a + b)];
    }
    bins[a] = std::sqrt(length) / kSortBin;
    low[a] = fraction[static_cast<size_t>(a)];
    for (int64_t i = 0; i < n; ++i)
      low[a] = std::min(low[a], fraction[static_cast<size_t>(3 * i + a)]);
  }
  for (int64_t i = 0; i < n; ++i) {
    uint64_t x[3];
    for (int a = 0; a < 3; ++a) {
      const double bin = (fraction[static_cast<size_t>(3 * i + a)] - low[a]) * bins[a];
      x[a] = bin > 0.0 ? static_cast<uint64_t>(std::min(bin, 2097151.0)) : 0;  // NaN: 0
    }
    keys[static_cast<size_t>(i)] = {morton(x), i};
  }
  std::sort(keys.begin(), keys.end());
  for (int64_t i = 0; i < n; ++i)
    order[static_cast<size_t>(i)] = keys[static_cast<size_t>(i)].second;
}

}  // namespace mlff
