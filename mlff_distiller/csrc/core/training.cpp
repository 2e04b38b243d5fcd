#include "core/training.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/training_weights.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlff {
namespace {

// Atoms whose rows stay in L2 through a chain of dense layers; a multiple of the kernels' rows.
constexpr int64_t kTile = 48;
// Pairs whose filters' adjoints are kept in L2 on their way into the gradient.
constexpr int64_t kPairs = 192;

// Hands out aligned parts of the work space, or measures it where there is none.
template <typename T>
class Carver {
 public:
  Carver(void* base, bool dual) : base_(static_cast<char*>(base)), dual_(dual) {}
  T* take(int64_t count) {
    const size_t start = bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + start) : nullptr;
  }
  DualArray<T> dual(int64_t count) {
    DualArray<T> a;
    a.v = take(count);
    if (dual_) a.d = take(count);
    return a;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  bool dual_;
  size_t bytes_ = 0;
};

// A dense layer of this step.
template <typename T>
struct Dense {
  DenseShape shape;
  T *forward = nullptr, *backward = nullptr, *bias = nullptr;

  void carve(Carver<T>& c, bool with_bias) {
    forward = c.take(shape.rows() * shape.columns());
    backward = c.take(shape.rows() * shape.columns());
    if (with_bias) bias = c.take(shape.rows());
  }
};

template <typename T>
struct LayerSpace {
  Dense<T> message0, message2, mix, update0, update2;
  int64_t width = 0;                        // channels of filters and features x
  T *filter = nullptr, *filters = nullptr;  // packed weights; [pairs][2][width]
  DualArray<T> s0, z1, a1, x, features, v0, cat, v1, vu, z2, a2, a;
  // Adjoints; gz of the inputs of SiLU, ga1 and ga2 of its results.
  DualArray<T> gs, gv, ga, ga2, gz2, gcat, gvu, gv1, adjoints, gx, ga1, gz1;
};

template <typename T>
struct ThreadSpace {
  T *filter_adjoints = nullptr, *rows = nullptr;
  std::vector<T*> filter_gradients;  // [radial][width] of each interaction
};

template <typename T>
struct Space {
  int64_t channels = 0, readout = 0;  // padded
  int threads = 1;
  std::vector<LayerSpace<T>> layers;
  std::vector<ThreadSpace<T>> of_thread;
  Dense<T> readout0;
  DualArray<T> s, zr, ar, gar, gzr, gs0, seeds;
  T* readout2 = nullptr;  // weights and, last, the bias
  T *geometry = nullptr, *gradients = nullptr;
  size_t bytes = 0;

