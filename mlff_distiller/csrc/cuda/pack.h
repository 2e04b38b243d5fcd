// 16 bytes of neighbouring channels in each lane, and sums over lanes that hold them.
//
// So a group of lanes, a quarter of the warp in float32, half of it in float64, has a chunk of 32
// channels, and a warp as many groups as a lane has channels.
#pragma once

#include "cuda/edges.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {

// Channels of a lane, and groups of a warp.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));
// Lanes of a group.
template <typename T>
constexpr int kGroup = kChannels / kPack<T>;

template <typename T>
struct alignas(16) Pack {
  T c[kPack<T>];
};

template <typename T>
__device__ __forceinline__ Pack<T> load(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

template <typename T>
__device__ __forceinline__ void store(T* to, const Pack<T>& x) {
  *reinterpret_cast<Pack<T>*>(to) = x;
}

template <typename T>
__device__ __forceinline__ Pack<T> operator+(Pack<T> x, const Pack<T>& y) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x.c[i] += y.c[i];
  return x;
}

template <typename T>
__device__ __forceinline__ Pack<T> operator*(Pack<T> x, const Pack<T>& y) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x.c[i] *= y.c[i];
  return x;
}

template <typename T>
__device__ __forceinline__ Pack<T> operator*(T a, Pack<T> x) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x.c[i] *= a;
  return x;
}

// sum + <x, y> over the lane's channels
template <typename T>
__device__ __forceinline__ T add_dot(T sum, const Pack<T>& x, const Pack<T>& y) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) sum += x.c[i] * y.c[i];
  return sum;
}

template <typename T>
__device__ __forceinline__ T across(T x, int step) {
  return __shfl_xor_sync(kAllLanes, x, step);
}

template <typename T>
__device__ __forceinline__ Pack<T> across(Pack<T> x, int step) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x.c[i] = across(x.c[i], step);
  return x;
}

template <typename T>
__device__ __forceinline__ T choose(bool first, T x, T y) {
  return first ? x : y;
}

template <typename T>
__device__ __forceinline__ Pack<T> choose(bool first, Pack<T> x, const Pack<T>& y) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x.c[i] = first ? x.c[i] : y.c[i];
  return x;
}

// Adds 2 kKeep values of lanes that are kStep apart. Each lane keeps kKeep of the sums, the upper
// one the second half: fewer shuffles than if both had all.
template <int kStep, int kKeep, typename V>
__device__ __forceinline__ void fold(V* values, int lane) {
  const bool upper = (lane & kStep) != 0;
#pragma unroll
  for (int i = 0; i < kKeep; ++i) {
    const V send = choose(upper, values[i], values[i + kKeep]);
    const V keep = choose(upper, values[i + kKeep], values[i]);
    values[i] = keep + across(send, kStep);
  }
}

// Four sums over the groups of a warp: group g keeps kKept of them, the first is g * kKept.
template <typename T>
constexpr int kKept = 4 / kPack<T>;
template <typename T>
__device__ __forceinline__ void fold_groups(Pack<T>* values, int lane) {
  fold<16, 2>(values, lane);
  if constexpr (kPack<T> == 4) fold<8, 1>(values, lane);
}

// Four sums over the lanes of a group: a lane keeps the one that kept_sum says.
template <typename T>
__device__ __forceinline__ void fold_lanes(T* values, int lane) {
  fold<kGroup<T> / 2, 2>(values, lane);
  fold<kGroup<T> / 4, 1>(values, lane);
#pragma unroll
  for (int step = kGroup<T> / 8; step > 0; step /= 2) values[0] += across(values[0], step);
}
template <typename T>
__device__ __forceinline__ int kept_sum(int lane) {
  return lane % kGroup<T> / (kGroup<T> / 4);
}

}  // namespace gpu
}  // namespace mlff
