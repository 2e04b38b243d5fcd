// Kernels for x86-64 with AVX-512; CMakeLists.txt sets the flags for this file alone.
#if defined(__AVX512F__)
#define MLFF_ISA_NAMESPACE avx512
#define MLFF_VECTOR_BYTES 64
#define MLFF_KERNELS_FUNCTION avx512_kernels
#include "core/kernels_instance-inl.h"
#else
#include "core/kernels.h"

namespace mlff {
template <>
const Kernels<float>* avx512_kernels<float>() {
  return nullptr;
}
template <>
const Kernels<double>* avx512_kernels<double>() {
  return nullptr;
}
}  // namespace mlff
#endif
