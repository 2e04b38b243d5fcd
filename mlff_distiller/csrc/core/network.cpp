#include "network.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlff {
namespace {

// A multiple of the matrix kernels' 12 rows; larger tiles leave L2.
constexpr int64_t kTile = 48;

template <typename T>
int64_t padded_channels(int64_t hidden) {
  constexpr int64_t kStep = 64 / static_cast<int64_t>(sizeof(T));
  return (hidden + kStep - 1) / kStep * kStep;
}

// Adds the CPU time of this thread since its construction, or the last lap, to a phase. Not wall
// time: on a shared machine that would mostly show who else was running.
class Stopwatch {
 public:
  explicit Stopwatch(bool on) : on_(on) {
    if (on_) start_ = now();
  }
  void lap(double& phase) {
    if (!on_) return;
    const double time = now();
    phase += time - start_;
    start_ = time;
  }

 private:
  static double now() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
#else
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
#endif
  }
  bool on_;
  double start_ = 0.0;
};

// C = A B with leading dimensions equal to the widths unless given.
template <typename T>
GemmCall<T> product(const PackedMatrix<T>& matrix, int64_t m, const T* a, T* c) {
  GemmCall<T> call;
  matrix.fill(call);
  call.m = m;
  call.a = a;
  call.lda = call.k;
  call.c = c;
  call.ldc = call.n;
  return call;
}

}  // namespace

template <typename T>
Network<T>::Network(const ModelFile& model, const Kernels<T>& kernels, bool tabulate)
    : kernels_(kernels),
      basis_(model),
      padded_(padded_channels<T>(model.hidden_dim)),
      num_interactions_(model.num_interactions),
      weights_(model, kernels, padded_),
      tabulate_(tabulate),
      layers_(static_cast<size_t>(model.num_interactions)) {
  table_.build(model, basis_, padded_, tabulate);
}

template <typename T>
void Network<T>::prepare(const Graph& graph, const EdgeGeometry<T>& edges, int num_threads,
                         const Outputs& outputs, bool profile) {
  graph_ = graph;
  edges_ = &edges;
  outputs_ = outputs;
  profile_ = profile;
  const int64_t n = graph.n_local, f = padded_;
  const int64_t share = (n + num_threads - 1) / num_threads;
  tile_ = std::max<int64_t>(1, std::min(kTile, share));
  const int64_t tiles = (n + tile_ - 1) / tile_;
  num_threads_ = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, tiles)));

  for (int64_t k = 0; k < num_interactions_; ++k) {
    Layer& layer = layers_[static_cast<size_t>(k)];
    if (k + 1 < num_interactions_) {
      layer.vu.require(n * 6 * f);
      layer.a.require(n * 2 * f);
      layer.slope.require(n * f);
    }
    if (k > 0) {
      layer.features.require(graph.n_rows * 5 * f);
      layer.x2.require(n * f);
      layer.v.require(n * 3 * f);
      layer.message_slope.require(n * f);
    }
  }
  s_.require(n * f);
  if (outputs.pair_gradients) {
    adjoints_[0].require(graph.n_rows * 4 * f);
    if (num_interactions_ > 1) adjoints_[1].require(graph.n_rows * 4 * f);
  }
  if (scratch_.size() < static_cast<size_t>(num_threads_)) {
    scratch_.resize(static_cast<size_t>(num_threads_));
  }
  for (Scratch& w : scratch_) {
    w.cat.require(tile_ * 2 * f);
    w.v.require(tile_ * 3 * f);
    w.vu.require(tile_ * 6 * f);
    w.gvu.require(tile_ * 6 * f);
    w.hidden.require(tile_ * f);
    w.slope.require(tile_ * f);
    w.a.require(tile_ * 3 * f);
    w.ga.require(tile_ * 3 * f);
    w.gs.require(tile_ * f);
    w.gv.require(tile_ * 3 * f);
    w.gcat.require(tile_ * 2 * f);
    w.readout.require(tile_ * weights_.padded_readout);
    w.readout_slope.require(tile_ * weights_.padded_readout);
    w.sums.require(5 * f);
    w.gradients.require(4 * edges.max_count());
    if (!tabulate_) {
      w.basis.require(2 * basis_.size() * edges.max_count());
      w.values.resize(static_cast<size_t>(basis_.size()));
      w.derivatives.resize(static_cast<size_t>(basis_.size()));
    }
  }
}

