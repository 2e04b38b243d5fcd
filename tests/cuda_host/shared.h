// Shared memory: the dynamic array of a block, and static `__shared__` variables.
//
// Blocks run one at a time, so `static` storage serves. Each __shared__ declaration is preceded by
// a guard. Which static variables are shared, and where they are, is read from the symbol table of
// the running program: they are the local statics of functions that have guards. (A linker section
// would be simpler, but GCC drops the section attribute in templates.) The padding around
// arrays serves as guard, too. Arrays of one declaration have no guard between them: UBSan and
// AddressSanitizer see more.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_host {

constexpr std::size_t kMaxSharedBytes = 48 * 1024;        // of a block
constexpr std::size_t kMaxSharedBytesOptIn = 227 * 1024;  // with cudaFuncSetAttribute (sm_90)
constexpr std::size_t kSharedGuardBytes = 128;

// Fills all of shared memory with NaN.
void scribble_shared(std::size_t dynamic_bytes);
// Throws Error if a guard or a red zone was overwritten.
void check_shared(const std::string& where);

}  // namespace cuda_host

#define CUDA_HOST_JOIN2(a, b) a##b
#define CUDA_HOST_JOIN(a, b) CUDA_HOST_JOIN2(a, b)
#define CUDA_HOST_SHARED(n)                                                            \
  alignas(128) static unsigned char CUDA_HOST_JOIN(cuda_host_guard_,                   \
                                                   n)[::cuda_host::kSharedGuardBytes]; \
  asm volatile("" ::"r"(CUDA_HOST_JOIN(cuda_host_guard_, n)) : "memory");              \
  alignas(128) static
#define CUDA_HOST_SHARED_EXPAND(n) CUDA_HOST_SHARED(n)
#define __shared__ CUDA_HOST_SHARED_EXPAND(__COUNTER__)
