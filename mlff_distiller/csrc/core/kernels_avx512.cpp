// Kernels for x86-64 with AVX-512; CMakeLists.txt sets the flags for this file alone.
#define MLFF_ISA_NAMESPACE avx512
#define MLFF_VECTOR_BYTES 64
#define MLFF_KERNELS_FUNCTION avx512_kernels
#if defined(__AVX512F__)
#define MLFF_TARGET_AVAILABLE 1
#else
#define MLFF_TARGET_AVAILABLE 0
#endif
#include "core/kernels_instance-inl.h"
