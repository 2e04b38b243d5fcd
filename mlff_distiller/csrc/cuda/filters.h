// Filters of an edge from the tables on the device, see filter_table.h.
#pragma once

#include <cstring>

#include "core/spline.h"
#include "cuda/edges.h"
#include "cuda/pack.h"

#if defined(MLFF_CUDA_HOST)
#include "core/half.h"
#elif defined(__HIP_PLATFORM_AMD__)
#include <hip/hip_fp16.h>
#else
#include <cuda_fp16.h>
#endif

namespace mlff {
namespace gpu {

// One block of channels: values and, times the spacing, slopes from the same four rows.
template <int kBlocks, bool kSlope, typename T>
__device__ __forceinline__ Pack<T> filter(const T* rows, int block, const T* q, const T* b,
                                          Pack<T>& slope) {
  const T* at = rows + block * kChannels;
  const Pack<T> s0 = load(at + kBlocks * kChannels), s1 = load(at + 3 * kBlocks * kChannels),
                s2 = load(at + 5 * kBlocks * kChannels);
  if (kSlope) slope = b[0] * s0 + b[1] * s1 + b[2] * s2;
  return load(at) + q[0] * s0 + q[1] * s1 + q[2] * s2;
}

// Values of all blocks for an edge, from the rows that both passes read.
template <typename T, int kBlocks>
struct Filters {
  const T* table;
  __device__ __forceinline__ Filters(const FilterView<T>& view, int chunk, int offset)
      : table(view.rows + chunk * view.chunk_stride + offset) {}
  __device__ __forceinline__ void operator()(const EdgeRecord<T>& edge, Pack<T>* w) const {
    const T* rows = table + static_cast<int64_t>(edge.interval) * (2 * kBlocks * kChannels);
    T q[3], b[3];
    spline_weights(edge.t, q, b);
    Pack<T> unused;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) w[k] = filter<kBlocks, false>(rows, k, q, b, unused);
  }
};

// Words of a table with slopes of half width: a float32, or two float16.
__device__ __forceinline__ Pack<float> as_floats(const Pack<uint32_t>& words) {
  Pack<float> x;
  memcpy(&x, &words, sizeof(x));
  return x;
}

__device__ __forceinline__ void halves(const Pack<uint32_t>& words, Pack<float>& low,
                                       Pack<float>& high) {
#pragma unroll
  for (int i = 0; i < kPack<float>; ++i) {
#if defined(MLFF_CUDA_HOST)
    low.c[i] = from_half(words.c[i] & 0xffffu);
    high.c[i] = from_half(words.c[i] >> 16);
#else
    __half2 pair;
    memcpy(&pair, &words.c[i], sizeof(pair));
    const float2 both = __half22float2(pair);
    low.c[i] = both.x;
    high.c[i] = both.y;
#endif
  }
}

// The same numbers from rows with slopes of half width: 8 rows in place of 12.
template <int kBlocks>
struct HalfFilters {
  static constexpr int kRow = kHalfRows<kBlocks> * kChannels;
  const uint32_t* table;
  float scale;
  __device__ __forceinline__ HalfFilters(const FilterView<float>& view, int chunk, int offset)
      : table(view.half_rows + chunk * view.half_stride + offset), scale(view.half_scale) {}
  __device__ __forceinline__ void operator()(const EdgeRecord<float>& edge, Pack<float>* w) const {
    const uint32_t* rows = table + static_cast<int64_t>(edge.interval) * kRow;
    float q[3], b[3];
    spline_weights(edge.t, q, b);
#pragma unroll
    for (int k = 0; k < 3; ++k) q[k] *= scale;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) w[k] = as_floats(load(rows + k * kChannels));
    Pack<float> low, high;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      halves(load(rows + k * kRow + kBlocks * kChannels), low, high);
      w[0] = w[0] + q[k] * low;
      w[1] = w[1] + q[k] * high;
    }
    if (kBlocks == 2) return;
    const uint32_t* third = rows + (kBlocks + 1) * kChannels;
    Pack<float>& last = w[kBlocks - 1];
    halves(load(third), low, high);
    last = last + q[0] * low + q[1] * high;
    halves(load(third + 2 * kRow), low, high);
    last = last + q[2] * low;
  }
};

}  // namespace gpu
}  // namespace mlff
