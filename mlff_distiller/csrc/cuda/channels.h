// What happens between matrix products, in one channel of one atom: for kernels that do nothing
// else (pointwise.cu) and for those that have the products in them (fused.cu).
//
// Arrays are as in pointwise.h; `i` counts their atoms, `f` channels, `n` is F.
#pragma once

#include "cuda/edges.h"
#include "cuda/pointwise.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }

template <typename T>
struct Silu {
  T value, slope;
  __device__ __forceinline__ explicit Silu(T z) {
    const T gate = T(1) / (T(1) + exponential(-z));
    value = z * gate;
    slope = gate * (T(1) + z * (T(1) - gate));
  }
};

// V v and U v of one atom and channel.
template <typename T>
struct Mixed {
  T v[3], u[3];
  __device__ __forceinline__ Mixed(const T* vu, int64_t i, int f, int n) {
    for (int a = 0; a < 3; ++a) {
      v[a] = vu[(3 * i + a) * 2 * n + f];
      u[a] = vu[(3 * i + a) * 2 * n + n + f];
    }
  }
  __device__ __forceinline__ T dot() const { return v[0] * u[0] + v[1] * u[1] + v[2] * u[2]; }
  // norm + shift
  __device__ __forceinline__ T root(T epsilon) const {
    return square_root(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + epsilon);
  }
};

template <typename T>
__device__ __forceinline__ void norms(const UpdateCall<T>& p, int64_t i, int f) {
  const int n = p.num_channels;
  p.cat[i * 2 * n + n + f] = Mixed<T>(p.vu, i, f, n).root(p.norm_epsilon) - p.norm_shift;
}

template <typename T>
__device__ __forceinline__ void combine(const UpdateCall<T>& p, int64_t i, int f) {
  const int n = p.num_channels;
  const Mixed<T> m(p.vu, i, f, n);
  T* a = p.a + i * (p.last ? 2 : 3) * n + f;
  const T ss = a[0] + p.bias[f], sv = a[n] + p.bias[n + f];
  a[n] = sv;
  p.s_out[i * n + f] = p.cat[i * 2 * n + f] + ss + sv * m.dot();
  if (p.last) return;
  const T vv = a[2 * n] + p.bias[2 * n + f];
  a[2 * n] = vv;
  for (int axis = 0; axis < 3; ++axis) p.v[(3 * i + axis) * n + f] += vv * m.u[axis];
}

template <typename T>
__device__ __forceinline__ void adjoint_a(const UpdateCall<T>& p, int64_t i, int f) {
  const int n = p.num_channels;
  const Mixed<T> m(p.vu, i, f, n);
  T* ga = p.ga + i * (p.last ? 2 : 3) * n + f;
  const T gs = p.gs[i * n + f];
  ga[0] = gs;
  ga[n] = gs * m.dot();
  if (p.last) return;
  T sum = 0;
  for (int axis = 0; axis < 3; ++axis) sum += p.gv[(3 * i + axis) * n + f] * m.u[axis];
  ga[2 * n] = sum;
}

template <typename T>
__device__ __forceinline__ void adjoint_vu(const UpdateCall<T>& p, int64_t i, int f) {
  const int n = p.num_channels;
  const Mixed<T> m(p.vu, i, f, n);
  const T* a = p.a + i * (p.last ? 2 : 3) * n + f;
  const T cross = p.gs[i * n + f] * a[n];
  const T along = p.gcat[i * 2 * n + n + f] / m.root(p.norm_epsilon);
  for (int axis = 0; axis < 3; ++axis) {
    T gu = cross * m.v[axis];
    if (!p.last) gu += a[2 * n] * p.gv[(3 * i + axis) * n + f];
    T* to = p.gvu + (3 * i + axis) * 2 * n + f;
    to[0] = cross * m.u[axis] + along * m.v[axis];
    to[n] = gu;
  }
}

template <typename T>
__device__ __forceinline__ void features(const T* x, const T* bias, const T* v, T* x2, T* rows,
                                         int64_t i, int f, int n) {
  const T* from = x + i * 3 * n + f;
  T* to = rows + i * 5 * n + f / kChannels * 5 * kChannels + f % kChannels;
  const T second = from[2 * n] + bias[2 * n + f];
  x2[i * n + f] = second;
  to[0] = from[0] + bias[f];
  to[kChannels] = from[n] + bias[n + f];
  for (int a = 0; a < 3; ++a) to[(2 + a) * kChannels] = second * v[(3 * i + a) * n + f];
}

template <typename T>
__device__ __forceinline__ void adjoints(const T* gs, const T* gcat, const T* gv, T* rows,
                                         int64_t i, int f, int n) {
  T* to = rows + i * 4 * n + f / kChannels * 4 * kChannels + f % kChannels;
  to[0] = gs[i * n + f] + gcat[i * 2 * n + f];
  for (int a = 0; a < 3; ++a) to[(1 + a) * kChannels] = gv[(3 * i + a) * n + f];
}

// An atom's readout, by one warp: hidden [width] = silu(hidden + bias), slope [width] as below for
// energies' adjoints. The sum that lane 0 returns is the energy but for the offset.
template <typename T>
__device__ __forceinline__ double read_out(int lane, int width, const T* bias, T* hidden,
                                           const T* out, T weight, T* slope) {
  double sum = 0.0;
  for (int j = lane; j < width; j += kWarp) {
    const Silu<T> silu(hidden[j] + bias[j]);
    hidden[j] = silu.value;
    sum += static_cast<double>(silu.value) * static_cast<double>(out[j]);
    slope[j] = silu.slope * (out[j] * weight);
  }
  return sum_over_lanes(sum);
}

}  // namespace gpu
}  // namespace mlff
