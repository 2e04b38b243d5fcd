// The work space of a training step, laid out: every array of both passes. Included by
// training.cpp.
#pragma once

#include <algorithm>

#include "core/training.h"
#include "core/training_weights.h"

namespace mlff {
namespace {

// Atoms whose rows stay in L2 through a chain of dense layers; a multiple of the kernels' rows.
constexpr int64_t kTile = 96;
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

}  // namespace
}  // namespace mlff
