// The atoms of a block, their arrays in shared memory, and products of those with weights.
//
// A product is C [rows][columns] = A B with A in shared memory and B, weights, from L2. A thread
// has 16 bytes of columns of as many rows as the block has atoms, four or eight, in registers. For
// each four rows of B (in float64 two) it reads 16 bytes of each of them, and of each row of A, the
// same for all lanes. With eight rows and float32 these are 128 multiply-adds for 24 trips of 128
// bytes, and an SM does four of the former in a cycle and one of the latter: bound by FP32. Threads
// that are left over share the depth of the product; their sums are added through shared memory, in
// order, so that results are the same bits in every run.
#pragma once

#include "cuda/channels.h"
#include "cuda/fused.h"
#include "cuda/pack.h"

namespace mlff {
namespace gpu {

// Three warps for each scheduler: while one waits for weights two multiply. And with F = 128 all of
// them work in all products, whose rows and columns are 192, 96, 64 or 32 threads' work.
constexpr int kTileThreads = 384;
// Blocks of [kAtoms][F] in shared memory: gs or s, v or gv, cat or gcat, and what is in between.
constexpr int kScalars = 1, kVectors = 3, kPairs = 2, kWide = 6;

template <typename T>
int64_t tile_bytes(int num_channels, int atoms) {
  const int64_t arrays = (kScalars + kVectors + kPairs + kWide) * num_channels;
  const int64_t scratch = kTileThreads * kPack<T>;  // sums of threads that share the depth
  return atoms * (arrays + scratch) * static_cast<int64_t>(sizeof(T));
}

// A block's atoms, their arrays in shared memory, and those on the device from its first atom on.
// channels() and product() begin with a barrier: what was written before may be read.
template <typename T, int kAtoms>
struct Tile {
  int64_t first;
  int atoms, f;  // the last block may have fewer than kAtoms
  T *scalars, *vectors, *pairs, *wide, *scratch;
  UpdateCall<T> u;

  __device__ __forceinline__ Tile(const FusedCall<T>& p, T* shared)
      : first(static_cast<int64_t>(blockIdx.x) * kAtoms),
        atoms(static_cast<int>(min(p.update.n - first, static_cast<int64_t>(kAtoms)))),
        f(p.update.num_channels),
        scalars(shared),
        vectors(scalars + kScalars * kAtoms * f),
        pairs(vectors + kVectors * kAtoms * f),
        wide(pairs + kPairs * kAtoms * f),
        scratch(wide + kWide * kAtoms * f),
        u(p.update) {
    u.vu += first * 6 * f;
    u.a += first * (u.last ? 2 : 3) * f;
    u.v += first * 3 * f;
    u.s_out += first * f;
  }

  // g(atom, channel) for all of them.
  template <typename G>
  __device__ __forceinline__ void channels(G&& g) const {
    __syncthreads();
    for (int at = threadIdx.x; at < atoms * f; at += kTileThreads) g(at / f, at % f);
  }

  // to [atoms][width] from rows of `stride`.
  __device__ __forceinline__ void copy(int width, const T* from, int stride, T* to,
                                       int to_stride) const {
    for (int at = threadIdx.x; at < atoms * width; at += kTileThreads) {
      to[at / width * to_stride + at % width] =
          from[at / width * static_cast<int64_t>(stride) + at % width];
    }
  }

  // g(row, column, sums) of each 16 bytes of columns of A [per_atom atoms][lda] B [depth][columns].
  // g must not write to A.
  template <typename G>
  __device__ __forceinline__ void product(int per_atom, const T* a, int lda, int depth, const T* b,
                                          int columns, G&& g) const {
    constexpr int kP = kPack<T>, kStep = 2 * kP, kLeast = 8;
    const int packs = columns / kP, items = per_atom * packs;  // an item: kAtoms rows of a pack
    for (int base = 0; base < items; base += kTileThreads) {   // once, but for large F
      const int here = min(items - base, kTileThreads);
      const int slices = max(1, min(kTileThreads / here, depth / kLeast));
      const int share = (depth / kStep + slices - 1) / slices * kStep;
      const int own = threadIdx.x % here, slice = threadIdx.x / here;
      const T* from = b + (base + own) % packs * kP;
      const int start = slice * share, end = slice < slices ? min(depth, start + share) : 0;
      Pack<T> right[kStep];  // read before the barrier, and then a step ahead
      if (start < end) {
#pragma unroll
        for (int i = 0; i < kStep; ++i) right[i] = load(from + (start + i) * columns);
      }
      __syncthreads();
      if (slice < slices) {
        const T* left = a + (base + own) / packs * kAtoms * lda;
        Pack<T> sums[kAtoms] = {};
#pragma unroll 1
        for (int k = start; k < end; k += kStep) {
          Pack<T> ahead[kStep];
          const T* next = from + (k + kStep < end ? k + kStep : k) * columns;
#pragma unroll
          for (int i = 0; i < kStep; ++i) ahead[i] = load(next + i * columns);
#pragma unroll
          for (int r = 0; r < kAtoms; ++r) {
#pragma unroll
            for (int half = 0; half < kStep; half += kP) {
              const Pack<T> x = load(left + r * lda + k + half);
#pragma unroll
              for (int i = 0; i < kP; ++i) sums[r] = sums[r] + x.c[i] * right[half + i];
            }
          }
#pragma unroll
          for (int i = 0; i < kStep; ++i) right[i] = ahead[i];
        }
#pragma unroll
        for (int r = 0; r < kAtoms; ++r) {
          store(scratch + ((slice * kAtoms + r) * here + own) * kP, sums[r]);
        }
      }
      __syncthreads();
      for (int at = threadIdx.x; at < kAtoms * here; at += kTileThreads) {
        const int item = base + at % here, row = item / packs * kAtoms + at / here;
        if (row >= per_atom * atoms) continue;
        Pack<T> sum = load(scratch + at * kP);
        for (int i = 1; i < slices; ++i) sum = sum + load(scratch + (i * kAtoms * here + at) * kP);
        g(row, item % packs * kP, sum);
      }
    }
  }
};

// hidden = silu(sums + bias) to `to` [atoms][F], its slope to the device.
template <typename T>
struct Activate {
  const T* bias;
  T *to, *slope;
  int f;
  __device__ __forceinline__ void operator()(int row, int column, const Pack<T>& sum) const {
    Pack<T> value, derivative;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const Silu<T> silu(sum.c[i] + bias[column + i]);
      value.c[i] = silu.value;
      derivative.c[i] = silu.slope;
    }
    store(to + row * f + column, value);
    store(slope + row * f + column, derivative);
  }
};

// sums * slope: the adjoint of that.
template <typename T>
struct Reverse {
  const T* slope;
  T* to;
  int f;
  __device__ __forceinline__ void operator()(int row, int column, const Pack<T>& sum) const {
    store(to + row * f + column, sum * load(slope + row * f + column));
  }
};

template <typename T>
struct Write {
  T* to;
  int stride;
  __device__ __forceinline__ void operator()(int row, int column, const Pack<T>& sum) const {
    store(to + row * stride + column, sum);
  }
};

}  // namespace gpu
}  // namespace mlff
