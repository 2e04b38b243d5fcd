// From torch's weights to those of a step, and from a step's adjoints to their gradients. Included
// by training.cpp.
#pragma once

#include <cstring>

#include "core/training_space-inl.h"

namespace mlff {
namespace {

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
}  // namespace mlff
