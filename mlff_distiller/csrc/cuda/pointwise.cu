// All of these are bound by memory: each reads its arguments once and writes its results once, and
// neighbouring threads touch neighbouring numbers. Together they move about a third of what the
// passes over edges do.
#include "cuda/channels.h"
#include "cuda/device_memory.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;

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

// One thread per atom and channel.
#define MLFF_CHANNELS(function)                                               \
  template <typename T>                                                       \
  __global__ void function##_kernel(UpdateCall<T> p) {                        \
    const int64_t index = thread_index();                                     \
    const int n = p.num_channels;                                             \
    if (index < p.n * n) function(p, index / n, static_cast<int>(index % n)); \
  }
MLFF_CHANNELS(norms)
MLFF_CHANNELS(combine)
MLFF_CHANNELS(adjoint_a)
MLFF_CHANNELS(adjoint_vu)
#undef MLFF_CHANNELS

template <typename T>
__global__ void features_kernel(int64_t count, int n, const T* x, const T* bias, const T* v, T* x2,
                                T* rows) {
  const int64_t index = thread_index();
  if (index >= count * n) return;
  features(x, bias, v, x2, rows, index / n, static_cast<int>(index % n), n);
}

template <typename T>
__global__ void adjoints_kernel(int64_t count, int n, const T* gs, const T* gcat, const T* gv,
                                T* rows) {
  const int64_t index = thread_index();
  if (index >= count * n) return;
  adjoints(gs, gcat, gv, rows, index / n, static_cast<int>(index % n), n);
}

// One warp per atom.
template <typename T>
__global__ void readout_kernel(int64_t n, int width, const T* bias, T* hidden, const T* out,
                               const double* offsets, const int* species, const double* weights,
                               T* slope, double* energies) {
  const int64_t i = thread_index() / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  const int kind = species[i];
  out += static_cast<int64_t>(kind < 0 ? 0 : kind) * width;
  const T weight = weights ? static_cast<T>(weights[i]) : T(1);
  const double sum =
      read_out(lane, width, bias, hidden + i * width, out, weight, slope + i * width);
  if (lane != 0) return;
  energies[i] = kind < 0 ? 0.0 : sum + offsets[kind];
}

// One warp per atom; each lane sums whole columns, in order.
template <typename T>
__global__ void uncertainty_kernel(int64_t n, int width, const T* hidden, const T* weight,
                                   const T* bias, double floor_squared, const int* species,
                                   double* uncertainties) {
  const int64_t i = thread_index() / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  hidden += i * width;
  double sum = 0.0;
  for (int j = lane; j < width; j += kWarp) {
    T deviation = bias[j];
    for (int k = 0; k < width; ++k) {
      deviation += hidden[k] * weight[static_cast<int64_t>(k) * width + j];
    }
    sum += static_cast<double>(deviation) * static_cast<double>(deviation);
  }
  sum = sum_over_lanes(sum);
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
