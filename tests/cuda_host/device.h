// What device code calls: thread indices, barriers, warp collectives, atomics, intrinsics.
#pragma once

#include <math.h>
#include <stdlib.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"
#include "racecheck.h"
#include "types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_host {

template <class T>
std::uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "warp collectives exchange 32-bit and 64-bit numbers");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Every atomic is a suspension point, before it takes effect.
template <class T, class F>
T atomic(T* address, F&& update) {
  suspend();
  race_atomic(address, sizeof(T));
  const RacePause pause;
  const T old = *address;
  *address = update(old);
  return old;
}

void* dynamic_shared();
template <class T>
T* dynamic_shared_as() {
  return static_cast<T*>(dynamic_shared());
}

}  // namespace cuda_host

// The caller's file and line, which identify the collective that a thread waits at.
#define CUDA_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_HOST_HERE \
  ::cuda_host::Site { file, line }

inline void __syncthreads(CUDA_HOST_SITE) {
  ::cuda_host::wait_barrier(::cuda_host::Op::syncthreads, 0, CUDA_HOST_HERE);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_SITE) {
  return static_cast<int>(
      ::cuda_host::wait_barrier(::cuda_host::Op::syncthreads_or, predicate != 0, CUDA_HOST_HERE));
}
inline int __syncthreads_and(int predicate, CUDA_HOST_SITE) {
  return static_cast<int>(
      ::cuda_host::wait_barrier(::cuda_host::Op::syncthreads_and, predicate != 0, CUDA_HOST_HERE));
}
inline int __syncthreads_count(int predicate, CUDA_HOST_SITE) {
  return static_cast<int>(::cuda_host::wait_barrier(::cuda_host::Op::syncthreads_count,
                                                    predicate != 0, CUDA_HOST_HERE));
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_SITE) {
  ::cuda_host::wait_warp(::cuda_host::Op::syncwarp, mask, 0, 0, 32, CUDA_HOST_HERE);
}

#define CUDA_HOST_SHUFFLE(name, op, parameter)                                              \
  template <class T>                                                                        \
  T name(unsigned mask, T value, parameter lane_argument, int width = 32, CUDA_HOST_SITE) { \
    return ::cuda_host::from_bits<T>(                                                       \
        ::cuda_host::wait_warp(::cuda_host::Op::op, mask, ::cuda_host::to_bits(value),      \
                               static_cast<int>(lane_argument), width, CUDA_HOST_HERE));    \
  }
CUDA_HOST_SHUFFLE(__shfl_sync, shfl, int)
CUDA_HOST_SHUFFLE(__shfl_xor_sync, shfl_xor, int)
CUDA_HOST_SHUFFLE(__shfl_up_sync, shfl_up, unsigned)
CUDA_HOST_SHUFFLE(__shfl_down_sync, shfl_down, unsigned)
#undef CUDA_HOST_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return static_cast<unsigned>(
      ::cuda_host::wait_warp(::cuda_host::Op::ballot, mask, predicate != 0, 0, 32, CUDA_HOST_HERE));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return static_cast<int>(
      ::cuda_host::wait_warp(::cuda_host::Op::any, mask, predicate != 0, 0, 32, CUDA_HOST_HERE));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return static_cast<int>(
      ::cuda_host::wait_warp(::cuda_host::Op::all, mask, predicate != 0, 0, 32, CUDA_HOST_HERE));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_HOST_SITE) {
  return static_cast<unsigned>(::cuda_host::wait_warp(
      ::cuda_host::Op::match_any, mask, ::cuda_host::to_bits(value), 0, 32, CUDA_HOST_HERE));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, CUDA_HOST_SITE) {
  const auto matched = static_cast<unsigned>(::cuda_host::wait_warp(
      ::cuda_host::Op::match_all, mask, ::cuda_host::to_bits(value), 0, 32, CUDA_HOST_HERE));
  *all = matched != 0;
  return matched;
}

#define CUDA_HOST_REDUCE(name, op)                                                               \
  template <class T>                                                                             \
  T name(unsigned mask, T value, CUDA_HOST_SITE) {                                               \
    static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value,               \
                  "reductions take int and unsigned");                                           \
    return static_cast<T>(::cuda_host::wait_warp(::cuda_host::Op::op, mask,                      \
                                                 static_cast<unsigned>(value),                   \
                                                 std::is_signed<T>::value, 32, CUDA_HOST_HERE)); \
  }
CUDA_HOST_REDUCE(__reduce_add_sync, reduce_add)
CUDA_HOST_REDUCE(__reduce_min_sync, reduce_min)
CUDA_HOST_REDUCE(__reduce_max_sync, reduce_max)
CUDA_HOST_REDUCE(__reduce_and_sync, reduce_and)
CUDA_HOST_REDUCE(__reduce_or_sync, reduce_or)
CUDA_HOST_REDUCE(__reduce_xor_sync, reduce_xor)
#undef CUDA_HOST_REDUCE
#undef CUDA_HOST_SITE
#undef CUDA_HOST_HERE