template <typename T>
template <typename Function>
void Network<T>::for_tiles(Function&& function) {
  const int64_t n = graph_.n_local, tiles = (n + tile_ - 1) / tile_;
#pragma omp parallel for num_threads(num_threads_) schedule(dynamic, 1)
  for (int64_t t = 0; t < tiles; ++t) {
#ifdef _OPENMP
    Scratch& w = scratch_[static_cast<size_t>(omp_get_thread_num())];
#else
    Scratch& w = scratch_[0];
#endif
    function(t * tile_, std::min(n, (t + 1) * tile_), w);
  }
}

template <typename T>
EdgeCall<T> Network<T>::edge_call(int64_t k, int64_t centre, Scratch& w) {
  const int64_t first = graph_.offsets[centre];
  EdgeCall<T> call;
  call.num_channels = padded_;
  call.num_edges = edges_->counts()[centre];
  call.senders = edges_->senders() + first;
  call.intervals = edges_->intervals() + first;
  call.fractions = edges_->fractions() + first;
  call.directions = edges_->directions() + 3 * first;
  call.filter.rows = table_.rows(k);
  call.filter.inverse_spacing = static_cast<T>(table_.inverse_spacing());
  call.species = graph_.species;
  call.species_x = weights_.species_x.data();
  if (!tabulate_) {
    const int rows = basis_.size();
    for (int64_t e = 0; e < call.num_edges; ++e) {
      const double d = 1.0 / static_cast<double>(edges_->inverse_distances()[first + e]);
      basis_.evaluate(d, w.values.data(), w.derivatives.data());
      T* to = w.basis.data() + 2 * e * rows;
      for (int i = 0; i < rows; ++i) {
        to[i] = static_cast<T>(w.values[static_cast<size_t>(i)]);
        to[rows + i] = static_cast<T>(w.derivatives[static_cast<size_t>(i)]);
      }
    }
    call.filter.num_rows = rows;
    call.basis = w.basis.data();
  }
  return call;
}

template <typename T>
void Network<T>::forward(int64_t interaction) {
  for_tiles(
      [&](int64_t begin, int64_t end, Scratch& w) { forward_tile(interaction, begin, end, w); });
}

template <typename T>
void Network<T>::backward(int64_t interaction) {
  for_tiles([&](int64_t begin, int64_t end, Scratch& w) {
    if (interaction == 0) {
      backward_first_tile(begin, end, w);
    } else {
      backward_tile(interaction, begin, end, w);
    }
  });
}

