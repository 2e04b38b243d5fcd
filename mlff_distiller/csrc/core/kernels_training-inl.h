// A training step of PaiNN: everything but its matrix products, for the primal pass (energies and
// their gradients) and for the dual pass, whose tangents are derivatives along changes of the edge
// vectors; see training.h. The arithmetic is written once, over N, a vector or a dual one.
//
// Nothing is scattered: each pair of neighbours is in the lists of both its atoms, so that a sum
// over senders is a sum over the same list with the direction turned round. Bound by loads from L2.
#include "core/kernels.h"
#include "core/kernels_dual-inl.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

template <typename T, bool dual>
static void training_silu(int64_t count, DualArray<T> z, DualArray<T> a) {
  using number = Number<T, dual>;
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
    number::store(a, i, silu_value<T>(number::load(z, i)));
  }
}

template <typename T, bool dual>
static void training_silu_adjoint(int64_t count, DualArray<T> z, DualArray<T> ga, DualArray<T> gz) {
  using number = Number<T, dual>;
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
    number::store(gz, i, number::load(ga, i) * silu_slope<T>(number::load(z, i)));
  }
}

// function(i, f) for every atom and vector of channels.
template <typename T, typename F>
MLFF_INLINE void each_vector(const TrainingRows<T>& u, F&& function) {
  for (int64_t i = 0; i < u.m; ++i) {
    for (int64_t f = 0; f < u.channels; f += Simd<T>::kLanes) function(i, f);
  }
}

// What neighbours read: x0 | x1 | x2 v.
template <typename T, bool dual>
static void training_features(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels;
  each_vector(u, [&](int64_t i, int64_t f) {
    const int64_t x = 3 * n * i + f, to = 5 * n * i + f;
    const N x2 = number::load(u.x, x + 2 * n);
    number::store(u.features, to, number::load(u.x, x));
    number::store(u.features, to + n, number::load(u.x, x + n));
    for (int64_t a = 0; a < 3; ++a) {
      number::store(u.features, to + (2 + a) * n, x2 * number::load(u.v0, x + a * n));
    }
  });
}

// norm = sqrt(|V v|² + epsilon) - shift
template <typename T, bool dual>
static void training_norms(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels;
  each_vector(u, [&](int64_t i, int64_t f) {
    N sum = number::constant(u.norm_epsilon);
    for (int64_t a = 0; a < 3; ++a) {
      const N y = number::load(u.vu, (6 * i + 2 * a) * n + f);
      sum += y * y;
    }
    number::store(u.cat, (2 * i + 1) * n + f, root<T>(sum) - number::constant(u.norm_shift));
  });
}

// <U v, V v>
template <typename T, bool dual>
MLFF_INLINE typename Number<T, dual>::N dot_of(const TrainingRows<T>& u, int64_t i, int64_t f) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels;
  N sum = number::constant(T(0));
  for (int64_t a = 0; a < 3; ++a) {
    const int64_t at = (6 * i + 2 * a) * n + f;
    sum += number::load(u.vu, at) * number::load(u.vu, at + n);
  }
  return sum;
}

// s = s + a_ss + a_sv <U v, V v>;  v = v + a_vv U v
template <typename T, bool dual>
static void training_combine(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels, width = (u.last ? 2 : 3) * n;
  each_vector(u, [&](int64_t i, int64_t f) {
    const int64_t at = width * i + f;
    number::store(u.s, n * i + f,
                  number::load(u.cat, 2 * n * i + f) + number::load(u.a, at) +
                      number::load(u.a, at + n) * dot_of<T, dual>(u, i, f));
    if (u.last) return;
    const N scale = number::load(u.a, at + 2 * n);
    for (int64_t a = 0; a < 3; ++a) {
      const int64_t to = (3 * i + a) * n + f;
      number::store(
          u.v, to,
          number::load(u.v1, to) + scale * number::load(u.vu, (6 * i + 2 * a + 1) * n + f));
    }
  });
}

