// Dense layers. Bound by the FMA units: per k, a 12 x 2-vector tile (AVX-512) takes 24 FMAs for 14
// loads, and the packed panel of B (16 kB at k = 128) stays in L1 while the rows of A pass by.
#include "core/kernels.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

#if MLFF_VECTOR_BYTES == 64
constexpr int kGemmRows = 12;  // 24 accumulators of 32 registers
#elif MLFF_VECTOR_BYTES == 32
constexpr int kGemmRows = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kGemmRows = 8;  // 16 of 32
#else
constexpr int kGemmRows = 4;  // 8 of 16; SSE has no FMA and needs temporaries
#endif
constexpr int kGemmVectors = 2;
// Weights of all layers exceed L2; the panel arrives in time only when asked for ahead.
constexpr int kPrefetchRows = 16;

// exp for arguments in [-87, 87] (float), [-700, 700] (double): 2^n e^r, |r| <= ln2/2, Taylor
// series of e^r to the last bit or two.
MLFF_INLINE Vec<float> exp_clamped(Vec<float> x) {
  typedef int32_t I __attribute__((vector_size(MLFF_VECTOR_BYTES), may_alias));
  const Vec<float> magic = broadcast<float>(12582912.0f);  // 1.5 * 2^23: rounds to integer
  Vec<float> shifted = x * 1.44269504088896341f + magic;
  Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
  p = p * r + (1.0f / 120.0f);
  p = p * r + (1.0f / 24.0f);
  p = p * r + (1.0f / 6.0f);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  I bits = (reinterpret_cast<I&>(shifted) << 23) + (127 << 23);  // magic's low bits are zero
  return p * reinterpret_cast<Vec<float>&>(bits);
}

MLFF_INLINE Vec<double> exp_clamped(Vec<double> x) {
  typedef int64_t I __attribute__((vector_size(MLFF_VECTOR_BYTES), may_alias));
  const Vec<double> magic = broadcast<double>(6755399441055744.0);  // 1.5 * 2^52
  Vec<double> shifted = x * 1.4426950408889634074 + magic;
  Vec<double> n = shifted - magic;
  Vec<double> r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  Vec<double> p = r * (1.0 / 6227020800.0) + (1.0 / 479001600.0);
  p = p * r + (1.0 / 39916800.0);
  p = p * r + (1.0 / 3628800.0);
  p = p * r + (1.0 / 362880.0);
  p = p * r + (1.0 / 40320.0);
  p = p * r + (1.0 / 5040.0);
  p = p * r + (1.0 / 720.0);
  p = p * r + (1.0 / 120.0);
  p = p * r + (1.0 / 24.0);
  p = p * r + (1.0 / 6.0);
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  I bits = (reinterpret_cast<I&>(shifted) << 52) + (int64_t{1023} << 52);
  return p * reinterpret_cast<Vec<double>&>(bits);
}

template <typename T>
MLFF_INLINE void silu(Vec<T> z, Vec<T>& value, Vec<T>& derivative) {
  const Vec<T> limit = broadcast<T>(sizeof(T) == 4 ? T(80) : T(700));
  Vec<T> x = -z;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  Vec<T> sigmoid = T(1) / (T(1) + exp_clamped(x));
  value = z * sigmoid;
  derivative = sigmoid + value * (T(1) - sigmoid);
}

template <typename T, int kRows, int kVectors>
MLFF_INLINE void gemm_tile(const GemmCall<T>& g, const T* __restrict a, const T* __restrict b,
                           const T* bias, T* __restrict c, T* __restrict d) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t lda = g.lda;
  Vec<T> acc[kRows][kVectors];
  for (int j = 0; j < kVectors; ++j) {
    Vec<T> start = bias ? load(bias + j * kLanes) : Vec<T>{};
    for (int i = 0; i < kRows; ++i) acc[i][j] = start;
  }
  // One pointer per three rows: the others are base + lda and base + 2 lda, which x86 addresses
  // without further registers.
  const T* a0 = a;
  const T* a3 = a + 3 * lda;
  const T* a6 = a + 6 * lda;
  const T* a9 = a + 9 * lda;
  for (int64_t k = 0; k < g.k; ++k) {
    Vec<T> row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      row[j] = load(b + j * kLanes);
      __builtin_prefetch(b + (kPrefetchRows * kVectors + j) * kLanes);
    }
    b += kVectors * kLanes;
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const T* base = i < 3 ? a0 : i < 6 ? a3 : i < 9 ? a6 : a9;
      Vec<T> x = broadcast<T>(base[(i % 3) * lda + k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) acc[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      T* to = c + i * g.ldc + j * kLanes;
      T* side = d + i * g.ldd + j * kLanes;
      switch (g.epilogue) {
        case Epilogue::kStore:
          store(to, acc[i][j]);
          break;
        case Epilogue::kAccumulate:
          store(to, load(to) + acc[i][j]);
          break;
        case Epilogue::kScale:
          store(to, acc[i][j] * load(side));
          break;
        case Epilogue::kSilu:
          store(to, acc[i][j]);  // finished below: the exponential would spill accumulators
          break;
      }
    }
  }
  if (g.epilogue == Epilogue::kSilu) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        Vec<T> value, derivative;
        silu<T>(load(c + i * g.ldc + j * kLanes), value, derivative);
        store(c + i * g.ldc + j * kLanes, value);
        store(d + i * g.ldd + j * kLanes, derivative);
      }
    }
  }
}

template <typename T, int kRows, int kVectors>
static __attribute__((noinline)) void gemm_tile_call(const GemmCall<T>& g, const T* a, const T* b,
                                                     const T* bias, T* c, T* d) {
  gemm_tile<T, kRows, kVectors>(g, a, b, bias, c, d);
}

// The last rows: tiles of every height from kRows down.
template <typename T, int kRows, int kVectors>
static void gemm_rest(const GemmCall<T>& g, int64_t rows, const T* a, const T* b, const T* bias,
                      T* c, T* d) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      gemm_tile_call<T, kRows, kVectors>(g, a, b, bias, c, d);
    } else {
      gemm_rest<T, kRows - 1, kVectors>(g, rows, a, b, bias, c, d);
    }
  }
}

template <typename T, int kVectors>
static void gemm_panel(const GemmCall<T>& g, const T* b, const T* bias, T* c, T* d) {
  int64_t i = 0;
  for (; i + kGemmRows <= g.m; i += kGemmRows) {
    gemm_tile_call<T, kGemmRows, kVectors>(g, g.a + i * g.lda, b, bias, c + i * g.ldc,
                                           d + i * g.ldd);
  }
  if (i < g.m) {
    gemm_rest<T, kGemmRows - 1, kVectors>(g, g.m - i, g.a + i * g.lda, b, bias, c + i * g.ldc,
                                          d + i * g.ldd);
  }
}

template <typename T>
static void gemm(const GemmCall<T>& g) {
  constexpr int64_t kWidth = kGemmVectors * Simd<T>::kLanes;
  const T* b = g.b;
  int64_t step = kWidth;
  for (int64_t j = 0; j < g.n; j += step, b += step * g.k) {
    const T* bias = g.bias ? g.bias + j : nullptr;
    T* d = (g.d ? g.d : g.c) + j;
    if (g.n - j >= kWidth) {
      gemm_panel<T, kGemmVectors>(g, b, bias, g.c + j, d);
    } else {
      step = Simd<T>::kLanes;
      gemm_panel<T, 1>(g, b, bias, g.c + j, d);
    }
  }
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
