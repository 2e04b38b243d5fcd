// All that happens to an atom between two passes over edges, in one launch: for systems so small
// that the time of their many products and of what is between them is that of launches.
#pragma once

#include <cstdint>

#include "cuda/gpu.h"
#include "cuda/pointwise.h"

namespace mlff {
namespace gpu {

// Weights [in][out], and transposed for the reverse pass; see Network::Layer.
template <typename T>
struct UpdateWeights {
  const T *mix = nullptr, *in = nullptr, *in_bias = nullptr, *out = nullptr;
  const T *mix_reverse = nullptr, *in_reverse = nullptr, *out_reverse = nullptr;
};
template <typename T>
struct MessageWeights {
  const T *in = nullptr, *in_bias = nullptr, *out = nullptr, *out_bias = nullptr;
  const T *in_reverse = nullptr, *out_reverse = nullptr;
};

// As the arguments of readout() in pointwise.h.
template <typename T>
struct Readout {
  int width = 0;
  const T *in = nullptr, *bias = nullptr, *in_reverse = nullptr, *out = nullptr;
  const double *offsets = nullptr, *weights = nullptr;
  const int* species = nullptr;
  T* hidden = nullptr;         // [n][width]
  double* energies = nullptr;  // [n]
};

template <typename T>
struct FusedCall {
  // The update that is done or reversed. Read or written on the device: vu, bias, a, cat (its first
  // halves), v, s_out, gs, gv; the others stay in shared memory.
  UpdateCall<T> update;
  UpdateWeights<T> weights;
  T* slope = nullptr;  // [n][F] silu' of the update
  // The message network that follows the update, or whose adjoint comes before it.
  MessageWeights<T> message;
  T* message_slope = nullptr;            // [n][F] silu'
  T *x2 = nullptr, *features = nullptr;  // see write_features
  const T* gx = nullptr;                 // [n][3F]
  T* adjoints = nullptr;                 // see write_adjoints
  Readout<T> readout;
  bool gradients = false;  // whether the turn goes back
};

// Whether the networks of F channels and a readout of that width fit into what shared memory blocks
// of the present device may have. To be asked before anything is launched there.
template <typename T>
bool fused_fits(int num_channels, int width);

// Up to so many atoms these kernels are faster than cuBLAS and what is between its products; see
// fused.cu. The one place where that is decided.
int64_t fused_atoms(int num_channels);

// The update and the next message network: from v and cat to s_out, v and features.
template <typename T>
void fused_forward(const FusedCall<T>& call, cudaStream_t stream);
// The last update, readout, energies, and all of it but the energies in reverse: to adjoints.
template <typename T>
void fused_turn(const FusedCall<T>& call, cudaStream_t stream);
// A message network and the update before it, in reverse: from gx, gs and gv to adjoints.
template <typename T>
void fused_backward(const FusedCall<T>& call, cudaStream_t stream);

}  // namespace gpu
}  // namespace mlff
