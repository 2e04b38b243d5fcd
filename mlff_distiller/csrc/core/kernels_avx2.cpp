// Kernels for x86-64 with AVX2 and FMA; CMakeLists.txt sets the flags for this file alone.
#define MLFF_ISA_NAMESPACE avx2
#define MLFF_VECTOR_BYTES 32
#define MLFF_KERNELS_FUNCTION avx2_kernels
#if defined(__AVX2__) && defined(__FMA__)
#define MLFF_TARGET_AVAILABLE 1
#else
#define MLFF_TARGET_AVAILABLE 0
#endif
#include "core/kernels_instance-inl.h"
