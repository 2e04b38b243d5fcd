// Element-wise parts of the update block. Plain loops that the compiler vectorises; bound by
// loads and stores from L2, where a tile of atoms lives between its dense layers.
#include "core/kernels.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

// norm = sqrt(sum_xyz (V v)^2 + epsilon) - shift
template <typename T>
static void update_norms(const UpdateCall<T>& u) {
  const int64_t n = u.num_channels;
  const T epsilon = u.norm_epsilon, shift = u.norm_shift;
  for (int64_t i = 0; i < u.m; ++i) {
    const T* __restrict x = u.vu + i * 6 * n;
    const T* __restrict y = x + 2 * n;
    const T* __restrict z = y + 2 * n;
    T* __restrict norm = u.cat + i * 2 * n + n;
    for (int64_t f = 0; f < n; ++f) {
      norm[f] = square_root(x[f] * x[f] + y[f] * y[f] + z[f] * z[f] + epsilon) - shift;
    }
  }
}

// s += a_sv <U v, V v>;  v += a_vv U v. (a_ss was added to s by its matrix product.)
template <typename T>
static void update_combine(const UpdateCall<T>& u) {
  const int64_t n = u.num_channels;
  for (int64_t i = 0; i < u.m; ++i) {
    const T* __restrict x = u.vu + i * 6 * n;
    const T* __restrict y = x + 2 * n;
    const T* __restrict z = y + 2 * n;
    const T* __restrict a = u.a + i * u.lda;
    T* __restrict s = u.cat + i * 2 * n;
    for (int64_t f = 0; f < n; ++f) {
      const T dot = x[f] * x[n + f] + y[f] * y[n + f] + z[f] * z[n + f];
      s[f] += a[f] * dot;
    }
    if (u.last) continue;
    T* __restrict v = u.v + i * 3 * n;
    for (int64_t f = 0; f < n; ++f) {
      const T scale = a[n + f];
      v[f] += scale * x[n + f];
      v[n + f] += scale * y[n + f];
      v[2 * n + f] += scale * z[n + f];
    }
  }
}

// dE/da_ss = gs;  dE/da_sv = gs <U v, V v>;  dE/da_vv = gv . U v
template <typename T>
static void update_adjoint_a(const UpdateCall<T>& u) {
  const int64_t n = u.num_channels;
  for (int64_t i = 0; i < u.m; ++i) {
    const T* __restrict x = u.vu + i * 6 * n;
    const T* __restrict y = x + 2 * n;
    const T* __restrict z = y + 2 * n;
    const T* __restrict gs = u.gs + i * n;
    T* __restrict ga = u.ga + i * (u.last ? 2 : 3) * n;
    for (int64_t f = 0; f < n; ++f) {
      const T dot = x[f] * x[n + f] + y[f] * y[n + f] + z[f] * z[n + f];
      ga[f] = gs[f];
      ga[n + f] = gs[f] * dot;
    }
    if (u.last) continue;
    const T* __restrict gv = u.gv + i * 3 * n;
    for (int64_t f = 0; f < n; ++f) {
      ga[2 * n + f] = gv[f] * x[n + f] + gv[n + f] * y[n + f] + gv[2 * n + f] * z[n + f];
    }
  }
}

// dE/dU v = a_vv gv + gs a_sv V v;  dE/dV v = gs a_sv U v + gnorm V v / root,
// where root = norm + shift
template <typename T>
static void update_adjoint_vu(const UpdateCall<T>& u) {
  const int64_t n = u.num_channels;
  const T shift = u.norm_shift;
  for (int64_t i = 0; i < u.m; ++i) {
    const T* gs = u.gs + i * n;
    const T* a = u.a + i * u.lda;
    const T* norm = u.norms + i * 2 * n + n;
    const T* gnorm = u.gcat + i * 2 * n + n;
    const T* vu = u.vu + i * 6 * n;
    T* gvu = u.gvu + i * 6 * n;
    for (int64_t f = 0; f < n; f += Simd<T>::kLanes) {
      const Vec<T> cross = load(gs + f) * load(a + f);
      const Vec<T> along = load(gnorm + f) / (load(norm + f) + shift);
      Vec<T> a_vv = {};
      if (!u.last) a_vv = load(a + n + f);
      for (int64_t axis = 0; axis < 3; ++axis) {
        const int64_t at = axis * 2 * n + f;
        const Vec<T> first = load(vu + at), second = load(vu + at + n);
        store(gvu + at, cross * second + along * first);
        Vec<T> g = cross * first;
        if (!u.last) g += a_vv * load(u.gv + (3 * i + axis) * n + f);
        store(gvu + at + n, g);
      }
    }
  }
}

// Features of m atoms for their neighbours, from x [m][3F] and v [m][3][F]; keeps x2 [m][F].
template <typename T>
static void write_features(int64_t m, int64_t n, const T* x, const T* v, T* x2, T* rows) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  for (int64_t i = 0; i < m; ++i, x += 3 * n, v += 3 * n, x2 += n) {
    for (int64_t c = 0; c < n; c += kChunk, rows += 5 * kChunk) {
      for (int64_t f = 0; f < kChunk; f += Simd<T>::kLanes) {
        const Vec<T> second = load(x + 2 * n + c + f);
        store(x2 + c + f, second);
        store(rows + f, load(x + c + f));
        store(rows + kChunk + f, load(x + n + c + f));
        for (int64_t a = 0; a < 3; ++a) {
          store(rows + (2 + a) * kChunk + f, second * load(v + a * n + c + f));
        }
      }
    }
  }
}

// Adjoints of m atoms for their neighbours: gs + gcat's first half, and gv [m][3][F].
template <typename T>
static void write_adjoints(int64_t m, int64_t n, const T* gs, const T* gcat, const T* gv, T* rows) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  for (int64_t i = 0; i < m; ++i, gs += n, gcat += 2 * n, gv += 3 * n) {
    for (int64_t c = 0; c < n; c += kChunk, rows += 4 * kChunk) {
      for (int64_t f = 0; f < kChunk; f += Simd<T>::kLanes) {
        store(rows + f, load(gs + c + f) + load(gcat + c + f));
        for (int64_t a = 0; a < 3; ++a) {
          store(rows + (1 + a) * kChunk + f, load(gv + a * n + c + f));
        }
      }
    }
  }
}

// Adjoints of x, s and v of m atoms from the sums of TileCall and their own adjoint rows:
// gx = gx0 | gx1 | v . A,  gs = own gs,  gv = own gv + x2 A.
template <typename T>
static void finish_sums(int64_t m, int64_t n, const T* sums, const T* x2, const T* v, const T* rows,
                        T* gx, T* gs, T* gv) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  for (int64_t i = 0; i < m; ++i, x2 += n, v += 3 * n, gx += 3 * n, gs += n, gv += 3 * n) {
    for (int64_t c = 0; c < n; c += kChunk, sums += 5 * kChunk, rows += 4 * kChunk) {
      for (int64_t f = 0; f < kChunk; f += Simd<T>::kLanes) {
        const Vec<T> scale = load(x2 + c + f);
        Vec<T> dot = {};
        for (int64_t a = 0; a < 3; ++a) {
          const Vec<T> sum = load(sums + (2 + a) * kChunk + f);
          dot += sum * load(v + a * n + c + f);
          store(gv + a * n + c + f, load(rows + (1 + a) * kChunk + f) + scale * sum);
        }
        store(gx + c + f, load(sums + f));
        store(gx + n + c + f, load(sums + kChunk + f));
        store(gx + 2 * n + c + f, dot);
        store(gs + c + f, load(rows + f));
      }
    }
  }
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