  Space(const TrainingInput<T>& in, void* base, bool dual) {
    constexpr int64_t kStep = 64 / static_cast<int64_t>(sizeof(T));
    const auto padded = [](int64_t count) { return (count + kStep - 1) / kStep * kStep; };
    const TrainingGraph& g = *in.graph;
    const TrainingModel& m = in.model;
    const int64_t n = g.num_atoms, f = padded(m.hidden), r = padded(m.readout);
    channels = f, readout = r;
    // Each thread should have a tile that is worth its while.
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(in.threads, n / 8)));
    Carver<T> c(base, dual);
    layers.resize(static_cast<size_t>(m.layers));
    for (int64_t k = 0; k < m.layers; ++k) {
      LayerSpace<T>& l = layers[static_cast<size_t>(k)];
      const bool first = k == 0, last = k + 1 == m.layers;
      const int64_t parts = first ? 2 : 3, a_parts = last ? 2 : 3;
      l.width = parts * f;
      const auto shape = [&](Dense<T>& d, int64_t out_blocks, int64_t in_blocks, bool bias) {
        d.shape.out_blocks = out_blocks, d.shape.out = m.hidden, d.shape.out_padded = f;
        d.shape.in_blocks = in_blocks, d.shape.in = m.hidden, d.shape.in_padded = f;
        d.carve(c, bias);
      };
      shape(l.message0, 1, 1, true);
      shape(l.message2, parts, 1, true);
      shape(l.mix, 2, 1, false);
      shape(l.update0, 1, 2, true);
      shape(l.update2, a_parts, 1, true);
      l.update2.shape.order[1] = 2, l.update2.shape.order[2] = 1;  // ss vv sv in torch
      l.filter = c.take(m.radial * l.width);
      l.filters = c.take(g.num_pairs * 2 * l.width);
      l.s0 = c.dual(n * f), l.z1 = c.dual(n * f), l.a1 = c.dual(n * f);
      l.x = c.dual(n * l.width);
      l.features = first ? l.x : c.dual(n * 5 * f);
      if (!first) l.v0 = c.dual(n * 3 * f);
      l.cat = c.dual(n * 2 * f), l.v1 = c.dual(n * 3 * f), l.vu = c.dual(n * 6 * f);
      l.z2 = c.dual(n * f), l.a2 = c.dual(n * f), l.a = c.dual(n * a_parts * f);
      l.gs = c.dual(n * f);
      if (!last) l.gv = c.dual(n * 3 * f);
      l.ga = c.dual(n * a_parts * f), l.ga2 = c.dual(n * f), l.gz2 = c.dual(n * f);
      l.gcat = c.dual(n * 2 * f), l.gvu = c.dual(n * 6 * f), l.gv1 = c.dual(n * 3 * f);
      l.adjoints = c.dual(n * 4 * f), l.gx = c.dual(n * l.width);
      l.ga1 = c.dual(n * f), l.gz1 = c.dual(n * f);
    }
    readout0.shape.out = m.readout, readout0.shape.out_padded = r;
    readout0.shape.in = m.hidden, readout0.shape.in_padded = f;
    readout0.carve(c, true);
    readout2 = c.take(r + 1);
    s = c.dual(n * f), gs0 = c.dual(n * f), seeds = c.dual(n);
    zr = c.dual(n * r), ar = c.dual(n * r), gar = c.dual(n * r), gzr = c.dual(n * r);
    geometry = c.take(8 * g.num_pairs), gradients = c.take(4 * g.num_pairs);
    of_thread.resize(static_cast<size_t>(threads));
    int64_t most = kPairs;
    for (int64_t i = 0; i < n; ++i) {
      most = std::max(most, g.first_pairs[i + 1] - g.first_pairs[i]);
    }
    for (ThreadSpace<T>& t : of_thread) {
      if (!dual) continue;
      t.filter_adjoints = c.take(most * 2 * 3 * f);
      t.rows = c.take(kGradientRows * std::max(2 * f, r));
      for (const LayerSpace<T>& l : layers) {
        t.filter_gradients.push_back(c.take(m.radial * l.width));
      }
    }
    bytes = c.bytes();
  }
};

template <typename T>
DualArray<T> at(DualArray<T> a, int64_t offset) {
  a.v += offset;  // of null: of an array that is not there, and not read
  a.d = a.d ? a.d + offset : nullptr;
  return a;
}

// One pass of one thread over its atoms.
template <typename T>
class Pass {
 public:
  Pass(const TrainingInput<T>& in, Space<T>& space, const Kernels<T>& kernels, bool dual,
       int thread, int team)
      : in_(in),
        g_(*in.graph),
        s_(space),
        kernels_(kernels),
        k_(kernels.training[dual ? 1 : 0]),
        dual_(dual),
        t_(space.of_thread[static_cast<size_t>(thread)]),
        f_(space.channels) {
    begin_ = share(thread, team), end_ = share(thread + 1, team);
    const int64_t count = end_ - begin_, tiles = std::max<int64_t>(1, (count + kTile - 1) / kTile);
    tile_ = std::max<int64_t>(1, (count + tiles - 1) / tiles);
  }

  void geometry(const T* u) {
    for (int64_t p = first_pair(begin_); p < first_pair(end_); ++p) {
      T* g = s_.geometry + 8 * p;
      if (!dual_) {
        const T *r = in_.vectors + 3 * p, d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
        for (int a = 0; a < 3; ++a) g[a] = r[a] / d;
        g[3] = T(1) / d;
      } else {
        const T* t = u + 3 * p;
        g[7] = g[0] * t[0] + g[1] * t[1] + g[2] * t[2];
        for (int a = 0; a < 3; ++a) g[4 + a] = (t[a] - g[a] * g[7]) * g[3];
      }
    }
  }

  void filters() {
    const int64_t first = first_pair(begin_), count = first_pair(end_) - first;
    for (size_t k = 0; k < s_.layers.size(); ++k) {
      const LayerSpace<T>& l = s_.layers[k];
      GemmCall<T> call;
      call.m = 2 * count, call.n = l.width, call.k = in_.model.radial;
      call.a = in_.radial[k] + 2 * first * call.k, call.lda = call.k;
      call.b = l.filter;
      call.c = l.filters + 2 * first * l.width, call.ldc = l.width;
      kernels_.gemm(call);
    }
  }

