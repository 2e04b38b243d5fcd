// Kernels of the message pass for training.
//
// What bounds them: the arrays of edges are read or written once by each kernel and come from DRAM,
// rows of nodes are shared by some 50 edges and come from L2 while they fit. Bytes per edge in
// float32, width 3F:
//                    edges (DRAM)        nodes (L2)
//   receiver         12F                 24F            forward
//   sender           12F                 16F            backward
//   edge             4F + 12F written    40F            backward
//   receiver, second 24F                 48F            double backward
//   sender, second   24F                 16F            double backward
//   edge, second     8F + 12F written    64F            double backward
// against one or two operations per number read: all are bound by memory. A step of force matching
// runs forward once, backward twice, double backward once: 136F bytes, with F = 128 17 kB per edge
// and layer, 9 ns at an A100's 2 TB/s.
#include "cuda/device_memory.h"
#include "cuda/message.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ int64_t warp_index() { return thread_index() / kWarp; }

// One warp per receiver and 32 channels, those of one receiver next to each other, so that a block
// reads whole rows of w. Sums stay in registers.
template <typename T, bool kVectors, bool kSecond>
__global__ void __launch_bounds__(kThreads) receiver_kernel(MessageCall<T> p) {
  const int64_t f = p.channels, chunks = (f + kWarp - 1) / kWarp, width = (kVectors ? 3 : 2) * f;
  const int64_t task = warp_index(), i = task / chunks;
  const int64_t c = task % chunks * kWarp + threadIdx.x % kWarp;
  if (i >= p.atoms || c >= f) return;
  T s = 0, out[3] = {0, 0, 0};
  const int64_t end = p.by_receiver.offsets[i + 1];
  for (int64_t at = p.by_receiver.offsets[i]; at < end; ++at) {
    const int64_t e = p.by_receiver.edges[at], j = p.senders[e];
    const T* x = p.x + j * width + c;
    const T* v = kVectors ? p.v + j * 3 * f + c : nullptr;
    const T* w = p.w + e * width + c;
    const T* r = p.r + 3 * e;
    if (!kSecond) {
      s += w[0] * x[0];
      const T m1 = w[f] * x[f];
#pragma unroll
      for (int a = 0; a < 3; ++a) out[a] += m1 * r[a];
      if (kVectors) {
        const T m2 = w[2 * f] * x[2 * f];
#pragma unroll
        for (int a = 0; a < 3; ++a) out[a] += m2 * v[a * f];
      }
    } else {
      const T* hx = p.hx + j * width + c;
      const T* hv = kVectors ? p.hv + j * 3 * f + c : nullptr;
      const T* hw = p.hw + e * width + c;
      const T* hr = p.hr + 3 * e;
      s += w[0] * hx[0] + hw[0] * x[0];
      const T p1 = w[f] * hx[f] + hw[f] * x[f], q1 = w[f] * x[f];
#pragma unroll
      for (int a = 0; a < 3; ++a) out[a] += p1 * r[a] + q1 * hr[a];
      if (kVectors) {
        const T p2 = w[2 * f] * hx[2 * f] + hw[2 * f] * x[2 * f], q2 = w[2 * f] * x[2 * f];
#pragma unroll
        for (int a = 0; a < 3; ++a) out[a] += p2 * v[a * f] + q2 * hv[a * f];
      }
    }
  }
  p.s_out[i * f + c] = s;
#pragma unroll
  for (int a = 0; a < 3; ++a) p.V_out[(3 * i + a) * f + c] = out[a];
}

// One warp per sender and 32 channels. What is common to the sender's edges is taken out of the
// sum: with A = Σ w2 G and B = Σ hw2 G the third terms are A·v and x2 A, or B·v + A·hv and hx2 A +
// x2 B.
template <typename T, bool kVectors, bool kSecond>
__global__ void __launch_bounds__(kThreads) sender_kernel(MessageCall<T> p) {
  const int64_t f = p.channels, chunks = (f + kWarp - 1) / kWarp, width = (kVectors ? 3 : 2) * f;
  const int64_t task = warp_index(), j = task / chunks;
  const int64_t c = task % chunks * kWarp + threadIdx.x % kWarp;
  if (j >= p.atoms || c >= f) return;
  T x0 = 0, x1 = 0, A[3] = {0, 0, 0}, B[3] = {0, 0, 0};
  const int64_t end = p.by_sender.offsets[j + 1];
  for (int64_t at = p.by_sender.offsets[j]; at < end; ++at) {
    const int64_t e = p.by_sender.edges[at], i = p.receivers[e];
    const T g = p.g[i * f + c];
    const T* w = p.w + e * width + c;
    const T* hw = kSecond ? p.hw + e * width + c : nullptr;
    T G[3], along = 0, h_along = 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      G[a] = p.G[(3 * i + a) * f + c];
      along += G[a] * p.r[3 * e + a];
      if (kSecond) h_along += G[a] * p.hr[3 * e + a];
    }
    x0 += g * (kSecond ? hw[0] : w[0]);
    x1 += kSecond ? along * hw[f] + h_along * w[f] : along * w[f];
    if (kVectors) {
      const T w2 = w[2 * f], hw2 = kSecond ? hw[2 * f] : T(0);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        A[a] += w2 * G[a];
        if (kSecond) B[a] += hw2 * G[a];
      }
    }
  }
  p.x_out[j * width + c] = x0;
  p.x_out[j * width + f + c] = x1;
  T x2 = 0;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int64_t at = (3 * j + a) * f + c;
    T v = 0;
    if (kVectors) {
      x2 += p.v[at] * (kSecond ? B[a] : A[a]);
      if (kSecond) x2 += p.hv[at] * A[a];
      const int64_t third = j * width + 2 * f + c;
      v = kSecond ? p.hx[third] * A[a] + p.x[third] * B[a] : p.x[third] * A[a];
    }
    p.v_out[at] = v;
  }
  if (kVectors) p.x_out[j * width + 2 * f + c] = x2;
}

