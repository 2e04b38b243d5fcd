// Weights packed once for the matrix kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/memory.h"

namespace mlff {

// A dense matrix [k, n] in panels of `gemm_vectors` vectors of columns, each panel k rows one after
// the other (the last panel may be a single vector wide). Both dimensions are padded by zeros.
// gemm_vectors 0 makes one panel of all columns: plain row-major, which is what GPUs are given.
template <typename T>
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // From row-major double values [k, n]; n a multiple of the kernels' vector length.
  void pack(const Kernels<T>& kernels, int64_t k, int64_t n, const std::vector<double>& values) {
    k_ = k;
    n_ = n;
    T* out = data_.require(k * n);
    const int64_t lanes = kernels.lanes,
                  width = kernels.gemm_vectors ? lanes * kernels.gemm_vectors : n;
    for (int64_t j = 0; j < n;) {
      const int64_t step = n - j >= width ? width : lanes;
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t c = 0; c < step; ++c) {
          *out++ = static_cast<T>(values[static_cast<size_t>(i * n + j + c)]);
        }
      }
      j += step;
    }
  }

  // call.a, lda, m, c, ldc, (d, ldd), bias and epilogue are the caller's.
  void fill(GemmCall<T>& call) const {
    call.b = data_.data();
    call.k = k_;
    call.n = n_;
  }
  int64_t k() const { return k_; }
  int64_t n() const { return n_; }
  size_t bytes() const { return data_.bytes(); }

 private:
  int64_t k_ = 0, n_ = 0;
  Buffer<T> data_;
};

}  // namespace mlff
