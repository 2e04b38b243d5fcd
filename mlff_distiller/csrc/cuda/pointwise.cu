// All of these are bound by memory: each reads its arguments once and writes its results once, and
// neighbouring threads touch neighbouring numbers. Together they move about a third of what the
// passes over edges do.
#include "cuda/device_memory.h"
#include "cuda/pointwise.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 32;

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

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

template <typename T>
__global__ void silu_kernel(int64_t count, int width, const T* bias, T* x, T* slope) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const Silu<T> silu(x[i] + bias[i % width]);
  x[i] = silu.value;
  slope[i] = silu.slope;
}

template <typename T>
__global__ void scale_kernel(int64_t count, const T* factor, T* x) {
  const int64_t i = thread_index();
  if (i < count) x[i] *= factor[i];
}

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
__global__ void norms_kernel(UpdateCall<T> p) {
  const int64_t index = thread_index();
  const int n = p.num_channels;
  if (index >= p.n * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
  p.cat[i * 2 * n + n + f] = Mixed<T>(p.vu, i, f, n).root(p.norm_epsilon) - p.norm_shift;
}

template <typename T>
__global__ void combine_kernel(UpdateCall<T> p) {
  const int64_t index = thread_index();
  const int n = p.num_channels;
  if (index >= p.n * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
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
__global__ void adjoint_a_kernel(UpdateCall<T> p) {
  const int64_t index = thread_index();
  const int n = p.num_channels;
  if (index >= p.n * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
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
__global__ void adjoint_vu_kernel(UpdateCall<T> p) {
  const int64_t index = thread_index();
  const int n = p.num_channels;
  if (index >= p.n * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
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
__global__ void features_kernel(int64_t count, int n, const T* x, const T* bias, const T* v, T* x2,
                                T* rows) {
  const int64_t index = thread_index();
  if (index >= count * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
  const T* from = x + i * 3 * n + f;
  T* to = rows + i * 5 * n + f / kChunk * 5 * kChunk + f % kChunk;
  const T second = from[2 * n] + bias[2 * n + f];
  x2[index] = second;
  to[0] = from[0] + bias[f];
  to[kChunk] = from[n] + bias[n + f];
  for (int a = 0; a < 3; ++a) to[(2 + a) * kChunk] = second * v[(3 * i + a) * n + f];
}

template <typename T>
__global__ void adjoints_kernel(int64_t count, int n, const T* gs, const T* gcat, const T* gv,
                                T* rows) {
  const int64_t index = thread_index();
  if (index >= count * n) return;
  const int64_t i = index / n;
  const int f = static_cast<int>(index % n);
  T* to = rows + i * 4 * n + f / kChunk * 4 * kChunk + f % kChunk;
  to[0] = gs[index] + gcat[i * 2 * n + f];
  for (int a = 0; a < 3; ++a) to[(1 + a) * kChunk] = gv[(3 * i + a) * n + f];
}

// One warp per atom.
template <typename T>
__global__ void readout_kernel(int64_t n, int width, const T* bias, T* hidden, const T* out,
                               const double* offsets, const int* species, const double* weights,
                               T* slope, double* energies) {
  const int64_t i = thread_index() / 32;
  if (i >= n) return;
  const int lane = threadIdx.x % 32;
  const int kind = species[i];
  out += static_cast<int64_t>(kind < 0 ? 0 : kind) * width;
  const T weight = weights ? static_cast<T>(weights[i]) : T(1);
  double sum = 0.0;
  for (int j = lane; j < width; j += 32) {
    const int64_t at = i * width + j;
    const Silu<T> silu(hidden[at] + bias[j]);
    hidden[at] = silu.value;
    sum += static_cast<double>(silu.value) * static_cast<double>(out[j]);
    slope[at] = silu.slope * (out[j] * weight);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane != 0) return;
  energies[i] = kind < 0 ? 0.0 : sum + offsets[kind];
}

// One warp per atom; each lane sums whole columns, in order.
template <typename T>
__global__ void uncertainty_kernel(int64_t n, int width, const T* hidden, const T* weight,
                                   const T* bias, double floor_squared, const int* species,
                                   double* uncertainties) {
  const int64_t i = thread_index() / 32;
  if (i >= n) return;
  const int lane = threadIdx.x % 32;
  hidden += i * width;
  double sum = 0.0;
  for (int j = lane; j < width; j += 32) {
    T deviation = bias[j];
    for (int k = 0; k < width; ++k) {
      deviation += hidden[k] * weight[static_cast<int64_t>(k) * width + j];
    }
    sum += static_cast<double>(deviation) * static_cast<double>(deviation);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) uncertainties[i] = species[i] < 0 ? 0.0 : sqrt(sum + floor_squared);
}

}  // namespace

template <typename T>
void silu(int64_t n, int width, const T* bias, T* x, T* slope, cudaStream_t stream) {
  if (n == 0) return;
  MLFF_LAUNCH(silu_kernel<T>, dim3(blocks_for(n * width, kThreads)), dim3(kThreads), 0, stream,
              n * width, width, bias, x, slope);
}

template <typename T>
void scale(int64_t count, const T* factor, T* x, cudaStream_t stream) {
  if (count == 0) return;
  MLFF_LAUNCH(scale_kernel<T>, dim3(blocks_for(count, kThreads)), dim3(kThreads), 0, stream, count,
              factor, x);
}

#define MLFF_UPDATE(function, kernel)                                                           \
  template <typename T>                                                                         \
  void function(const UpdateCall<T>& u, cudaStream_t stream) {                                  \
    if (u.n == 0) return;                                                                       \
    MLFF_LAUNCH(kernel<T>, dim3(blocks_for(u.n * u.num_channels, kThreads)), dim3(kThreads), 0, \
                stream, u);                                                                     \
  }
MLFF_UPDATE(update_norms, norms_kernel)
MLFF_UPDATE(update_combine, combine_kernel)
MLFF_UPDATE(update_adjoint_a, adjoint_a_kernel)
MLFF_UPDATE(update_adjoint_vu, adjoint_vu_kernel)
#undef MLFF_UPDATE

template <typename T>
void write_features(int64_t n, int num_channels, const T* x, const T* bias, const T* v, T* x2,
                    T* rows, cudaStream_t stream) {
  if (n == 0) return;
  MLFF_LAUNCH(features_kernel<T>, dim3(blocks_for(n * num_channels, kThreads)), dim3(kThreads), 0,
              stream, n, num_channels, x, bias, v, x2, rows);
}

template <typename T>
void write_adjoints(int64_t n, int num_channels, const T* gs, const T* gcat, const T* gv, T* rows,
                    cudaStream_t stream) {
  if (n == 0) return;
  MLFF_LAUNCH(adjoints_kernel<T>, dim3(blocks_for(n * num_channels, kThreads)), dim3(kThreads), 0,
              stream, n, num_channels, gs, gcat, gv, rows);
}

template <typename T>
void readout(int64_t n, int width, const T* bias, T* hidden, const T* out, const double* offsets,
             const int* species, const double* weights, T* slope, double* energies,
             cudaStream_t stream) {
  if (n == 0) return;
  MLFF_LAUNCH(readout_kernel<T>, dim3(blocks_for(n * 32, kThreads)), dim3(kThreads), 0, stream, n,
              width, bias, hidden, out, offsets, species, weights, slope, energies);
}

template <typename T>
void uncertainty(int64_t n, int width, const T* hidden, const T* weight, const T* bias,
                 double floor_squared, const int* species, double* uncertainties,
                 cudaStream_t stream) {
  if (n == 0) return;
  MLFF_LAUNCH(uncertainty_kernel<T>, dim3(blocks_for(n * 32, kThreads)), dim3(kThreads), 0, stream,
              n, width, hidden, weight, bias, floor_squared, species, uncertainties);
}

#define MLFF_INSTANTIATE(T)                                                                      \
  template void silu<T>(int64_t, int, const T*, T*, T*, cudaStream_t);                           \
  template void scale<T>(int64_t, const T*, T*, cudaStream_t);                                   \
  template void update_norms<T>(const UpdateCall<T>&, cudaStream_t);                             \
  template void update_combine<T>(const UpdateCall<T>&, cudaStream_t);                           \
  template void update_adjoint_a<T>(const UpdateCall<T>&, cudaStream_t);                         \
  template void update_adjoint_vu<T>(const UpdateCall<T>&, cudaStream_t);                        \
  template void write_features<T>(int64_t, int, const T*, const T*, const T*, T*, T*,            \
                                  cudaStream_t);                                                 \
  template void write_adjoints<T>(int64_t, int, const T*, const T*, const T*, T*, cudaStream_t); \
  template void readout<T>(int64_t, int, const T*, T*, const T*, const double*, const int*,      \
                           const double*, T*, double*, cudaStream_t);                            \
  template void uncertainty<T>(int64_t, int, const T*, const T*, const T*, double, const int*,   \
                               double*, cudaStream_t);
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)
#undef MLFF_INSTANTIATE

}  // namespace gpu
}  // namespace mlff