  void forward(const T* embedding) {
    for (size_t k = 0; k < s_.layers.size(); ++k) {
      LayerSpace<T>& l = s_.layers[k];
      const bool last = k + 1 == s_.layers.size();
      if (k == 0) {
        each_tile([&](int64_t b, int64_t m) {
          embed(b, m, embedding);
          if (!dual_) message(l, true, b, m);
        });
      }
      wait();
      each_tile([&](int64_t b, int64_t m) {
        TrainingEdges<T> e = edges(l, b, m);
        (k == 0 ? k_.forward_first : k_.forward)(e);
        TrainingRows<T> rows = update_rows(l, k, b, m);
        product(l.mix, true, 3 * m, rows.v1, rows.vu);
        k_.norms(rows);
        product(l.update0, true, m, rows.cat, at(l.z2, b * f_));
        k_.silu(m * f_, at(l.z2, b * f_), at(l.a2, b * f_));
        product(l.update2, true, m, at(l.a2, b * f_), rows.a);
        k_.combine(rows);
        if (!last) message(s_.layers[k + 1], false, b, m);
      });
    }
    each_tile([&](int64_t b, int64_t m) {
      const int64_t r = s_.readout;
      product(s_.readout0, true, m, at(s_.s, b * f_), at(s_.zr, b * r));
      k_.silu(m * r, at(s_.zr, b * r), at(s_.ar, b * r));
    });
  }

  // seeds: dE/dE_i, in s_.seeds.
  void backward() {
    const size_t count = s_.layers.size();
    each_tile([&](int64_t b, int64_t m) {
      const int64_t r = s_.readout;
      const T* seed = dual_ ? s_.seeds.d : s_.seeds.v;
      T* ga = dual_ ? s_.gar.d : s_.gar.v;
      for (int64_t i = b; i < b + m; ++i) {
        for (int64_t f = 0; f < r; ++f) ga[i * r + f] = seed[i] * s_.readout2[f];
      }
      k_.silu_adjoint(m * r, at(s_.zr, b * r), at(s_.gar, b * r), at(s_.gzr, b * r));
      product(s_.readout0, false, m, at(s_.gzr, b * r), at(s_.layers[count - 1].gs, b * f_));
    });
    for (size_t k = count; k-- > 0;) {
      LayerSpace<T>& l = s_.layers[k];
      each_tile([&](int64_t b, int64_t m) {
        TrainingRows<T> rows = update_rows(l, k, b, m);
        const DualArray<T> ga2 = at(l.ga2, b * f_), gz2 = at(l.gz2, b * f_);
        k_.adjoint_a(rows);
        product(l.update2, false, m, rows.ga, ga2);
        k_.silu_adjoint(m * f_, at(l.z2, b * f_), ga2, gz2);
        product(l.update0, false, m, gz2, rows.gcat);
        k_.adjoint_vu(rows);
        product(l.mix, false, 3 * m, rows.gvu, rows.gv1);
        k_.adjoint_message(rows);
      });
      wait();
      const bool first = k == 0;
      if (dual_) clear(t_.filter_gradients[k], in_.model.radial * l.width);
      each_tile([&](int64_t b, int64_t m) {
        TrainingEdges<T> e = edges(l, b, m);
        e.sums = dual_ || !first;
        if (!first) e.gv = s_.layers[k - 1].gv;
        for_pairs(k, e);
        if (!e.sums) return;
        product(l.message2, false, m, at(l.gx, b * l.width), at(l.ga1, b * f_));
        k_.silu_adjoint(m * f_, at(l.z1, b * f_), at(l.ga1, b * f_), at(l.gz1, b * f_));
        const DualArray<T> gs = at(first ? s_.gs0 : s_.layers[k - 1].gs, b * f_);
        const T* from = dual_ ? l.adjoints.d : l.adjoints.v;
        for (int64_t i = 0; i < m; ++i) {
          std::memcpy((dual_ ? gs.d : gs.v) + i * f_, from + (b + i) * 4 * f_,
                      sizeof(T) * static_cast<size_t>(f_));
        }
        product(l.message0, false, m, at(l.gz1, b * f_), gs, Epilogue::kAccumulate);
      });
    }
  }

