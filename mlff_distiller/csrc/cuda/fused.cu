// A block has a few atoms (fused_tile.h), and what is between two products of theirs stays in its
// shared memory; what the reverse pass needs goes to the device, as without these kernels.
//
// What bounds them: a block reads all weights of its networks, 11 F^2 in update_kernel, and does
// 15 F^2 multiply-adds an atom. With F = 128 that is 0.7 MB, which take an SM 5.7 us at 64 bytes a
// cycle, and with eight atoms 7.8 us of multiply-adds; in a step of three interactions 29 and 42 us
// while every block has an SM. Apart the same products need 51 launches more, 64 us in a graph.
// With F = 256 all but the launches takes four times as long: there cuBLAS, which lets all SMs
// multiply, is better. For many atoms the weights are read for every eight of them: 48 ns an atom
// and step from an H100's L2, against 40 ns of multiply-adds and 14 ns or more for what is written
// and read between products. benchmarks/gpu_roofline.py adds them up.
//
// Measured on an H200: three to four times those bounds (the time goes to multiply-adds for a half,
// and in small parts to all that is between), and still 24 % off a step of 1,029 atoms; from some
// 2,800 atoms on cuBLAS is faster, by 10 % at 4,000. fused_atoms() changes over below that. Without
// cuBLAS, whose place a slower kernel takes, these are taken for any number of atoms.
#include "cuda/device_memory.h"
#include "cuda/fused_tile.h"

namespace mlff {
namespace gpu {
namespace {

// To s in `scalars`.
template <typename T, int kAtoms>
__device__ void update(const FusedCall<T>& p, const Tile<T, kAtoms>& t) {
  const int f = t.f, parts = t.u.last ? 2 : 3;
  UpdateCall<T> u = t.u;
  t.copy(3 * f, u.v, 3 * f, t.vectors, 3 * f);
  t.copy(f, p.update.cat + t.first * 2 * f, 2 * f, t.pairs, 2 * f);
  t.product(3, t.vectors, f, f, p.weights.mix, 2 * f, Write<T>{u.vu, 2 * f});
  u.cat = t.pairs;
  u.s_out = t.scalars;
  t.channels([&](int i, int c) { norms(u, i, c); });
  t.product(1, t.pairs, 2 * f, 2 * f, p.weights.in, f,
            Activate<T>{p.weights.in_bias, t.wide, p.slope + t.first * f, f});
  t.product(1, t.wide, f, f, p.weights.out, parts * f, Write<T>{u.a, parts * f});
  t.channels([&](int i, int c) {
    combine(u, i, c);
    if (!u.last) t.u.s_out[i * f + c] = u.s_out[i * f + c];
  });
}

// From gs in `scalars` and gv in `vectors`.
template <typename T, int kAtoms>
__device__ void update_adjoint(const FusedCall<T>& p, const Tile<T, kAtoms>& t) {
  const int f = t.f, parts = t.u.last ? 2 : 3;
  T* hidden = t.wide + 3 * kAtoms * f;  // behind ga
  UpdateCall<T> u = t.u;
  u.gs = t.scalars;
  u.gv = t.vectors;
  u.gcat = t.pairs;
  u.ga = u.gvu = t.wide;
  t.channels([&](int i, int c) { adjoint_a(u, i, c); });
  t.product(1, u.ga, parts * f, parts * f, p.weights.out_reverse, f,
            Reverse<T>{p.slope + t.first * f, hidden, f});
  t.product(1, hidden, f, f, p.weights.in_reverse, 2 * f, Write<T>{t.pairs, 2 * f});
  t.channels([&](int i, int c) { adjoint_vu(u, i, c); });
  t.product(3, u.gvu, 2 * f, 2 * f, p.weights.mix_reverse, f,
            [&](int row, int column, const Pack<T>& sum) {
              T* to = t.vectors + row * f + column;
              store(to, t.u.last ? sum : load(to) + sum);
            });
  T* rows = p.adjoints + t.first * 4 * f;
  t.channels([&](int i, int c) { adjoints(u.gs, u.gcat, u.gv, rows, i, c, f); });
}

template <typename T, int kAtoms>
__global__ void __launch_bounds__(kTileThreads, 1) update_kernel(FusedCall<T> p) {
  MLFF_SHARED_ARRAY(T, shared);
  const Tile<T, kAtoms> t(p, shared);
  const int f = t.f;
  update(p, t);
  t.product(1, t.scalars, f, f, p.message.in, f,
            Activate<T>{p.message.in_bias, t.wide, p.message_slope + t.first * f, f});
  T* x = t.vectors;
  t.product(1, t.wide, f, f, p.message.out, 3 * f, Write<T>{x, 3 * f});
  t.channels([&](int i, int c) {
    features(x, p.message.out_bias, t.u.v, p.x2 + t.first * f, p.features + t.first * 5 * f, i, c,
             f);
  });
}

template <typename T, int kAtoms>
__global__ void __launch_bounds__(kTileThreads, 1) turn_kernel(FusedCall<T> p) {
  MLFF_SHARED_ARRAY(T, shared);
  const Tile<T, kAtoms> t(p, shared);
  const Readout<T>& r = p.readout;
  const int f = t.f, width = r.width;
  update(p, t);
  T *hidden = t.wide, *slope = t.wide + kAtoms * width;
  t.product(1, t.scalars, f, f, r.in, width, Write<T>{hidden, width});
  __syncthreads();
  for (int i = threadIdx.x / kWarp; i < t.atoms; i += kTileThreads / kWarp) {
    const int lane = threadIdx.x % kWarp, kind = r.species[t.first + i];
    const T* out = r.out + static_cast<int64_t>(kind < 0 ? 0 : kind) * width;
    const T weight = r.weights ? static_cast<T>(r.weights[t.first + i]) : T(1);
    const double sum =
        read_out(lane, width, r.bias, hidden + i * width, out, weight, slope + i * width);
    if (lane == 0) r.energies[t.first + i] = kind < 0 ? 0.0 : sum + r.offsets[kind];
  }
  __syncthreads();
  t.copy(width, hidden, width, r.hidden + t.first * width, width);
  if (!p.gradients) return;
  t.product(1, slope, width, width, r.in_reverse, f, Write<T>{t.scalars, f});
  update_adjoint(p, t);
}

template <typename T, int kAtoms>
__global__ void __launch_bounds__(kTileThreads, 1) reverse_kernel(FusedCall<T> p) {
  MLFF_SHARED_ARRAY(T, shared);
  const Tile<T, kAtoms> t(p, shared);
  const int f = t.f;
  T *gx = t.wide, *hidden = t.wide + 3 * kAtoms * f;
  t.copy(3 * f, p.gx + t.first * 3 * f, 3 * f, gx, 3 * f);
  t.copy(f, p.update.gs + t.first * f, f, t.scalars, f);
  t.copy(3 * f, p.update.gv + t.first * 3 * f, 3 * f, t.vectors, 3 * f);
  t.product(1, gx, 3 * f, 3 * f, p.message.out_reverse, f,
            Reverse<T>{p.message_slope + t.first * f, hidden, f});
  t.product(1, hidden, f, f, p.message.in_reverse, f, [&](int row, int column, const Pack<T>& sum) {
    T* to = t.scalars + row * f + column;
    store(to, load(to) + sum);
  });
  update_adjoint(p, t);
}

// Blocks have four atoms, and wait for weights rather than for multiply-adds, as long as there is
// an SM for each of them; otherwise eight.
constexpr int64_t kFewAtoms = 512;

template <typename T>
bool allow(void (*kernel)(FusedCall<T>), int64_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes)) == cudaSuccess;
}

}  // namespace