// dE/da_ss = gs;  dE/da_sv = gs <U v, V v>;  dE/da_vv = gv . U v
template <typename T, bool dual>
static void training_adjoint_a(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels, width = (u.last ? 2 : 3) * n;
  each_vector(u, [&](int64_t i, int64_t f) {
    const int64_t at = width * i + f;
    const N gs = number::load(u.gs, n * i + f);
    number::store(u.ga, at, gs);
    number::store(u.ga, at + n, gs * dot_of<T, dual>(u, i, f));
    if (u.last) return;
    N sum = number::constant(T(0));
    for (int64_t a = 0; a < 3; ++a) {
      sum +=
          number::load(u.gv, (3 * i + a) * n + f) * number::load(u.vu, (6 * i + 2 * a + 1) * n + f);
    }
    number::store(u.ga, at + 2 * n, sum);
  });
}

// dE/dU v = a_vv gv + gs a_sv V v;  dE/dV v = gs a_sv U v + gnorm V v / (norm + shift)
template <typename T, bool dual>
static void training_adjoint_vu(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels, width = (u.last ? 2 : 3) * n;
  each_vector(u, [&](int64_t i, int64_t f) {
    const int64_t norm = (2 * i + 1) * n + f;
    const N cross = number::load(u.gs, n * i + f) * number::load(u.a, width * i + n + f);
    const N along =
        number::load(u.gcat, norm) / (number::load(u.cat, norm) + number::constant(u.norm_shift));
    for (int64_t a = 0; a < 3; ++a) {
      const int64_t at = (6 * i + 2 * a) * n + f;
      const N first = number::load(u.vu, at), second = number::load(u.vu, at + n);
      number::store(u.gvu, at, cross * second + along * first);
      N g = cross * first;
      if (!u.last) {
        g += number::load(u.a, width * i + 2 * n + f) * number::load(u.gv, (3 * i + a) * n + f);
      }
      number::store(u.gvu, at + n, g);
    }
  });
}

// What neighbours read on the way back: the adjoints of s and v after the messages.
template <typename T, bool dual>
static void training_adjoint_message(const TrainingRows<T>& u) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  const int64_t n = u.channels;
  each_vector(u, [&](int64_t i, int64_t f) {
    number::store(u.adjoints, 4 * n * i + f,
                  number::load(u.gs, n * i + f) + number::load(u.gcat, 2 * n * i + f));
    for (int64_t a = 0; a < 3; ++a) {
      const int64_t at = (3 * i + a) * n + f;
      N g = number::load(u.gv1, at);
      if (!u.last) g += number::load(u.gv, at);
      number::store(u.adjoints, (4 * i + 1 + a) * n + f, g);
    }
  });
}

// Direction of a pair, turned round if sign is -1, and its filters.
template <typename T, bool dual>
struct PairOf {
  typedef typename Number<T, dual>::N N;
  N r[3];
  Vec<T> stretch;  // tangent of the distance
  const T* w;
  const T* slope;

  MLFF_INLINE PairOf at(const TrainingEdges<T>& e, int64_t width, int64_t pair, T sign) {
    const T* g = e.geometry + 8 * pair;
    PairOf p;
    for (int a = 0; a < 3; ++a) {
      if constexpr (dual) {
        p.r[a] = {broadcast<T>(sign * g[a]), broadcast<T>(sign * g[4 + a])};
      } else {
        p.r[a] = broadcast<T>(sign * g[a]);
      }
    }
    p.stretch = broadcast<T>(dual ? g[7] : T(0));
    p.w = e.filters + 2 * width * pair;
    p.slope = p.w + width;
    return p;
  }
  MLFF_INLINE N filter(const PairOf& p, int64_t f) {
    if constexpr (dual) {
      return {load(p.w + f), load(p.slope + f) * p.stretch};
    } else {
      return load(p.w + f);
    }
  }
};