  void clear_gradients() {
    const int64_t first = first_pair(begin_);
    clear(s_.gradients + 4 * first, 4 * (first_pair(end_) - first));
  }

  // dE/d(pair vector) = dE/dd r + (1 - r rᵀ)/d dE/dr
  void write_gradients(T* out) const {
    for (int64_t p = first_pair(begin_); p < first_pair(end_); ++p) {
      const T *r = s_.geometry + 8 * p, *g = s_.gradients + 4 * p;
      const T along = r[0] * g[1] + r[1] * g[2] + r[2] * g[3];
      for (int a = 0; a < 3; ++a) out[3 * p + a] = g[0] * r[a] + (g[1 + a] - along * r[a]) * r[3];
    }
  }

  void set_seeds(const T* c) {
    for (int64_t i = begin_; i < end_; ++i) {
      const T scale = in_.scales[in_.species[i]];
      s_.seeds.v[i] = scale;
      if (dual_) s_.seeds.d[i] = scale * c[i];
    }
  }

  void write_energies(T* energies) const {
    const int64_t r = s_.readout;
    for (int64_t i = begin_; i < end_; ++i) {
      double sum = static_cast<double>(s_.readout2[r]);
      for (int64_t f = 0; f < r; ++f) sum += double(s_.ar.v[i * r + f]) * double(s_.readout2[f]);
      energies[i] = static_cast<T>(sum) * in_.scales[in_.species[i]];
    }
  }

 private:
  static void clear(T* data, int64_t count) {
    std::memset(data, 0, sizeof(T) * static_cast<size_t>(count));
  }
  static void wait() {
#pragma omp barrier
  }
  int64_t first_pair(int64_t atom) const { return g_.first_pairs[atom]; }

