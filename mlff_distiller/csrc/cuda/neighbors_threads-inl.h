// What the kernels of the neighbour list share. Of neighbors.cu alone, as the other -inl.h of it.
#pragma once

#include "cuda/neighbors.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