// s += Σ w0 x0;  v += Σ w1 x1 r + w2 x2 v
template <typename T, bool dual, bool first>
static void training_forward(const TrainingEdges<T>& e) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  using feature = Number<T, dual && !first>;  // the first features depend on species alone
  using pair = PairOf<T, dual>;
  const int64_t n = e.channels, width = (first ? 2 : 3) * n, row = (first ? 2 : 5) * n;
  for (int64_t i = e.begin; i < e.end; ++i) {
    const int64_t start = e.offsets[i], middle = e.middles[i], stop = e.offsets[i + 1];
    for (int64_t f = 0; f < n; f += Simd<T>::kLanes) {
      N s = number::constant(T(0)), v[3] = {s, s, s};
      for (int64_t k = start; k < stop; ++k) {
        const auto p = pair::at(e, width, e.pairs[k], k < middle ? T(1) : T(-1));
        const int64_t j = e.neighbors[k] * row + f;
        s += times<T>(pair::filter(p, f), feature::load(e.features, j));
        const N along = times<T>(pair::filter(p, n + f), feature::load(e.features, j + n));
        for (int a = 0; a < 3; ++a) v[a] += along * p.r[a];
        if constexpr (!first) {
          const N w = pair::filter(p, 2 * n + f);
          for (int a = 0; a < 3; ++a) v[a] += w * feature::load(e.features, j + (2 + a) * n);
        }
      }
      if constexpr (first) {
        s += number::of(feature::load(e.s0, i * n + f));
      } else {
        s += number::load(e.s0, i * n + f);
        for (int a = 0; a < 3; ++a) v[a] += number::load(e.v0, (3 * i + a) * n + f);
      }
      number::store(e.cat, 2 * i * n + f, s);
      for (int a = 0; a < 3; ++a) number::store(e.v1, (3 * i + a) * n + f, v[a]);
    }
  }
}

// Adjoints of x and v0 of each centre, as sums over what its neighbours received from it; and of
// the filters and directions of the pairs that it owns, both directions of a pair together.
template <typename T, bool dual, bool first>
static void training_backward(const TrainingEdges<T>& e) {
  using number = Number<T, dual>;
  typedef typename number::N N;
  using feature = Number<T, dual && !first>;
  typedef typename feature::N X;
  using pair = PairOf<T, dual>;
  constexpr int kParts = first ? 2 : 3;
  const int64_t n = e.channels, width = kParts * n, row = (first ? 2 : 5) * n;
  const N zero = number::constant(T(0));
  for (int64_t i = e.begin; i < e.end; ++i) {
    const int64_t start = e.offsets[i], middle = e.middles[i], stop = e.offsets[i + 1];
    for (int64_t f = 0; f < n; f += Simd<T>::kLanes) {
      N b0 = zero, b1 = zero, b2[3] = {zero, zero, zero};
      if (e.sums) {
        for (int64_t k = start; k < stop; ++k) {
          const auto p = pair::at(e, width, e.pairs[k], k < middle ? T(-1) : T(1));
          const int64_t j = e.neighbors[k] * 4 * n + f;
          b0 += number::load(e.adjoints, j) * pair::filter(p, f);
          N along = zero;
          for (int a = 0; a < 3; ++a) {
            const N g = number::load(e.adjoints, j + (1 + a) * n);
            along += g * p.r[a];
            if constexpr (!first) b2[a] += g * pair::filter(p, 2 * n + f);
          }
          b1 += along * pair::filter(p, n + f);
        }
        const int64_t to = i * width + f;
        number::store(e.gx, to, b0);
        number::store(e.gx, to + n, b1);
        if constexpr (!first) {
          const N x2 = number::load(e.x, to + 2 * n);
          N dot = zero;
          for (int a = 0; a < 3; ++a) {
            const int64_t at = (3 * i + a) * n + f;
            dot += number::load(e.v0, at) * b2[a];
            number::store(e.gv, at, number::load(e.adjoints, (4 * i + 1 + a) * n + f) + x2 * b2[a]);
          }
          number::store(e.gx, to + 2 * n, dot);
        }
      }
      // The two ends of a pair: i, its owner, and j.
      const N gs_i = number::load(e.adjoints, 4 * i * n + f);
      const X x0_i = feature::load(e.features, i * row + f);
      const X x1_i = feature::load(e.features, i * row + n + f);
      N gv_i[3];
      X y_i[3];
      for (int a = 0; a < 3; ++a) {
        gv_i[a] = number::load(e.adjoints, (4 * i + 1 + a) * n + f);
        if constexpr (!first) y_i[a] = feature::load(e.features, i * row + (2 + a) * n + f);
      }
      for (int64_t k = start; k < middle; ++k) {
        const auto p = pair::at(e, width, e.pairs[k], T(1));
        const int64_t j = e.neighbors[k] * row + f, g = e.neighbors[k] * 4 * n + f;
        const X x1_j = feature::load(e.features, j + n);
        N gw[kParts];
        gw[0] = times<T>(gs_i, feature::load(e.features, j)) +
                times<T>(number::load(e.adjoints, g), x0_i);
        gw[1] = zero;
        if constexpr (!first) gw[2] = zero;
        N turn[3];
        for (int a = 0; a < 3; ++a) {
          const N gv_j = number::load(e.adjoints, g + (1 + a) * n);
          turn[a] = times<T>(gv_i[a], x1_j) - times<T>(gv_j, x1_i);
          gw[1] += turn[a] * p.r[a];
          if constexpr (!first) {
            gw[2] += times<T>(gv_i[a], feature::load(e.features, j + (2 + a) * n)) +
                     times<T>(gv_j, y_i[a]);
          }
        }
        if constexpr (dual) {
          T* to = e.filter_adjoints + 2 * width * (e.pairs[k] - e.first_pair) + f;
          for (int c = 0; c < kParts; ++c) {
            store(to + c * n, gw[c].d);
            store(to + width + c * n, gw[c].v * p.stretch);
          }
        } else {
          Vec<T> along = gw[0] * load(p.slope + f) + gw[1] * load(p.slope + n + f);
          if constexpr (!first) along += gw[2] * load(p.slope + 2 * n + f);
          const Vec<T> w = load(p.w + n + f);
          add_lanes4<T>(along, turn[0] * w, turn[1] * w, turn[2] * w, e.gradients + 4 * e.pairs[k]);
        }
      }
    }
  }
}

