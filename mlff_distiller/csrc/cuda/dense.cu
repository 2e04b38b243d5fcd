// The product kernel: 64 x 64 of C per block of 256 threads, 4 x 4 in each thread's registers, both
// factors through shared memory 16 deep. Per 16 x 4 x 4 multiply-adds a thread reads 128 numbers
// from shared memory, four at a time: bound by shared memory at about half of the FMA peak, where
// cuBLAS reaches most of it. It is here for machines without cuBLAS, for tests without a GPU, and
// for what rounding to tf32 does to results; tensor cores come from cuBLAS.
#include <cstring>

#include "core/error.h"
#include "cuda/dense.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256, kOwn = 4;

// To nearest, ties to even, of the numbers with as much fraction as tf32.
__device__ __forceinline__ float to_tf32(float x) {
  constexpr int kBits = 13;  // fewer than float32 has
  unsigned bits;
  memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // NaN, infinity
  bits += (1u << (kBits - 1)) - 1u + ((bits >> kBits) & 1u);
  bits &= ~((1u << kBits) - 1u);
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

template <int kMath>
__device__ __forceinline__ float rounded(float x) {
  return kMath == static_cast<int>(Math::kTf32) ? to_tf32(x) : x;
}
template <int kMath>
__device__ __forceinline__ double rounded(double x) {
  return x;
}

template <typename T, int kMath>
__global__ void __launch_bounds__(kThreads) product_kernel(GemmCall<T> p) {
  __shared__ T a[kDepth][kTile + kOwn], b[kDepth][kTile + kOwn];
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int column0 = blockIdx.y * kTile;
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  T sum[kOwn][kOwn] = {};
  for (int k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int r = i / kDepth, k = i % kDepth;
      a[k][r] =
          row0 + r < p.m && k0 + k < p.k ? rounded<kMath>(p.a[(row0 + r) * p.lda + k0 + k]) : T(0);
      const int depth = i / kTile, c = i % kTile;
      b[depth][c] = k0 + depth < p.k && column0 + c < p.n
                        ? rounded<kMath>(p.b[static_cast<int64_t>(k0 + depth) * p.n + column0 + c])
                        : T(0);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      T left[kOwn], right[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        left[i] = a[k][ty * kOwn + i];
        right[i] = b[k][tx * kOwn + i];
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sum[i][j] += left[i] * right[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t row = row0 + ty * kOwn + i;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int column = column0 + tx * kOwn + j;
      if (row < p.m && column < p.n) {
        T* to = p.c + row * p.ldc + column;
        *to = p.accumulate ? *to + sum[i][j] : sum[i][j];
      }
    }
  }
}

template <typename T, int kMath>
void launch_product(const GemmCall<T>& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.m, kTile), blocks_for(p.n, kTile));
  MLFF_LAUNCH((product_kernel<T, kMath>), grid, dim3(kThreads), 0, stream, p);
}

// Values of cublas_api.h and library_types.h.
constexpr int kOpNone = 0, kReal32 = 0, kReal64 = 1, kDefaultAlgorithm = -1;
constexpr int kCompute32 = 68, kCompute64 = 70, kComputeTf32 = 77;

void check_cublas(int status, const char* what) {
  if (status != 0) {
    throw DeviceError(std::string("cuBLAS failed in ") + what + " with status " +
                      std::to_string(status) + "; reinstall it, or use the CPU");
  }
}

}  // namespace

Math math_from_name(const std::string& name) {
  if (name == "float32") return Math::kFloat32;
  if (name == "half") return Math::kHalf;
  if (name == "tf32") return Math::kTf32;
  throw InputError("math must be float32, half or tf32, got " + name);
}

Dense::Dense(Math math, const Cublas* cublas) : math_(math), cublas_(cublas) {
  if (!cublas_) return;
  constexpr int64_t kWorkspace = int64_t{32} << 20;  // what NVIDIA advises for the newest cards
  workspace_.require(kWorkspace);  // first: a handle would leak if there is no room for it
  if (const int status = cublas_->create(&handle_)) {
    throw DeviceError(cublas_->name() + " cannot be used, cublasCreate failed with status " +
                      std::to_string(status) +
                      "; set MLFF_CUBLAS to another libcublas, or to off for our own products");
  }
}

Dense::~Dense() {
  if (handle_) static_cast<void>(cublas_->destroy(handle_));
}

template <typename T>
void Dense::multiply(const GemmCall<T>& p, cudaStream_t stream) {
  if (p.m == 0) return;
  constexpr bool kDouble = sizeof(T) == 8;
  if (!cublas_) {
    if (kDouble || !rounds_products(math_)) {
      launch_product<T, static_cast<int>(Math::kFloat32)>(p, stream);
    } else {
      launch_product<T, static_cast<int>(Math::kTf32)>(p, stream);
    }
    return;
  }
  const int compute = kDouble ? kCompute64 : rounds_products(math_) ? kComputeTf32 : kCompute32;
  const int type = kDouble ? kReal64 : kReal32;
  const T alpha = T(1), beta = p.accumulate ? T(1) : T(0);
  check_cublas(cublas_->set_stream(handle_, stream), "cublasSetStream");
  check_cublas(
      cublas_->set_workspace(handle_, workspace_.data(), static_cast<size_t>(workspace_.count())),
      "cublasSetWorkspace");
  // Row-major C = A B is column-major C^T = B^T A^T. cuBLAS counts in int.
  constexpr int64_t kMostRows = int64_t{1} << 30;
  for (int64_t first = 0; first < p.m; first += kMostRows) {
    const int rows = static_cast<int>(p.m - first < kMostRows ? p.m - first : kMostRows);
    check_cublas(cublas_->gemm(handle_, kOpNone, kOpNone, p.n, rows, p.k, &alpha, p.b, type, p.n,
                               p.a + first * p.lda, type, p.lda, &beta, p.c + first * p.ldc, type,
                               p.ldc, compute, kDefaultAlgorithm),
                 "cublasGemmEx");
  }
}

template void Dense::multiply<float>(const GemmCall<float>&, cudaStream_t);
template void Dense::multiply<double>(const GemmCall<double>&, cudaStream_t);

}  // namespace gpu
}  // namespace mlff
