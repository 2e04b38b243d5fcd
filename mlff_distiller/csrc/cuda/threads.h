// What kernels ask about threads and warps. For device code alone.
#pragma once

#include <cstdint>

#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Of the whole grid, in x.
__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// The same bits in all lanes, and in every run.
template <typename T>
__device__ __forceinline__ T sum_over_lanes(T x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

}  // namespace gpu
}  // namespace mlff
