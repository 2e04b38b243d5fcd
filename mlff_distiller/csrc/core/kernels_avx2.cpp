// Kernels for x86-64 with AVX2 and FMA; CMakeLists.txt sets the flags for this file alone.
#if defined(__AVX2__) && defined(__FMA__)
#define MLFF_ISA_NAMESPACE avx2
#define MLFF_VECTOR_BYTES 32
#define MLFF_KERNELS_FUNCTION avx2_kernels
#include "core/kernels_instance-inl.h"
#else
#include "core/kernels.h"

namespace mlff {
template <>
const Kernels<float>* avx2_kernels<float>() {
  return nullptr;
}
template <>
const Kernels<double>* avx2_kernels<double>() {
  return nullptr;
}
}  // namespace mlff
#endif