  // Shares of equal work: an atom costs about as much as 24 edges.
  int64_t share(int thread, int team) const {
    constexpr int64_t kAtom = 24;
    const int64_t n = g_.num_atoms;
    const int64_t wanted = (g_.num_edges + kAtom * n) * thread / team;
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t i = (low + high) / 2;
      if (g_.offsets[i] + kAtom * i < wanted) {
        low = i + 1;
      } else {
        high = i;
      }
    }
    return low;
  }

  template <typename F>
  void each_tile(F&& function) const {
    for (int64_t b = begin_; b < end_; b += tile_) function(b, std::min(tile_, end_ - b));
  }

  // Rows of the pass' kind through a layer, or the adjoint of it.
  void product(const Dense<T>& layer, bool forward, int64_t m, DualArray<T> a, DualArray<T> c,
               Epilogue epilogue = Epilogue::kStore) const {
    GemmCall<T> call;
    call.m = m;
    call.k = forward ? layer.shape.columns() : layer.shape.rows();
    call.n = forward ? layer.shape.rows() : layer.shape.columns();
    call.a = dual_ ? a.d : a.v, call.lda = call.k;
    call.c = dual_ ? c.d : c.v, call.ldc = call.n;
    call.b = forward ? layer.forward : layer.backward;
    call.bias = forward && !dual_ ? layer.bias : nullptr;
    call.epilogue = epilogue;
    kernels_.gemm(call);
  }

  void embed(int64_t b, int64_t m, const T* embedding) {
    LayerSpace<T>& l = s_.layers[0];
    const int64_t hidden = in_.model.hidden;
    if (dual_) {  // z1 does not change; neither did the primal pass need its adjoint
      clear(l.z1.d + b * f_, m * f_);
      clear(l.ga1.v + b * f_, m * f_);
      return;
    }
    clear(l.s0.v + b * f_, m * f_);
    for (int64_t i = b; i < b + m; ++i) {
      std::memcpy(l.s0.v + i * f_, embedding + in_.species[i] * hidden,
                  sizeof(T) * static_cast<size_t>(hidden));
    }
  }

  void message(LayerSpace<T>& l, bool first, int64_t b, int64_t m) {
    product(l.message0, true, m, at(l.s0, b * f_), at(l.z1, b * f_));
    k_.silu(m * f_, at(l.z1, b * f_), at(l.a1, b * f_));
    product(l.message2, true, m, at(l.a1, b * f_), at(l.x, b * l.width));
    if (first) return;
    TrainingRows<T> rows;
    rows.m = m, rows.channels = f_;
    rows.x = at(l.x, b * l.width), rows.v0 = at(l.v0, b * 3 * f_);
    rows.features = at(l.features, b * 5 * f_);
    k_.features(rows);
  }

  TrainingRows<T> update_rows(LayerSpace<T>& l, size_t k, int64_t b, int64_t m) {
    TrainingRows<T> u;
    u.m = m, u.channels = f_;
    u.last = k + 1 == s_.layers.size();
    u.norm_epsilon = static_cast<T>(in_.model.norm_epsilon);
    u.norm_shift = static_cast<T>(in_.model.norm_shift);
    const int64_t a = (u.last ? 2 : 3) * f_;
    u.cat = at(l.cat, b * 2 * f_), u.v1 = at(l.v1, b * 3 * f_), u.vu = at(l.vu, b * 6 * f_);
    u.a = at(l.a, b * a);
    u.s = at(u.last ? s_.s : s_.layers[k + 1].s0, b * f_);
    if (!u.last) u.v = at(s_.layers[k + 1].v0, b * 3 * f_), u.gv = at(l.gv, b * 3 * f_);
    u.gs = at(l.gs, b * f_), u.ga = at(l.ga, b * a);
    u.gcat = at(l.gcat, b * 2 * f_), u.gvu = at(l.gvu, b * 6 * f_);
    u.gv1 = at(l.gv1, b * 3 * f_), u.adjoints = at(l.adjoints, b * 4 * f_);
    return u;
  }

  TrainingEdges<T> edges(LayerSpace<T>& l, int64_t b, int64_t m) {
    TrainingEdges<T> e;
    e.begin = b, e.end = b + m;
    e.channels = f_;
    e.offsets = g_.offsets, e.middles = g_.middles;
    e.neighbors = g_.neighbors, e.pairs = g_.pairs;
    e.geometry = s_.geometry, e.filters = l.filters;
    e.features = l.features, e.adjoints = l.adjoints;
    e.s0 = l.s0, e.v0 = l.v0, e.cat = l.cat, e.v1 = l.v1;
    e.x = l.x, e.gx = l.gx;
    e.gradients = s_.gradients;
    return e;
  }

  // The edges of a tile on the way back; in the dual pass by runs of atoms whose pairs fit.
  void for_pairs(size_t k, TrainingEdges<T> e) {
    const auto kernel = k == 0 ? k_.backward_first : k_.backward;
    if (!dual_) return kernel(e);
    const LayerSpace<T>& l = s_.layers[k];
    const int64_t end = e.end;
    while (e.begin < end) {
      const int64_t first = first_pair(e.begin);
      e.end = e.begin + 1;
      while (e.end < end && first_pair(e.end + 1) - first <= kPairs) ++e.end;
      e.first_pair = first, e.filter_adjoints = t_.filter_adjoints;
      kernel(e);
      OuterCall<T> call;
      call.m = in_.model.radial, call.n = l.width, call.k = 2 * (first_pair(e.end) - first);
      call.a = in_.radial[k] + 2 * first * call.m, call.lda = call.m;
      call.b = t_.filter_adjoints, call.ldb = l.width;
      call.c = t_.filter_gradients[k], call.ldc = l.width, call.accumulate = true;
      kernels_.outer(call);
      e.begin = e.end;
    }
  }

  const TrainingInput<T>& in_;
  const TrainingGraph& g_;
  Space<T>& s_;
  const Kernels<T>& kernels_;
  const TrainingKernels<T>& k_;
  bool dual_;
  ThreadSpace<T>& t_;
  int64_t f_, begin_ = 0, end_ = 0, tile_ = 1;
};

template <typename F>
void on_threads(int threads, F&& function) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  function(omp_get_thread_num(), omp_get_num_threads());
#else
  function(0, threads - threads + 1);
#endif
}

template <typename T>
void pack_filter(const Kernels<T>& kernels, const TrainingModel& m, const LayerSpace<T>& l,
                 int64_t channels, const T* weight, const T* bias) {
  std::memset(l.filter, 0, sizeof(T) * static_cast<size_t>(m.radial * l.width));
  const int64_t rbf = m.radial - 1;
  for (int64_t b = 0; b < l.width / channels; ++b) {
    for (int64_t c = 0; c < m.hidden; ++c) {
      const int64_t row = b * m.hidden + c, column = b * channels + c;
      for (int64_t i = 0; i < m.radial; ++i) {
        l.filter[packed_at(kernels, m.radial, l.width, i, column)] =
            i < rbf ? weight[row * rbf + i] : bias[row];
      }
    }
  }
}

