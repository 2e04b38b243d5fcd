// The message pass of PaiNN for training on a GPU: forward, first and second derivative.
//
// Formulas: core/kernels_messages-inl.h, the twin on the CPU. Every sum over edges is gathered: by
// the warp of a receiver, of a sender, or of the edge itself. No atomics, and the order of each sum
// is that of the grouped edges, so results are the same bits in every run.
#pragma once

#include <cstdint>

#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// edges[offsets[a] ... offsets[a + 1]) are the edges of atom a.
struct EdgeGroups {
  const int64_t* offsets = nullptr;  // [atoms + 1]
  const int64_t* edges = nullptr;    // [edges]
};

// Arrays on the device, dense, rows of nodes unless marked otherwise. With `vectors` a width of 3F,
// else of 2F, and then v and hv are not read and v_out becomes zero.
template <typename T>
struct MessageCall {
  int64_t atoms = 0, num_edges = 0, channels = 0;  // channels: F, any number
  bool vectors = false;
  const int64_t *senders = nullptr, *receivers = nullptr;  // [edges], within 0 .. atoms - 1
  EdgeGroups by_receiver;                                  // read by forward and double_backward
  EdgeGroups by_sender;                                    // read by backward and double_backward
  const T *x = nullptr, *v = nullptr;                      // [width], [3][F]
  const T *w = nullptr, *r = nullptr;                      // of edges: [width], [3]
  // Upstream gradients of s and V; of the results of backward.
  const T *g = nullptr, *G = nullptr;                                  // [F], [3][F]
  const T *hx = nullptr, *hv = nullptr, *hw = nullptr, *hr = nullptr;  // as x, v, w, r
  // Results, every element written. s_out and V_out are the messages or, by double_backward, the
  // gradients of g and G; the others are the gradients of x, v, w, r.
  T *s_out = nullptr, *V_out = nullptr;
  T *x_out = nullptr, *v_out = nullptr, *w_out = nullptr, *r_out = nullptr;
};

template <typename T>
void message_forward(const MessageCall<T>& pass, cudaStream_t stream);
template <typename T>
void message_backward(const MessageCall<T>& pass, cudaStream_t stream);
template <typename T>
void message_double_backward(const MessageCall<T>& pass, cudaStream_t stream);

}  // namespace gpu
}  // namespace mlff
