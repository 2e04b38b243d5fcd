// Matrix products on the device: cuBLAS where it can be loaded, else a kernel of our own.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/cublas.h"
#include "cuda/device_memory.h"
#include "cuda/gpu.h"

namespace mlff {
namespace gpu {

// What a float32 network rounds further; sums are float32. All but the first: slopes of the filter
// tables to float16 (filter_table.h); the last: factors of products before they are multiplied.
enum class Math { kFloat32, kHalf, kTf32 };
// "float32", "half", "tf32"; throws InputError.
Math math_from_name(const std::string& name);
constexpr bool rounds_products(Math math) { return math == Math::kTf32; }

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
  // cublas == null: our own kernel. Throws DeviceError if cuBLAS fails. The device must be current
  // here, and in the destructor.
  Dense(Math math, const Cublas* cublas);
  ~Dense();
  Dense(const Dense&) = delete;
  Dense& operator=(const Dense&) = delete;

  template <typename T>
  void multiply(const GemmCall<T>& product, cudaStream_t stream);
  bool uses_cublas() const { return cublas_ != nullptr; }
  std::string products() const { return cublas_ ? cublas_->name() : kOwnProducts; }
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