// One warp per edge, lanes over channels, so that the three sums over channels need no memory.
// Edges that share a receiver are usually neighbours and find its rows in L1.
template <typename T, bool kVectors, bool kSecond>
__global__ void __launch_bounds__(kThreads) edge_kernel(MessageCall<T> p) {
  const int64_t f = p.channels, width = (kVectors ? 3 : 2) * f;
  const int64_t e = warp_index();
  if (e >= p.num_edges) return;  // whole warps
  const int lane = threadIdx.x % kWarp;
  const int64_t i = p.receivers[e], j = p.senders[e];
  T r[3], hr[3] = {0, 0, 0}, sum[3] = {0, 0, 0};
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    r[a] = p.r[3 * e + a];
    if (kSecond) hr[a] = p.hr[3 * e + a];
  }
  for (int64_t c = lane; c < f; c += kWarp) {
    const T g = p.g[i * f + c];
    const T* x = p.x + j * width + c;
    const T* hx = kSecond ? p.hx + j * width + c : nullptr;
    T* w_out = p.w_out + e * width + c;
    T p1 = p.w[e * width + f + c] * (kSecond ? hx[f] : x[f]);
    if (kSecond) p1 += p.hw[e * width + f + c] * x[f];
    T along = 0, h_along = 0, on_v = 0, on_hv = 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const T G = p.G[(3 * i + a) * f + c];
      along += G * r[a];
      sum[a] += p1 * G;
      if (kSecond) h_along += G * hr[a];
      if (kVectors) on_v += G * p.v[(3 * j + a) * f + c];
      if (kVectors && kSecond) on_hv += G * p.hv[(3 * j + a) * f + c];
    }
    if (!kSecond) {
      w_out[0] = g * x[0];
      w_out[f] = along * x[f];
      if (kVectors) w_out[2 * f] = on_v * x[2 * f];
    } else {
      w_out[0] = g * hx[0];
      w_out[f] = along * hx[f] + h_along * x[f];
      if (kVectors) w_out[2 * f] = on_v * hx[2 * f] + on_hv * x[2 * f];
    }
  }
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    sum[a] = sum_over_lanes(sum[a]);
    if (lane == 0) p.r_out[3 * e + a] = sum[a];
  }
}

dim3 node_grid(int64_t atoms, int64_t channels) {
  return dim3(blocks_for(atoms * ((channels + kWarp - 1) / kWarp), kThreads / kWarp));
}

template <typename T, bool kSecond>
void gather_receivers(const MessageCall<T>& pass, cudaStream_t stream) {
  if (pass.atoms == 0 || pass.channels == 0) return;
  const dim3 grid = node_grid(pass.atoms, pass.channels);
  if (pass.vectors) {
    MLFF_LAUNCH((receiver_kernel<T, true, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  } else {
    MLFF_LAUNCH((receiver_kernel<T, false, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  }
}

template <typename T, bool kSecond>
void gather_senders(const MessageCall<T>& pass, cudaStream_t stream) {
  if (pass.atoms == 0 || pass.channels == 0) return;
  const dim3 grid = node_grid(pass.atoms, pass.channels);
  if (pass.vectors) {
    MLFF_LAUNCH((sender_kernel<T, true, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  } else {
    MLFF_LAUNCH((sender_kernel<T, false, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  }
}

template <typename T, bool kSecond>
void over_edges(const MessageCall<T>& pass, cudaStream_t stream) {
  if (pass.num_edges == 0) return;
  const dim3 grid(blocks_for(pass.num_edges, kThreads / kWarp));
  if (pass.vectors) {
    MLFF_LAUNCH((edge_kernel<T, true, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  } else {
    MLFF_LAUNCH((edge_kernel<T, false, kSecond>), grid, dim3(kThreads), 0, stream, pass);
  }
}

}  // namespace

template <typename T>
void message_forward(const MessageCall<T>& pass, cudaStream_t stream) {
  gather_receivers<T, false>(pass, stream);
}

template <typename T>
void message_backward(const MessageCall<T>& pass, cudaStream_t stream) {
  gather_senders<T, false>(pass, stream);
  over_edges<T, false>(pass, stream);
}

template <typename T>
void message_double_backward(const MessageCall<T>& pass, cudaStream_t stream) {
  gather_receivers<T, true>(pass, stream);
  gather_senders<T, true>(pass, stream);
  over_edges<T, true>(pass, stream);
}

#define MLFF_INSTANTIATE(T)                                               \
  template void message_forward<T>(const MessageCall<T>&, cudaStream_t);  \
  template void message_backward<T>(const MessageCall<T>&, cudaStream_t); \
  template void message_double_backward<T>(const MessageCall<T>&, cudaStream_t);
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)
#undef MLFF_INSTANTIATE

}  // namespace gpu
}  // namespace mlff
