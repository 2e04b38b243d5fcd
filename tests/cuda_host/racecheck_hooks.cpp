// What code compiled with -fsanitize=thread calls, in place of ThreadSanitizer's library.
//
// Assembler names, because the compiler has opinions about functions called __tsan_*.
#include <cstddef>
#include <cstdint>

#include "racecheck.h"

#define CUDA_HOST_HOOK(result, name, ...)                   \
  result hook_##name(__VA_ARGS__) __asm__("__tsan_" #name); \
  result hook_##name(__VA_ARGS__)
#define CUDA_HOST_PC __builtin_return_address(0)

namespace cuda_host {

CUDA_HOST_HOOK(void, init) { race_enable(); }
CUDA_HOST_HOOK(void, func_entry, void*) {}
CUDA_HOST_HOOK(void, func_exit) {}
CUDA_HOST_HOOK(void, vptr_read, void**) {}
CUDA_HOST_HOOK(void, vptr_update, void**, void*) {}

CUDA_HOST_HOOK(void, read_range, void* a, std::size_t n) { race_access(a, n, false, CUDA_HOST_PC); }
CUDA_HOST_HOOK(void, write_range, void* a, std::size_t n) { race_access(a, n, true, CUDA_HOST_PC); }

#define CUDA_HOST_ACCESSES(n)                                                                  \
  CUDA_HOST_HOOK(void, read##n, void* a) { race_access(a, n, false, CUDA_HOST_PC); }           \
  CUDA_HOST_HOOK(void, write##n, void* a) { race_access(a, n, true, CUDA_HOST_PC); }           \
  CUDA_HOST_HOOK(void, unaligned_read##n, void* a) { race_access(a, n, false, CUDA_HOST_PC); } \
  CUDA_HOST_HOOK(void, unaligned_write##n, void* a) { race_access(a, n, true, CUDA_HOST_PC); }
CUDA_HOST_ACCESSES(1)
CUDA_HOST_ACCESSES(2)
CUDA_HOST_ACCESSES(4)
CUDA_HOST_ACCESSES(8)
CUDA_HOST_ACCESSES(16)

// std::atomic and std::shared_ptr in host code of the same files.
CUDA_HOST_HOOK(void, atomic_thread_fence, int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
CUDA_HOST_HOOK(void, atomic_signal_fence, int) {}

#define CUDA_HOST_ATOMIC_UPDATE(bits, type, operation)                         \
  CUDA_HOST_HOOK(type, atomic##bits##_##operation, type* a, type value, int) { \
    return __atomic_##operation(a, value, __ATOMIC_SEQ_CST);                   \
  }
#define CUDA_HOST_ATOMIC_EXCHANGE(bits, type, kind)                                                \
  CUDA_HOST_HOOK(int, atomic##bits##_compare_exchange_##kind, type* a, type* expected, type value, \
                 int, int) {                                                                       \
    return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST,                \
                                       __ATOMIC_SEQ_CST);                                          \
  }
#define CUDA_HOST_ATOMICS(bits)                                                                    \
  CUDA_HOST_HOOK(std::uint##bits##_t, atomic##bits##_load, const std::uint##bits##_t* a, int) {    \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  CUDA_HOST_HOOK(void, atomic##bits##_store, std::uint##bits##_t* a, std::uint##bits##_t v, int) { \
    __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  CUDA_HOST_HOOK(std::uint##bits##_t, atomic##bits##_exchange, std::uint##bits##_t* a,             \
                 std::uint##bits##_t v, int) {                                                     \
    return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  CUDA_HOST_ATOMIC_UPDATE(bits, std::uint##bits##_t, fetch_add)                                    \
  CUDA_HOST_ATOMIC_UPDATE(bits, std::uint##bits##_t, fetch_sub)                                    \
  CUDA_HOST_ATOMIC_UPDATE(bits, std::uint##bits##_t, fetch_and)                                    \
  CUDA_HOST_ATOMIC_UPDATE(bits, std::uint##bits##_t, fetch_or)                                     \
  CUDA_HOST_ATOMIC_EXCHANGE(bits, std::uint##bits##_t, strong)                                     \
  CUDA_HOST_ATOMIC_EXCHANGE(bits, std::uint##bits##_t, weak)
CUDA_HOST_ATOMICS(8)
CUDA_HOST_ATOMICS(16)
CUDA_HOST_ATOMICS(32)
CUDA_HOST_ATOMICS(64)

}  // namespace cuda_host