// Threads that happen to run together: a set that the language leaves open. The smallest is legal.
inline unsigned __activemask() { return 1u << ::cuda_host::lane(); }

inline void __threadfence() { ::cuda_host::suspend(); }
inline void __threadfence_block() { ::cuda_host::suspend(); }
inline void __threadfence_system() { ::cuda_host::suspend(); }
inline void __nanosleep(unsigned) { ::cuda_host::suspend(); }
[[noreturn]] inline void __trap() { ::cuda_host::fail("__trap"); }

namespace cuda_host {
void set_condition(unsigned long long handle, unsigned value);
}
inline void cudaGraphSetConditional(unsigned long long handle, unsigned value) {
  ::cuda_host::suspend();
  ::cuda_host::set_condition(handle, value);
}

// --- atomics -------------------------------------------------------------------------------------
#define CUDA_HOST_ATOMIC(name, type, expression)                               \
  inline type name(type* address, type value) {                                \
    return ::cuda_host::atomic(address, [=](type old) { return expression; }); \
  }
#define CUDA_HOST_ATOMIC_INTEGERS(name, expression) \
  CUDA_HOST_ATOMIC(name, int, expression)           \
  CUDA_HOST_ATOMIC(name, unsigned, expression)      \
  CUDA_HOST_ATOMIC(name, unsigned long long, expression)
// Signed sums wrap, as in hardware.
inline int atomicAdd(int* address, int value) {
  return ::cuda_host::atomic(address, [=](int old) {
    return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  });
}
inline int atomicSub(int* address, int value) {
  return ::cuda_host::atomic(address, [=](int old) {
    return static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value));
  });
}
CUDA_HOST_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_HOST_ATOMIC(atomicAdd, float, old + value)
CUDA_HOST_ATOMIC(atomicAdd, double, old + value)
CUDA_HOST_ATOMIC(atomicSub, unsigned, old - value)
CUDA_HOST_ATOMIC_INTEGERS(atomicMin, value < old ? value : old)
CUDA_HOST_ATOMIC_INTEGERS(atomicMax, value > old ? value : old)
CUDA_HOST_ATOMIC(atomicMin, long long, value < old ? value : old)
CUDA_HOST_ATOMIC(atomicMax, long long, value > old ? value : old)
CUDA_HOST_ATOMIC_INTEGERS(atomicAnd, old& value)
CUDA_HOST_ATOMIC_INTEGERS(atomicOr, old | value)
CUDA_HOST_ATOMIC_INTEGERS(atomicXor, old ^ value)
CUDA_HOST_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
CUDA_HOST_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
#undef CUDA_HOST_ATOMIC_INTEGERS
#undef CUDA_HOST_ATOMIC

#define CUDA_HOST_EXCHANGE(type)                                      \
  inline type atomicExch(type* address, type value) {                 \
    return ::cuda_host::atomic(address, [=](type) { return value; }); \
  }
CUDA_HOST_EXCHANGE(int)
CUDA_HOST_EXCHANGE(unsigned)
CUDA_HOST_EXCHANGE(unsigned long long)
CUDA_HOST_EXCHANGE(float)
#undef CUDA_HOST_EXCHANGE

#define CUDA_HOST_CAS(type)                                                                      \
  inline type atomicCAS(type* address, type compare, type value) {                               \
    return ::cuda_host::atomic(address, [=](type old) { return old == compare ? value : old; }); \
  }
CUDA_HOST_CAS(int)
CUDA_HOST_CAS(unsigned)
CUDA_HOST_CAS(unsigned long long)
#undef CUDA_HOST_CAS

// --- integer and bit intrinsics ------------------------------------------------------------------
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline int __float_as_int(float x) { return ::cuda_host::from_bits<int>(::cuda_host::to_bits(x)); }
inline unsigned __float_as_uint(float x) {
  return ::cuda_host::from_bits<unsigned>(::cuda_host::to_bits(x));
}
inline float __int_as_float(int x) {
  return ::cuda_host::from_bits<float>(static_cast<std::uint32_t>(x));
}
inline float __uint_as_float(unsigned x) { return ::cuda_host::from_bits<float>(x); }
inline long long __double_as_longlong(double x) {
  return ::cuda_host::from_bits<long long>(::cuda_host::to_bits(x));
}
inline double __longlong_as_double(long long x) {
  return ::cuda_host::from_bits<double>(static_cast<std::uint64_t>(x));
}

// --- loads through other caches ------------------------------------------------------------------
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

// --- arithmetic ----------------------------------------------------------------------------------
using std::fma;
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline int __double2int_rd(double x) { return static_cast<int>(std::floor(x)); }

#define CUDA_HOST_MIN_MAX(type)                             \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
CUDA_HOST_MIN_MAX(int)
CUDA_HOST_MIN_MAX(unsigned)
CUDA_HOST_MIN_MAX(long)
CUDA_HOST_MIN_MAX(unsigned long)
CUDA_HOST_MIN_MAX(long long)
CUDA_HOST_MIN_MAX(unsigned long long)
#undef CUDA_HOST_MIN_MAX
// A NaN loses, as on the device.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