// Everything that is packed, as independent jobs.
template <typename T>
void pack(const Kernels<T>& kernels, const TrainingModel& m, Space<T>& s,
          const TrainingParameters<const T>& p) {
  const int64_t layers = m.layers;
#pragma omp for schedule(dynamic, 1)
  for (int64_t job = 0; job < 6 * layers + 1; ++job) {
    if (job == 6 * layers) {
      pack_dense(kernels, s.readout0.shape, p.readout0, true, s.readout0.forward);
      pack_dense(kernels, s.readout0.shape, p.readout0, false, s.readout0.backward);
      pack_bias(s.readout0.shape, p.readout0_bias, s.readout0.bias);
      std::memset(s.readout2, 0, sizeof(T) * static_cast<size_t>(s.readout));
      std::memcpy(s.readout2, p.readout2, sizeof(T) * static_cast<size_t>(m.readout));
      s.readout2[s.readout] = *p.readout2_bias;
      continue;
    }
    LayerSpace<T>& l = s.layers[static_cast<size_t>(job / 6)];
    const InteractionParameters<const T>& w = p.interactions[static_cast<size_t>(job / 6)];
    const int64_t kind = job % 6;
    if (kind == 5) {
      pack_filter(kernels, m, l, s.channels, w.filter, w.filter_bias);
      continue;
    }
    Dense<T>* const all[] = {&l.message0, &l.message2, &l.mix, &l.update0, &l.update2};
    const T* const weights[] = {w.message0, w.message2, w.mix, w.update0, w.update2};
    const T* const biases[] = {w.message0_bias, w.message2_bias, nullptr, w.update0_bias,
                               w.update2_bias};
    pack_dense(kernels, all[kind]->shape, weights[kind], true, all[kind]->forward);
    pack_dense(kernels, all[kind]->shape, weights[kind], false, all[kind]->backward);
    if (biases[kind]) pack_bias(all[kind]->shape, biases[kind], all[kind]->bias);
  }
}

template <typename T>
std::vector<GradientTask<T>> gradient_tasks(const Space<T>& s, int64_t n,
                                            const TrainingParameters<T>& out) {
  std::vector<GradientTask<T>> tasks;
  const auto add = [&](const Dense<T>& layer, DualArray<T> x, DualArray<T> g, int64_t m, T* weight,
                       T* bias, bool constant_x) {
    GradientTask<T> t;
    t.shape = &layer.shape, t.x = x, t.g = g, t.m = m;
    t.weight = weight, t.bias = bias, t.constant_x = constant_x;
    for (t.block = 0; t.block < layer.shape.out_blocks; ++t.block) {
      for (t.row = 0; t.row < layer.shape.out; t.row += kGradientRows) {
        t.count = std::min(kGradientRows, layer.shape.out - t.row);
        tasks.push_back(t);
      }
    }
  };
  for (size_t k = 0; k < s.layers.size(); ++k) {
    const LayerSpace<T>& l = s.layers[k];
    const InteractionParameters<T>& o = out.interactions[k];
    add(l.mix, l.v1, l.gvu, 3 * n, o.mix, nullptr, false);
    add(l.message0, l.s0, l.gz1, n, o.message0, o.message0_bias, k == 0);
    add(l.message2, l.a1, l.gx, n, o.message2, o.message2_bias, k == 0);
    add(l.update0, l.cat, l.gz2, n, o.update0, o.update0_bias, false);
    add(l.update2, l.a2, l.ga, n, o.update2, o.update2_bias, false);
  }
  add(s.readout0, s.s, s.gzr, n, out.readout0, out.readout0_bias, false);
  return tasks;
}

