// Items grouped by a key, ascending in each group: rows by bin, edges by sender.
#pragma once

#include "cuda/neighbors.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kScanThreads = 1024;
constexpr int kScanItems = 4;  // per thread and round

// offsets [n + 1] and cursor [n]: exclusive sums of counts. One block.
__global__ void __launch_bounds__(kScanThreads)
    scan_counts(const State* state, const int* counts, const int* count, int64_t fixed,
                int* offsets, int* cursor) {
  if (!state->rebuild) return;
  __shared__ int sums[kWarp];
  const int64_t n = count ? *count : fixed;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int carry = 0;
  for (int64_t base = 0; base < n; base += kScanThreads * kScanItems) {
    const int64_t first = base + static_cast<int64_t>(threadIdx.x) * kScanItems;
    int value[kScanItems], own = 0;
    for (int k = 0; k < kScanItems; ++k) {
      value[k] = first + k < n ? counts[first + k] : 0;
      own += value[k];
    }
    int inclusive = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    if (lane == kWarp - 1) sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
      int sum = sums[lane];
      for (int step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += other;
      }
      sums[lane] = sum;
    }
    __syncthreads();
    int running = carry + inclusive - own + (warp > 0 ? sums[warp - 1] : 0);
    for (int k = 0; k < kScanItems; ++k) {
      if (first + k < n) {
        offsets[first + k] = running;
        if (cursor) cursor[first + k] = running;
      }
      running += value[k];
    }
    carry += sums[kWarp - 1];
    __syncthreads();  // before the next round overwrites the sums
  }
  if (threadIdx.x == 0) offsets[n] = carry;
}

// Writes items to their group in any order.
__global__ void scatter_items(const State* state, const int* keys, const int* count, int64_t fixed,
                              int* cursor, int* unordered) {
  if (!state->rebuild) return;
  const int64_t i = thread_index(), n = count ? *count : fixed;
  if (i >= n) return;
  const int key = keys[i];
  if (key >= 0) unordered[atomicAdd(&cursor[key], 1)] = static_cast<int>(i);
}

// Puts each item at its rank within the group.
__global__ void rank_items(const State* state, const int* keys, const int* count, int64_t fixed,
                           const int* offsets, const int* unordered, int* ordered) {
  if (!state->rebuild) return;
  const int64_t i = thread_index(), n = count ? *count : fixed;
  if (i >= n) return;
  const int key = keys[i];
  if (key < 0) return;
  const int begin = offsets[key], end = offsets[key + 1];
  int rank = 0;
  for (int p = begin; p < end; ++p) rank += unordered[p] < i;
  ordered[begin + rank] = static_cast<int>(i);
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
