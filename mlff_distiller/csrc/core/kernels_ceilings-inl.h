// Loops that only serve to measure what the core can do.
#include "core/kernels.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

// Independent chains of FMAs, enough of them to hide the latency. Returns the operations done.
template <typename T>
static double fma_rounds(int64_t rounds) {
  constexpr int kChains = 12;
  Vec<T> x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = broadcast<T>(T(0.1) * T(i));
  Vec<T> factor = broadcast<T>(T(0.999));
  Vec<T> term = broadcast<T>(T(1e-3));
#if defined(__GNUC__)
  asm volatile("" : "+m"(factor), "+m"(term));  // keeps the loop from being evaluated beforehand
#endif
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * factor + term;
  }
  Vec<T> total = x[0];
  for (int i = 1; i < kChains; ++i) total += x[i];
  volatile T sink = sum_lanes<T>(total);
  (void)sink;
  return 2.0 * kChains * Simd<T>::kLanes * static_cast<double>(rounds);
}

template <typename T>
static T read_sum(int64_t count, const T* data) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> sums[8] = {};
  for (int64_t i = 0; i < count; i += 8 * kLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += load(data + i + j * kLanes);
  }
  Vec<T> total = sums[0];
  for (int j = 1; j < 8; ++j) total += sums[j];
  return sum_lanes<T>(total);
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
