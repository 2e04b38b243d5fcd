// One pass of a training step, forward and back, by one thread over its atoms. Included by
// training.cpp.
#pragma once

#include <cmath>
#include <cstring>

#include "core/training_space-inl.h"

namespace mlff {
namespace {

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

}  // namespace
}  // namespace mlff
