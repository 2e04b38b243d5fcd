// Shared memory: the dynamic array of a block, and static `__shared__` variables.
//
// Blocks run one at a time, so `static` storage serves. Each __shared__ declaration goes into a
// linker section of its own together with a guard; between blocks the sections are filled with NaN
// and the guards are checked.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_host {

constexpr std::size_t kMaxSharedBytes = 48 * 1024;         // of a block
constexpr std::size_t kMaxSharedBytesOptIn = 227 * 1024;  // with cudaFuncSetAttribute (sm_90)

constexpr std::size_t kSharedGuardBytes = 128;

struct SharedGuard {
  explicit SharedGuard(unsigned char* guard) noexcept;
};

// Fills all of shared memory with NaN.
void scribble_shared(std::size_t dynamic_bytes);
// Throws Error if a guard or a red zone was overwritten.
void check_shared(const std::string& where);

}  // namespace cuda_host

// The names of the section's ends, which the linker makes, go into a table through the assembler:
// GCC loses the assembler name of an extern variable in an instantiated template.
#define CUDA_HOST_JOIN2(a, b) a##b
#define CUDA_HOST_JOIN(a, b) CUDA_HOST_JOIN2(a, b)
#define CUDA_HOST_SHARED_SECTION(n) __attribute__((section("mlff_shared_" #n), aligned(16)))
#define CUDA_HOST_SHARED(n)                                                                 \
  asm volatile(                                                                             \
      ".weak __start_mlff_shared_" #n "\n.hidden __start_mlff_shared_" #n                   \
      "\n.weak __stop_mlff_shared_" #n "\n.hidden __stop_mlff_shared_" #n                   \
      "\n.pushsection mlff_table,\"aw\"\n.balign 8\n.quad __start_mlff_shared_" #n          \
      "\n.quad __stop_mlff_shared_" #n "\n.popsection");                                    \
  CUDA_HOST_SHARED_SECTION(n)                                                               \
  static unsigned char CUDA_HOST_JOIN(cuda_host_guard_, n)[::cuda_host::kSharedGuardBytes]; \
  static const ::cuda_host::SharedGuard CUDA_HOST_JOIN(cuda_host_registered_, n)(           \
      CUDA_HOST_JOIN(cuda_host_guard_, n));                                                 \
  (void)CUDA_HOST_JOIN(cuda_host_registered_, n);                                           \
  CUDA_HOST_SHARED_SECTION(n) static
#define CUDA_HOST_SHARED_EXPAND(n) CUDA_HOST_SHARED(n)
#define __shared__ CUDA_HOST_SHARED_EXPAND(__COUNTER__)
