// Kernels for the compiler's default target: SSE2 on x86-64, NEON on Arm.
#define MLFF_ISA_NAMESPACE portable
#define MLFF_VECTOR_BYTES 16
#define MLFF_KERNELS_FUNCTION portable_kernels
#define MLFF_TARGET_AVAILABLE 1
#include "core/kernels_instance-inl.h"
