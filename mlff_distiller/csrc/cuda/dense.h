// Matrix products on the device: cuBLAS where it can be loaded, else a kernel of our own.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/device_memory.h"
#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// How factors of float32 products are rounded before they are multiplied; sums are float32. float64
// networks are not affected.
enum class Math { kFloat32, kTf32, kBfloat16 };
// "float32", "tf32", "bfloat16"; throws InputError.
Math math_from_name(const std::string& name);

// The five functions of cuBLAS that we call (NVIDIA cuBLAS library, API version 12 and 13). Loaded
// at run time, so that nothing has to be linked or shipped; tests put their own in.
struct Cublas {
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*set_stream)(void* handle, cudaStream_t stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
              const void* a, int type_a, int lda, const void* b, int type_b, int ldb,
              const void* beta, void* c, int type_c, int ldc, int compute, int algorithm) = nullptr;
};
// libcublas.so.13 or .12 from wherever the dynamic loader or this process has it; null without.
const Cublas* load_cublas();

// C [m, n] = A [m, k] B [k, n], or C += A B; row major, B with rows of n.
template <typename T>
struct GemmCall {
  int64_t m = 0;
  int n = 0, k = 0;
  const T* a = nullptr;
  int lda = 0;
  const T* b = nullptr;
  T* c = nullptr;
  int ldc = 0;
  bool accumulate = false;
};

class Dense {
 public:
  // cublas == null: our own kernel. Throws DeviceError if cuBLAS fails.
  Dense(Math math, const Cublas* cublas);
  ~Dense();
  Dense(const Dense&) = delete;
  Dense& operator=(const Dense&) = delete;

  template <typename T>
  void multiply(const GemmCall<T>& product, cudaStream_t stream);
  bool uses_cublas() const { return cublas_ != nullptr; }
  Math math() const { return math_; }
  size_t bytes() const { return workspace_.bytes(); }

 private:
  Math math_;
  const Cublas* cublas_;
  void* handle_ = nullptr;
  // cuBLAS must not allocate while a graph is captured.
  DeviceMemory<unsigned char> workspace_;
};

}  // namespace gpu
}  // namespace mlff