template <typename T>
void Network<T>::forward_tile(int64_t k, int64_t begin, int64_t end, Scratch& w) {
  const int64_t f = padded_, m = end - begin;
  const bool last = k + 1 == num_interactions_;
  const InteractionWeights<T>& weights = weights_.interactions[static_cast<size_t>(k)];
  Layer& layer = layers_[static_cast<size_t>(k)];
  T* cat = w.cat.data();
  // Vectors after this interaction are what the next one starts from.
  T* v = last ? w.v.data() : layers_[static_cast<size_t>(k + 1)].v.data() + begin * 3 * f;
  Stopwatch watch(profile_);

  for (int64_t i = 0; i < m; ++i) {
    const int64_t c = begin + i;
    const int32_t species = graph_.species[c];
    EdgeCall<T> call = edge_call(k, c, w);
    call.s = cat + i * 2 * f;
    call.v = v + i * 3 * f;
    if (k == 0) {
      if (species < 0) {
        std::memset(call.s, 0, sizeof(T) * static_cast<size_t>(f));
      } else {
        std::memcpy(call.s, weights_.embedding.data() + species * f,
                    sizeof(T) * static_cast<size_t>(f));
      }
      std::memset(call.v, 0, sizeof(T) * static_cast<size_t>(3 * f));
      kernels_.forward_first(call);
    } else {
      std::memcpy(call.s, s_.data() + c * f, sizeof(T) * static_cast<size_t>(f));
      std::memcpy(call.v, layer.v.data() + c * 3 * f, sizeof(T) * static_cast<size_t>(3 * f));
      call.rows = layer.features.data();
      kernels_.forward(call);
    }
  }
  watch.lap(w.profile.edges_forward);

  T* vu = last ? w.vu.data() : layer.vu.data() + begin * 6 * f;
  T* a = last ? w.a.data() : layer.a.data() + begin * 2 * f;
  T* slope = last ? w.slope.data() : layer.slope.data() + begin * f;
  kernels_.gemm(product(weights.mix.forward, 3 * m, v, vu));
  UpdateCall<T> update;
  update.m = m;
  update.num_channels = f;
  update.last = last;
  update.vu = vu;
  update.a = a;
  update.lda = last ? f : 2 * f;
  update.cat = cat;
  update.v = v;
  kernels_.update_norms(update);

  GemmCall<T> in = product(weights.update_in.forward, m, cat, w.hidden.data());
  in.bias = weights.update_in.bias.data();
  in.epilogue = Epilogue::kSilu;
  in.d = slope;
  in.ldd = f;
  kernels_.gemm(in);

  GemmCall<T> ss = product(weights.update_ss.forward, m, w.hidden.data(), cat);
  ss.bias = weights.update_ss.bias.data();
  ss.epilogue = Epilogue::kAccumulate;
  ss.ldc = 2 * f;
  kernels_.gemm(ss);

  GemmCall<T> rest = product(weights.update_rest.forward, m, w.hidden.data(), a);
  rest.bias = weights.update_rest.bias.data();
  kernels_.gemm(rest);
  kernels_.update_combine(update);

  if (!last) {
    message_network(k + 1, begin, m, w);
    for (int64_t i = 0; i < m; ++i) {
      std::memcpy(s_.data() + (begin + i) * f, cat + i * 2 * f, sizeof(T) * static_cast<size_t>(f));
    }
    watch.lap(w.profile.dense_forward);
    return;
  }
  readout(begin, m, w);
  watch.lap(w.profile.dense_forward);
  if (outputs_.pair_gradients) {
    update_adjoint(k, begin, m, vu, a, slope, cat, w);
    watch.lap(w.profile.dense_backward);
  }
}

// Features of interaction k from the tile's scalars (in w.cat) and vectors.
template <typename T>
void Network<T>::message_network(int64_t k, int64_t begin, int64_t m, Scratch& w) {
  const int64_t f = padded_;
  const InteractionWeights<T>& weights = weights_.interactions[static_cast<size_t>(k)];
  Layer& layer = layers_[static_cast<size_t>(k)];
  T* features = layer.features.data() + begin * 5 * f;
  T* x2 = layer.x2.data() + begin * f;

  GemmCall<T> in = product(weights.message_in.forward, m, w.cat.data(), w.hidden.data());
  in.lda = 2 * f;
  in.bias = weights.message_in.bias.data();
  in.epilogue = Epilogue::kSilu;
  in.d = layer.message_slope.data() + begin * f;
  in.ldd = f;
  kernels_.gemm(in);

  GemmCall<T> x01 = product(weights.message_x01.forward, m, w.hidden.data(), features);
  x01.bias = weights.message_x01.bias.data();
  x01.ldc = 5 * f;
  kernels_.gemm(x01);

  GemmCall<T> second = product(weights.message_x2.forward, m, w.hidden.data(), x2);
  second.bias = weights.message_x2.bias.data();
  kernels_.gemm(second);
  kernels_.scale_vectors(m, f, x2, layer.v.data() + begin * 3 * f, features);
}

