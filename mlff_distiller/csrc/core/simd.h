// Fixed-width vectors over GCC/Clang vector extensions. Included only by the sources that are
// compiled once per instruction set, each of which sets MLFF_VECTOR_BYTES and MLFF_ISA_NAMESPACE.
//
// These sources call nothing that is an inline function or template elsewhere (no <vector>, no
// std::sqrt): the linker keeps one copy of such a function, and if that copy were the AVX-512 one
// the program would die on an older processor.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#define MLFF_INLINE static inline __attribute__((always_inline))

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

template <typename T>
struct Simd {
  typedef T V __attribute__((vector_size(MLFF_VECTOR_BYTES), may_alias));
  static constexpr int kLanes = MLFF_VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vec = typename Simd<T>::V;

template <typename T>
MLFF_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <typename T>
MLFF_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

template <typename T>
MLFF_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 keeps the sign of zero and compiles to one broadcast
}

MLFF_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
MLFF_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <typename T>
MLFF_INLINE T sum_lanes(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < Simd<T>::kLanes; ++i) total += v[i];
  return total;
}

// Adds the lane sums of four vectors to out [4].
template <typename T>
MLFF_INLINE void add_lanes4(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T* out) {
  out[0] += sum_lanes<T>(a);
  out[1] += sum_lanes<T>(b);
  out[2] += sum_lanes<T>(c);
  out[3] += sum_lanes<T>(d);
}

// Shuffles work within 128-bit parts: after two rounds every part holds (a, b, c, d) sums.
#if MLFF_VECTOR_BYTES == 64
template <>
inline
    __attribute__((always_inline)) void add_lanes4<float>(Vec<float> a, Vec<float> b, Vec<float> c,
                                                          Vec<float> d, float* out) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  __m512 s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s),
                           _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(s), 1)));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), q));
}
#elif MLFF_VECTOR_BYTES == 32
template <>
inline
    __attribute__((always_inline)) void add_lanes4<float>(Vec<float> a, Vec<float> b, Vec<float> c,
                                                          Vec<float> d, float* out) {
  __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
  __m256 s = _mm256_hadd_ps(ab, cd);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), q));
}
#endif

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