// What no task writes: sums over few numbers, and zeros for weights that nothing depends on.
template <typename T>
void small_gradients(const TrainingInput<T>& in, const Space<T>& s, int team,
                     const TrainingParameters<T>& out) {
  const TrainingModel& m = in.model;
  const int64_t n = in.graph->num_atoms, hidden = m.hidden, rbf = m.radial - 1, f = s.channels;
  const auto zero = [](T* data, int64_t count) {
    std::memset(data, 0, sizeof(T) * static_cast<size_t>(count));
  };
  for (size_t k = 0; k < s.layers.size(); ++k) {
    const LayerSpace<T>& l = s.layers[k];
    const InteractionParameters<T>& o = out.interactions[k];
    const int64_t parts = l.width / f;
    for (int64_t b = 0; b < 3; ++b) {
      for (int64_t i = 0; i < m.radial; ++i) {
        for (int64_t c = 0; c < hidden; ++c) {
          T sum = 0;
          for (int t = 0; t < team && b < parts; ++t) {
            sum += s.of_thread[static_cast<size_t>(t)].filter_gradients[k][i * l.width + b * f + c];
          }
          const int64_t row = b * hidden + c;
          (i < rbf ? o.filter[row * rbf + i] : o.filter_bias[row]) = sum;
        }
      }
    }
    if (k == 0) {
      zero(o.message2 + 2 * hidden * hidden, hidden * hidden);
      zero(o.message2_bias + 2 * hidden, hidden);
    }
    if (k + 1 == s.layers.size()) {  // a_vv
      zero(o.update2 + hidden * hidden, hidden * hidden);
      zero(o.update2_bias + hidden, hidden);
    }
  }
  zero(out.embedding, m.species * hidden);
  for (int64_t i = 0; i < n; ++i) {
    T* row = out.embedding + in.species[i] * hidden;
    for (int64_t c = 0; c < hidden; ++c) row[c] += s.gs0.d[i * f + c];
  }
  zero(out.readout2, m.readout);
  *out.readout2_bias = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T *a = s.ar.v + i * s.readout, *d = s.ar.d + i * s.readout;
    for (int64_t c = 0; c < m.readout; ++c) {
      out.readout2[c] += s.seeds.d[i] * a[c] + s.seeds.v[i] * d[c];
    }
    *out.readout2_bias += s.seeds.d[i];
  }
}

}  // namespace

template <typename T>
size_t training_bytes(const TrainingInput<T>& input, bool gradients) {
  return Space<T>(input, nullptr, gradients).bytes;
}

template <typename T>
void training_forward(const TrainingInput<T>& input, const TrainingParameters<const T>& parameters,
                      const Kernels<T>& kernels, bool gradients, void* work, T* energies,
                      T* pair_gradients) {
  Space<T> space(input, work, gradients);
  on_threads(space.threads, [&](int thread, int team) {
    Pass<T> pass(input, space, kernels, false, thread, team);
    pack(kernels, input.model, space, parameters);
    pass.geometry(nullptr);
    pass.filters();
    pass.set_seeds(nullptr);
    pass.forward(parameters.embedding);
    pass.write_energies(energies);
    if (!pair_gradients) return;
    pass.clear_gradients();
    pass.backward();
    pass.write_gradients(pair_gradients);
  });
}

template <typename T>
void training_backward(const TrainingInput<T>& input, const Kernels<T>& kernels, void* work,
                       const T* c, const T* u, const TrainingParameters<T>& out) {
  Space<T> space(input, work, true);
  const int64_t n = input.graph->num_atoms;
  const std::vector<GradientTask<T>> tasks = gradient_tasks(space, n, out);
  const auto count = static_cast<int64_t>(tasks.size());
  on_threads(space.threads, [&](int thread, int team) {
    Pass<T> pass(input, space, kernels, true, thread, team);
    pass.geometry(u);
    pass.set_seeds(c);
    pass.forward(nullptr);
    pass.backward();
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task <= count; ++task) {
      if (task == 0) {
        small_gradients(input, space, team, out);
      } else {
        run_gradient(kernels, tasks[static_cast<size_t>(task - 1)],
                     space.of_thread[static_cast<size_t>(thread)].rows);
      }
    }
  });
}

#define MLFF_INSTANCE(T)                                                                          \
  template size_t training_bytes<T>(const TrainingInput<T>&, bool);                               \
  template void training_forward<T>(const TrainingInput<T>&, const TrainingParameters<const T>&,  \
                                    const Kernels<T>&, bool, void*, T*, T*);                      \
  template void training_backward<T>(const TrainingInput<T>&, const Kernels<T>&, void*, const T*, \
                                     const T*, const TrainingParameters<T>&)
MLFF_INSTANCE(float);
MLFF_INSTANCE(double);
#undef MLFF_INSTANCE

}  // namespace mlff
