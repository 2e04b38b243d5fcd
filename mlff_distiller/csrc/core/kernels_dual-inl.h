// Numbers of the training kernels: vectors, and vectors with a tangent. A kernel is written once
// for either; of a dual result only the tangent is stored, since the primal pass has left the
// value.
#include "core/kernels.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

// v + t d with t² = 0.
template <typename T>
struct Dual {
  Vec<T> v, d;
};

#define MLFF_DUAL       \
  template <typename T> \
  MLFF_INLINE Dual<T>
MLFF_DUAL operator+(Dual<T> a, Dual<T> b) { return {a.v + b.v, a.d + b.d}; }
MLFF_DUAL operator-(Dual<T> a, Dual<T> b) { return {a.v - b.v, a.d - b.d}; }
MLFF_DUAL operator*(Dual<T> a, Dual<T> b) { return {a.v * b.v, a.v * b.d + a.d * b.v}; }
MLFF_DUAL operator/(Dual<T> a, Dual<T> b) {
  const Vec<T> q = a.v / b.v;
  return {q, (a.d - q * b.d) / b.v};
}
MLFF_DUAL& operator+=(Dual<T>& a, Dual<T> b) {
  a = a + b;
  return a;
}
#undef MLFF_DUAL

// Mixed products; named, because vectors already have operators for numbers.
template <typename T>
MLFF_INLINE Vec<T> times(Vec<T> a, Vec<T> b) {
  return a * b;
}
template <typename T>
MLFF_INLINE Dual<T> times(Dual<T> a, Vec<T> b) {
  return {a.v * b, a.d * b};
}
template <typename T>
MLFF_INLINE Dual<T> times(Dual<T> a, Dual<T> b) {
  return a * b;
}

// Either kind, and its way to memory.
template <typename T, bool dual>
struct Number;

template <typename T>
struct Number<T, false> {
  typedef Vec<T> N;
  MLFF_INLINE Vec<T> load(DualArray<T> a, int64_t i) { return MLFF_ISA_NAMESPACE::load(a.v + i); }
  MLFF_INLINE void store(DualArray<T> a, int64_t i, Vec<T> x) {
    MLFF_ISA_NAMESPACE::store(a.v + i, x);
  }
  MLFF_INLINE Vec<T> constant(T x) { return broadcast<T>(x); }
  MLFF_INLINE Vec<T> of(Vec<T> x) { return x; }
};

template <typename T>
struct Number<T, true> {
  typedef Dual<T> N;
  MLFF_INLINE Dual<T> load(DualArray<T> a, int64_t i) {
    return {MLFF_ISA_NAMESPACE::load(a.v + i), MLFF_ISA_NAMESPACE::load(a.d + i)};
  }
  MLFF_INLINE void store(DualArray<T> a, int64_t i, Dual<T> x) {
    MLFF_ISA_NAMESPACE::store(a.d + i, x.d);
  }
  MLFF_INLINE Dual<T> constant(T x) { return {broadcast<T>(x), Vec<T>{}}; }
  MLFF_INLINE Dual<T> of(Vec<T> x) { return {x, Vec<T>{}}; }
};

template <typename T>
MLFF_INLINE Vec<T> root_of(Vec<T> x) {
  Vec<T> y;
  for (int i = 0; i < Simd<T>::kLanes; ++i) y[i] = square_root(x[i]);
  return y;
}
template <typename T>
MLFF_INLINE Vec<T> root(Vec<T> x) {
  return root_of<T>(x);
}
template <typename T>
MLFF_INLINE Dual<T> root(Dual<T> x) {
  const Vec<T> y = root_of<T>(x.v);
  return {y, T(0.5) * x.d / y};
}

// silu(z) = z σ, σ = 1 / (1 + e^-z), and its first two derivatives.
template <typename T>
struct Silu {
  Vec<T> value, first, second;
};
template <typename T>
MLFF_INLINE Silu<T> silu_of(Vec<T> z) {
  const Vec<T> limit = broadcast<T>(sizeof(T) == 4 ? T(80) : T(700));
  Vec<T> x = -z;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vec<T> sigmoid = T(1) / (T(1) + exp_clamped(x)), rest = T(1) - sigmoid;
  const Vec<T> value = z * sigmoid;
  return {value, sigmoid + value * rest, sigmoid * rest * (T(2) + z * (rest - sigmoid))};
}
template <typename T>
MLFF_INLINE Vec<T> silu_value(Vec<T> z) {
  return silu_of<T>(z).value;
}
template <typename T>
MLFF_INLINE Dual<T> silu_value(Dual<T> z) {
  const Silu<T> s = silu_of<T>(z.v);
  return {s.value, s.first * z.d};
}
template <typename T>
MLFF_INLINE Vec<T> silu_slope(Vec<T> z) {
  return silu_of<T>(z).first;
}
template <typename T>
MLFF_INLINE Dual<T> silu_slope(Dual<T> z) {
  const Silu<T> s = silu_of<T>(z.v);
  return {s.first, s.second * z.d};
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