// Atomic energies, and dE/ds in w.gs.
template <typename T>
void Network<T>::readout(int64_t begin, int64_t m, Scratch& w) {
  const int64_t f = padded_, width = weights_.padded_readout;
  GemmCall<T> in = product(weights_.readout_in.forward, m, w.cat.data(), w.readout.data());
  in.lda = 2 * f;
  in.bias = weights_.readout_in.bias.data();
  in.epilogue = Epilogue::kSilu;
  in.d = w.readout_slope.data();
  in.ldd = width;
  kernels_.gemm(in);

  const T* out = weights_.readout_out.data();
  for (int64_t i = 0; i < m; ++i) {
    const T* hidden = w.readout.data() + i * width;
    T* slope = w.readout_slope.data() + i * width;
    double energy = weights_.readout_bias;
    for (int64_t j = 0; j < width; ++j) {
      energy += static_cast<double>(hidden[j]) * static_cast<double>(out[j]);
      slope[j] *= out[j];
    }
    if (outputs_.energy_weights) {
      const T weight = static_cast<T>(outputs_.energy_weights[begin + i]);
      for (int64_t j = 0; j < width; ++j) slope[j] *= weight;
    }
    const int32_t species = graph_.species[begin + i];
    double& total = outputs_.atomic_energies[begin + i];  // holds the repulsion
    if (species >= 0) {
      total += energy + weights_.reference_energies[static_cast<size_t>(species)];
    }
  }
  if (!outputs_.pair_gradients) return;
  kernels_.gemm(product(weights_.readout_in.reverse, m, w.readout_slope.data(), w.gs.data()));
}

// From adjoints of the update block's results (w.gs; w.gv unless k is last) to those of its
// arguments, stored as the rows that neighbours read.
template <typename T>
void Network<T>::update_adjoint(int64_t k, int64_t begin, int64_t m, const T* vu, const T* a,
                                const T* slope, const T* norms, Scratch& w) {
  const int64_t f = padded_;
  const bool last = k + 1 == num_interactions_;
  const InteractionWeights<T>& weights = weights_.interactions[static_cast<size_t>(k)];
  UpdateCall<T> update;
  update.m = m;
  update.num_channels = f;
  update.last = last;
  update.vu = vu;
  update.a = a;
  update.lda = last ? f : 2 * f;
  update.cat = const_cast<T*>(norms);
  update.gs = w.gs.data();
  update.gv = w.gv.data();
  update.ga = w.ga.data();
  update.gcat = w.gcat.data();
  update.gvu = w.gvu.data();
  kernels_.update_adjoint_a(update);

  GemmCall<T> out = product(weights.update_reverse, m, w.ga.data(), w.hidden.data());
  out.epilogue = Epilogue::kScale;
  out.d = const_cast<T*>(slope);
  out.ldd = f;
  kernels_.gemm(out);
  kernels_.gemm(product(weights.update_in.reverse, m, w.hidden.data(), w.gcat.data()));
  kernels_.update_adjoint_vu(update);

  GemmCall<T> mix = product(weights.mix.reverse, 3 * m, w.gvu.data(), w.gv.data());
  mix.epilogue = last ? Epilogue::kStore : Epilogue::kAccumulate;
  kernels_.gemm(mix);

  T* rows = adjoints(k) + begin * 4 * f;
  for (int64_t i = 0; i < m; ++i) {
    T* row = rows + i * 4 * f;
    const T* gs = w.gs.data() + i * f;
    const T* gcat = w.gcat.data() + i * 2 * f;
    for (int64_t j = 0; j < f; ++j) row[j] = gs[j] + gcat[j];
    std::memcpy(row + f, w.gv.data() + i * 3 * f, sizeof(T) * static_cast<size_t>(3 * f));
  }
}

// D += dE/dd r + (1 - r r^T)/d g for the centre's edges.
template <typename T>
void Network<T>::add_gradients(int64_t centre, const T* gradients) {
  const int64_t first = graph_.offsets[centre];
  const int64_t count = edges_->counts()[centre];
  double* out = outputs_.pair_gradients + 3 * first;
  for (int64_t e = 0; e < count; ++e) {
    const T* g = gradients + 4 * e;
    const T* r = edges_->directions() + 3 * (first + e);
    const T inverse = edges_->inverse_distances()[first + e];
    double* to = out + 3 * edges_->slots()[first + e];
    const T along = g[0] - (g[1] * r[0] + g[2] * r[1] + g[3] * r[2]) * inverse;
    for (int a = 0; a < 3; ++a) to[a] += static_cast<double>(along * r[a] + g[1 + a] * inverse);
  }
}

