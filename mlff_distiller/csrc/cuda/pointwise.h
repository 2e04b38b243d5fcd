// Element-wise kernels between the matrix products, one thread per atom and channel.
#pragma once

#include <cstdint>

#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// x = silu(x + bias), slope = silu'(x + bias); [n][width].
template <typename T>
void silu(int64_t n, int width, const T* bias, T* x, T* slope, cudaStream_t stream);

// x *= factor; [count].
template <typename T>
void scale(int64_t count, const T* factor, T* x, cudaStream_t stream);

// Arrays of the update block for n atoms; F = num_channels. `last`: vectors end here, no a_vv.
template <typename T>
struct UpdateCall {
  int64_t n = 0;
  int num_channels = 0;
  bool last = false;
  T norm_epsilon = 0;  // the norm is sqrt(|V v|^2 + epsilon) - shift
  T norm_shift = 0;
  T* vu = nullptr;          // [n][3][2F] V v | U v
  const T* bias = nullptr;  // [3F] of a, last: [2F]
  T* a = nullptr;           // [n][3F] a_ss | a_sv | a_vv without bias, last: [n][2F]
  T* cat = nullptr;         // [n][2F] s | norm
  T* v = nullptr;           // [n][3][F]
  T* s_out = nullptr;       // [n][F]
  // reverse
  const T* gs = nullptr;    // [n][F] dE/ds after the update
  const T* gv = nullptr;    // [n][3][F] dE/dv after the update, null in the last interaction
  T* ga = nullptr;          // as a
  const T* gcat = nullptr;  // [n][2F]
  T* gvu = nullptr;         // [n][3][2F]
};

// cat's norm = sqrt(sum_xyz (V v)^2 + epsilon) - shift
template <typename T>
void update_norms(const UpdateCall<T>& u, cudaStream_t stream);
// s_out = s + a_ss + a_sv <U v, V v>;  v += a_vv U v
template <typename T>
void update_combine(const UpdateCall<T>& u, cudaStream_t stream);
// ga_ss = gs;  ga_sv = gs <U v, V v>;  ga_vv = gv . U v
template <typename T>
void update_adjoint_a(const UpdateCall<T>& u, cudaStream_t stream);
// gU v = a_vv gv + gs a_sv V v;  gV v = gs a_sv U v + gnorm V v / (norm + shift)
template <typename T>
void update_adjoint_vu(const UpdateCall<T>& u, cudaStream_t stream);

// Rows for neighbours (edges.h) from x [n][3F] without bias [3F] and v [n][3][F]; keeps x2 [n][F].
template <typename T>
void write_features(int64_t n, int num_channels, const T* x, const T* bias, const T* v, T* x2,
                    T* rows, cudaStream_t stream);
// Rows for neighbours: gs [n][F] + first half of gcat [n][2F], and gv [n][3][F].
template <typename T>
void write_adjoints(int64_t n, int num_channels, const T* gs, const T* gcat, const T* gv, T* rows,
                    cudaStream_t stream);

// hidden [n][width] = silu(hidden + bias), energies [n] = hidden . out[species] + offsets[species]
// (0 without species), slope = silu' * out[species] * weights (null: 1): the adjoint of the first
// layer's sums.
template <typename T>
void readout(int64_t n, int width, const T* bias, T* hidden, const T* out, const double* offsets,
             const int* species, const double* weights, T* slope, double* energies,
             cudaStream_t stream);

// uncertainties [n] = sqrt(floor_squared + |hidden [width] . weight [width][width] + bias|^2), 0
// without species; see core/network.cpp. Not by the products of Dense, whose rounding by tf32
// the cancelling terms would not stand.
template <typename T>
void uncertainty(int64_t n, int width, const T* hidden, const T* weight, const T* bias,
                 double floor_squared, const int* species, double* uncertainties,
                 cudaStream_t stream);

}  // namespace gpu
}  // namespace mlff