template <typename T>
bool fused_fits(int num_channels, int width) {
  const int64_t few = tile_bytes<T>(num_channels, 4), many = tile_bytes<T>(num_channels, 8);
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for shared memory");
  if (many > most || 2 * width > kWide * num_channels) return false;
  const bool allowed = allow<T>(update_kernel<T, 4>, few) && allow<T>(update_kernel<T, 8>, many) &&
                       allow<T>(turn_kernel<T, 4>, few) && allow<T>(turn_kernel<T, 8>, many) &&
                       allow<T>(reverse_kernel<T, 4>, few) && allow<T>(reverse_kernel<T, 8>, many);
  if (!allowed) static_cast<void>(cudaGetLastError());
  return allowed;
}

int64_t fused_atoms(int num_channels) {
  constexpr int64_t kWork = int64_t{2560} * 128 * 128;
  return num_channels <= 128 ? kWork / num_channels / num_channels : 0;
}

#define MLFF_LAUNCH_TILES(kernel, atoms)                                                      \
  MLFF_LAUNCH((kernel<T, atoms>), dim3(blocks_for(call.update.n, atoms)), dim3(kTileThreads), \
              static_cast<size_t>(tile_bytes<T>(call.update.num_channels, atoms)), stream, call)
#define MLFF_FUSED(function, kernel)                                    \
  template <typename T>                                                 \
  void function(const FusedCall<T>& call, cudaStream_t stream) {        \
    if (call.update.n == 0) return;                                     \
    if (call.update.n <= kFewAtoms) {                                   \
      MLFF_LAUNCH_TILES(kernel, 4);                                     \
    } else {                                                            \
      MLFF_LAUNCH_TILES(kernel, 8);                                     \
    }                                                                   \
  }                                                                     \
  template void function<float>(const FusedCall<float>&, cudaStream_t); \
  template void function<double>(const FusedCall<double>&, cudaStream_t);
MLFF_FUSED(fused_forward, update_kernel)
MLFF_FUSED(fused_turn, turn_kernel)
MLFF_FUSED(fused_backward, reverse_kernel)
#undef MLFF_FUSED
#undef MLFF_LAUNCH_TILES

template bool fused_fits<float>(int, int);
template bool fused_fits<double>(int, int);

}  // namespace gpu
}  // namespace mlff