template <typename T>
void Network<T>::backward_tile(int64_t k, int64_t begin, int64_t end, Scratch& w) {
  const int64_t f = padded_, m = end - begin;
  const InteractionWeights<T>& weights = weights_.interactions[static_cast<size_t>(k)];
  Layer& layer = layers_[static_cast<size_t>(k)];
  Layer& below = layers_[static_cast<size_t>(k - 1)];
  const T* adjoint_rows = adjoints(k);
  Stopwatch watch(profile_);
  for (int64_t i = 0; i < m; ++i) {
    const int64_t c = begin + i;
    EdgeCall<T> call = edge_call(k, c, w);
    call.rows = adjoint_rows;
    call.centre = layer.features.data() + c * 5 * f;
    call.sums = w.sums.data();
    call.gradients = w.gradients.data();
    kernels_.backward(call);
    kernels_.finish_sums(f, w.sums.data(), layer.x2.data() + c * f, layer.v.data() + c * 3 * f,
                         adjoint_rows + (c * 4 + 1) * f, w.ga.data() + i * 3 * f,
                         w.gv.data() + i * 3 * f);
    std::memcpy(w.gs.data() + i * f, adjoint_rows + c * 4 * f, sizeof(T) * static_cast<size_t>(f));
    add_gradients(c, w.gradients.data());
  }
  watch.lap(w.profile.edges_backward);

  GemmCall<T> out = product(weights.message_reverse, m, w.ga.data(), w.hidden.data());
  out.epilogue = Epilogue::kScale;
  out.d = layer.message_slope.data() + begin * f;
  out.ldd = f;
  kernels_.gemm(out);
  GemmCall<T> in = product(weights.message_in.reverse, m, w.hidden.data(), w.gs.data());
  in.epilogue = Epilogue::kAccumulate;
  kernels_.gemm(in);

  // Norms are cheaper to recompute than to keep.
  const T* vu = below.vu.data() + begin * 6 * f;
  UpdateCall<T> norms;
  norms.m = m;
  norms.num_channels = f;
  norms.vu = vu;
  norms.cat = w.cat.data();
  kernels_.update_norms(norms);
  update_adjoint(k - 1, begin, m, vu, below.a.data() + begin * 2 * f,
                 below.slope.data() + begin * f, w.cat.data(), w);
  watch.lap(w.profile.dense_backward);
}

template <typename T>
void Network<T>::backward_first_tile(int64_t begin, int64_t end, Scratch& w) {
  Stopwatch watch(profile_);
  for (int64_t c = begin; c < end; ++c) {
    EdgeCall<T> call = edge_call(0, c, w);
    call.centre = adjoints(0) + c * 4 * padded_;
    call.gradients = w.gradients.data();
    kernels_.backward_first(call);
    add_gradients(c, w.gradients.data());
  }
  watch.lap(w.profile.edges_backward);
}

template <typename T>
size_t Network<T>::bytes() const {
  size_t total = weights_.bytes() + table_.report().bytes + s_.bytes() + adjoints_[0].bytes() +
                 adjoints_[1].bytes();
  for (const Layer& layer : layers_) {
    total += layer.vu.bytes() + layer.a.bytes() + layer.slope.bytes() + layer.features.bytes() +
             layer.x2.bytes() + layer.v.bytes() + layer.message_slope.bytes();
  }
  for (const Scratch& w : scratch_) {
    total += w.cat.bytes() + w.v.bytes() + w.vu.bytes() + w.gvu.bytes() + w.hidden.bytes() +
             w.slope.bytes() + w.a.bytes() + w.ga.bytes() + w.gs.bytes() + w.gv.bytes() +
             w.gcat.bytes() + w.readout.bytes() + w.readout_slope.bytes() + w.sums.bytes() +
             w.gradients.bytes() + w.basis.bytes();
  }
  return total;
}

template <typename T>
Profile Network<T>::profile() const {
  Profile total;
  for (const Scratch& w : scratch_) {
    total.edges_forward += w.profile.edges_forward;
    total.dense_forward += w.profile.dense_forward;
    total.dense_backward += w.profile.dense_backward;
    total.edges_backward += w.profile.edges_backward;
  }
  return total;
}

template <typename T>
void Network<T>::reset_profile() {
  for (Scratch& w : scratch_) w.profile = Profile();
}

template class Network<float>;
template class Network<double>;

}  // namespace mlff