template <typename T>
static void exponentials(int64_t count, const T* x, T* y) {
  const Vec<T> least = broadcast<T>(sizeof(T) == 4 ? T(-87) : T(-700));
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
    const Vec<T> value = load(x + i);
    store(y + i, exp_clamped(value < least ? least : value));
  }
}

template <typename T, int kRows, int kVectors>
static __attribute__((noinline)) void outer_tile(const OuterCall<T>& g, const T* __restrict a,
                                                 const T* __restrict b, T* __restrict c) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vec<T> acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      acc[i][j] = g.accumulate ? load(c + i * g.ldc + j * kLanes) : Vec<T>{};
    }
  }
  for (int64_t k = 0; k < g.k; ++k, a += g.lda, b += g.ldb) {
    Vec<T> row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> x = broadcast<T>(a[i]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) acc[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) store(c + i * g.ldc + j * kLanes, acc[i][j]);
  }
}

template <typename T, int kRows, int kVectors>
static void outer_rest(const OuterCall<T>& g, int64_t rows, const T* a, const T* b, T* c) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      outer_tile<T, kRows, kVectors>(g, a, b, c);
    } else {
      outer_rest<T, kRows - 1, kVectors>(g, rows, a, b, c);
    }
  }
}

template <typename T, int kVectors>
static void outer_panel(const OuterCall<T>& g, int64_t column) {
  int64_t i = 0;
  for (; i + kGemmRows <= g.m; i += kGemmRows) {
    outer_tile<T, kGemmRows, kVectors>(g, g.a + i, g.b + column, g.c + i * g.ldc + column);
  }
  if (i < g.m) {
    outer_rest<T, kGemmRows - 1, kVectors>(g, g.m - i, g.a + i, g.b + column,
                                           g.c + i * g.ldc + column);
  }
}

template <typename T>
static void outer(const OuterCall<T>& g) {
  constexpr int64_t kWidth = kGemmVectors * Simd<T>::kLanes;
  int64_t j = 0;
  for (; j + kWidth <= g.n; j += kWidth) outer_panel<T, kGemmVectors>(g, j);
  for (; j < g.n; j += Simd<T>::kLanes) outer_panel<T, 1>(g, j);
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
