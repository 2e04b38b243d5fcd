// Weights of a training step: packed for the matrix kernels each step, and their gradients.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/kernels.h"

namespace mlff {

// A dense layer [out][in] of torch whose rows and columns are blocks of channels; inside, each
// block is padded and blocks of rows may be in another order.
struct DenseShape {
  int64_t out_blocks = 1, out = 0, out_padded = 0;
  int64_t in_blocks = 1, in = 0, in_padded = 0;
  int64_t order[3] = {0, 1, 2};  // block of rows in torch

  int64_t rows() const { return out_blocks * out_padded; }
  int64_t columns() const { return in_blocks * in_padded; }
  int64_t stride() const { return in_blocks * in; }  // of torch's rows
};

// Where number (i, j) of a matrix [k, n] is in its panels, see gemm.h.
template <typename T>
int64_t packed_at(const Kernels<T>& kernels, int64_t k, int64_t n, int64_t i, int64_t j) {
  const int64_t lanes = kernels.lanes, width = lanes * kernels.gemm_vectors;
  const int64_t panel = j / width * width;
  if (n - panel >= width) return panel * k + i * width + j - panel;
  const int64_t single = j / lanes * lanes;
  return single * k + i * lanes + j - single;
}

// For products with the transpose (x W^T, forward) or with W itself (backward).
template <typename T>
void pack_dense(const Kernels<T>& kernels, const DenseShape& s, const T* w, bool transpose,
                T* packed) {
  const int64_t k = transpose ? s.columns() : s.rows(), n = transpose ? s.rows() : s.columns();
  const int64_t lanes = kernels.lanes, width = lanes * kernels.gemm_vectors;
  if (s.out != s.out_padded || s.in != s.in_padded) {
    std::memset(packed, 0, sizeof(T) * static_cast<size_t>(k * n));
  }
  const int64_t n_padded = transpose ? s.out_padded : s.in_padded,
                n_real = transpose ? s.out : s.in;
  const int64_t k_padded = transpose ? s.in_padded : s.out_padded,
                k_real = transpose ? s.in : s.out;
  const int64_t k_blocks = transpose ? s.in_blocks : s.out_blocks, stride = s.stride();
  for (int64_t j = 0; j < n; j += lanes) {
    const int64_t block = j / n_padded, first = j % n_padded;
    const int64_t count = first + lanes <= n_real ? lanes : n_real - first;
    const int64_t step = n - j / width * width >= width ? width : lanes;
    for (int64_t b = 0; b < k_blocks && count > 0; ++b) {
      T* to = packed + packed_at(kernels, k, n, b * k_padded, j);
      if (transpose) {
        const T* from = w + (s.order[block] * s.out + first) * stride + b * s.in;
        for (int64_t i = 0; i < k_real; ++i, to += step) {
          for (int64_t c = 0; c < count; ++c) to[c] = from[c * stride + i];
        }
      } else {
        const T* from = w + s.order[b] * s.out * stride + block * s.in + first;
        for (int64_t i = 0; i < k_real; ++i, to += step, from += stride) {
          std::memcpy(to, from, sizeof(T) * static_cast<size_t>(count));
        }
      }
    }
  }
}

template <typename T>
void pack_bias(const DenseShape& s, const T* bias, T* padded) {
  std::memset(padded, 0, sizeof(T) * static_cast<size_t>(s.rows()));
  for (int64_t b = 0; b < s.out_blocks; ++b) {
    std::memcpy(padded + b * s.out_padded, bias + s.order[b] * s.out,
                sizeof(T) * static_cast<size_t>(s.out));
  }
}

// The tangent of X^T G for some rows of one block: the gradient of these weights and biases.
template <typename T>
struct GradientTask {
  const DenseShape* shape = nullptr;
  DualArray<T> x, g;        // [m][columns], [m][rows]
  int64_t m = 0;            //
  bool constant_x = false;  // x has no tangent
  int64_t block = 0, row = 0, count = 0;
  T *weight = nullptr, *bias = nullptr;  // of torch; bias may be null
};

constexpr int64_t kGradientRows = 24;

// scratch [kGradientRows][columns]
template <typename T>
void run_gradient(const Kernels<T>& kernels, const GradientTask<T>& t, T* scratch) {
  const DenseShape& s = *t.shape;
  const int64_t at = t.block * s.out_padded + t.row;
  OuterCall<T> call;
  call.m = t.count, call.n = s.columns(), call.k = t.m;
  call.lda = s.rows(), call.ldb = call.ldc = s.columns();
  call.a = t.g.d + at, call.b = t.x.v, call.c = scratch;
  kernels.outer(call);
  if (!t.constant_x) {
    call.a = t.g.v + at, call.b = t.x.d, call.accumulate = true;
    kernels.outer(call);
  }
  const int64_t row = s.order[t.block] * s.out + t.row;
  for (int64_t i = 0; i < t.count; ++i) {
    for (int64_t b = 0; b < s.in_blocks; ++b) {
      std::memcpy(t.weight + (row + i) * s.stride() + b * s.in,
                  scratch + i * s.columns() + b * s.in_padded,
                  sizeof(T) * static_cast<size_t>(s.in));
    }
  }
  if (!t.bias) return;
  T sums[kGradientRows] = {};
  for (int64_t k = 0; k < t.m; ++k) {
    const T* g = t.g.d + k * s.rows() + at;
    for (int64_t i = 0; i < t.count; ++i) sums[i] += g[i];
  }
  std::memcpy(t.bias + row, sums, sizeof(T) * static_cast<size_t>(t.count));
}

}  // namespace mlff
