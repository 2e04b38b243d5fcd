#include "core/network.h"

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

// Most centres per tile. Larger tiles read weights and tables less often, but leave L2. Exact
// filters take some kB an edge.
constexpr int64_t kTile = 96;
constexpr int64_t kExactTile = 12;

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
      padded_(padded_channels<T>(model.hidden_dim)),
      num_interactions_(model.num_interactions),
      norm_epsilon_(static_cast<T>(model.norm_epsilon)),
      norm_shift_(static_cast<T>(model.norm_shift)),
      weights_(model, kernels, padded_),
      layers_(static_cast<size_t>(model.num_interactions)) {
  table_.build(model, kernels, padded_, tabulate);
}

template <typename T>
int64_t Network<T>::tile_size(int64_t n_local, int num_threads) const {
  // Every thread gets the same number of tiles of one size.
  const int64_t most = table_.tabulated() ? kTile : kExactTile;
  const int64_t share = (n_local + num_threads - 1) / num_threads;
  const int64_t tiles = (share + most - 1) / most;
  return tiles > 0 ? (share + tiles - 1) / tiles : 1;
}

template <typename T>
void Network<T>::prepare(const Graph& graph, const EdgeGeometry<T>& edges, int num_threads,
                         const Outputs& outputs, bool profile) {
  graph_ = graph;
  edges_ = &edges;
  outputs_ = outputs;
  profile_ = profile;
  const int64_t n = graph.n_local, f = padded_;
  tile_ = tile_size(n, num_threads);
  const int64_t tiles = (n + tile_ - 1) / tile_;
  num_threads_ = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, tiles)));

  if (scratch_.size() < static_cast<size_t>(num_threads_)) {
    scratch_.resize(static_cast<size_t>(num_threads_));
  }
  const int64_t num_edges = n ? graph.offsets[n] : 0;
  each_of_graph(*this, n, graph.n_rows, outputs.pair_gradients ? num_edges : -1, require);
  for (Scratch& w : scratch_) {
    each_of_tile(w, tile_, f, weights_.padded_readout, outputs.uncertainties != nullptr, require);
  }
}

// Every buffer whose size depends on the graph. num_edges < 0: no gradients are wanted.
template <typename T>
template <typename Self, typename F>
void Network<T>::each_of_graph(Self& net, int64_t n, int64_t n_rows, int64_t num_edges, F&& f) {
  const int64_t c = net.padded_, layers = net.num_interactions_;
  for (int64_t k = 0; k < layers; ++k) {
    auto& layer = net.layers_[static_cast<size_t>(k)];
    const bool last = k + 1 == layers, first = k == 0;
    f(layer.vu, last ? -1 : n * 6 * c);
    f(layer.a, last ? -1 : n * 2 * c);
    f(layer.slope, last ? -1 : n * c);
    f(layer.features, first ? -1 : n_rows * 5 * c);
    f(layer.x2, first ? -1 : n * c);
    f(layer.v, first ? -1 : n * 3 * c);
    f(layer.message_slope, first ? -1 : n * c);
  }
  const bool gradients = num_edges >= 0;
  f(net.s_, n * c);
  f(net.gradients_, gradients ? 4 * num_edges : -1);
  f(net.adjoints_[0], gradients ? n_rows * 4 * c : -1);
  f(net.adjoints_[1], gradients && layers > 1 ? n_rows * 4 * c : -1);
}

// Every buffer of a thread, for tiles of m centres.
template <typename T>
template <typename Self, typename F>
void Network<T>::each_of_tile(Self& w, int64_t m, int64_t c, int64_t readout, bool uncertain,
                              F&& f) {
  f(w.cat, m * 2 * c);
  f(w.v, m * 3 * c);
  f(w.vu, m * 6 * c);
  f(w.gvu, m * 6 * c);
  f(w.hidden, m * c);
  f(w.slope, m * c);
  f(w.a, m * 3 * c);
  f(w.ga, m * 3 * c);
  f(w.gs, m * c);
  f(w.gv, m * 3 * c);
  f(w.gcat, m * 2 * c);
  f(w.readout, m * readout);
  f(w.readout_slope, m * readout);
  f(w.deviations, uncertain ? m * readout : -1);
  f(w.x, m * 3 * c);
  f(w.sums, m * 5 * c);
  f(w.edge_work, m * 20 * kChunkBytes / static_cast<int64_t>(sizeof(T)));
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
TileCall<T> Network<T>::tile_call(int64_t k, int64_t begin, int64_t m, Scratch& w) {
  const int64_t tile = begin / tile_, first = edges_->first(tile);
  TileCall<T> call;
  call.num_channels = padded_;
  call.num_centres = m;
  call.num_edges = edges_->count(tile);
  call.edges = edges_->records() + first;
  call.filter = table_.tabulated() ? table_.rows(k)
                                   : table_.evaluate(k, call.num_edges,
                                                     edges_->inverse_distances() + first, w.exact);
  call.species = graph_.species;
  call.species_x = weights_.species_x.data();
  call.gradients = gradients_.data() + 4 * first;
  call.work = w.edge_work.data();
  return call;
}

template <typename T>
UpdateCall<T> Network<T>::update_call(int64_t m, const T* vu) const {
  UpdateCall<T> call;
  call.m = m;
  call.num_channels = padded_;
  call.vu = vu;
  call.norm_epsilon = norm_epsilon_;
  call.norm_shift = norm_shift_;
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
    const int32_t species = graph_.species[begin + i];
    T* s = cat + i * 2 * f;
    if (k > 0) {
      std::memcpy(s, s_.data() + (begin + i) * f, sizeof(T) * static_cast<size_t>(f));
    } else if (species < 0) {
      std::memset(s, 0, sizeof(T) * static_cast<size_t>(f));
    } else {
      std::memcpy(s, weights_.embedding.data() + species * f, sizeof(T) * static_cast<size_t>(f));
    }
  }
  const size_t vector_bytes = sizeof(T) * static_cast<size_t>(m * 3 * f);
  TileCall<T> call = tile_call(k, begin, m, w);
  call.s = cat;
  call.s_stride = 2 * f;
  call.v = v;
  if (k == 0) {
    std::memset(v, 0, vector_bytes);
    kernels_.forward_first(call);
  } else {
    std::memcpy(v, layer.v.data() + begin * 3 * f, vector_bytes);
    call.rows = layer.features.data();
    kernels_.forward(call);
  }
  watch.lap(w.profile.edges_forward);

  T* vu = last ? w.vu.data() : layer.vu.data() + begin * 6 * f;
  T* a = last ? w.a.data() : layer.a.data() + begin * 2 * f;
  T* slope = last ? w.slope.data() : layer.slope.data() + begin * f;
  kernels_.gemm(product(weights.mix.forward, 3 * m, v, vu));
  UpdateCall<T> update = update_call(m, vu);
  update.last = last;
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
    T* gradients = call.gradients;
    std::fill(gradients, gradients + 4 * call.num_edges, T(0));
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
  GemmCall<T> in = product(weights.message_in.forward, m, w.cat.data(), w.hidden.data());
  in.lda = 2 * f;
  in.bias = weights.message_in.bias.data();
  in.epilogue = Epilogue::kSilu;
  in.d = layer.message_slope.data() + begin * f;
  in.ldd = f;
  kernels_.gemm(in);

  GemmCall<T> out = product(weights.message_out.forward, m, w.hidden.data(), w.x.data());
  out.bias = weights.message_out.bias.data();
  kernels_.gemm(out);
  kernels_.write_features(m, f, w.x.data(), layer.v.data() + begin * 3 * f,
                          layer.x2.data() + begin * f, layer.features.data() + begin * 5 * f);
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
  if (outputs_.uncertainties) uncertainties(begin, m, w);

  for (int64_t i = 0; i < m; ++i) {
    const int32_t species = graph_.species[begin + i];
    const T* out = weights_.readout_out.data() + std::max(species, 0) * width;
    const T* hidden = w.readout.data() + i * width;
    T* slope = w.readout_slope.data() + i * width;
    double energy = 0.0;
    for (int64_t j = 0; j < width; ++j) {
      energy += static_cast<double>(hidden[j]) * static_cast<double>(out[j]);
      slope[j] *= out[j];
    }
    if (outputs_.energy_weights) {
      const T weight = static_cast<T>(outputs_.energy_weights[begin + i]);
      for (int64_t j = 0; j < width; ++j) slope[j] *= weight;
    }
    double& total = outputs_.atomic_energies[begin + i];  // holds the repulsion
    if (species >= 0) total += energy + weights_.offsets[static_cast<size_t>(species)];
  }
  if (!outputs_.pair_gradients) return;
  kernels_.gemm(product(weights_.readout_in.reverse, m, w.readout_slope.data(), w.gs.data()));
}

// sqrt(floor^2 + |W h + b|^2) of the features h of the last layer, which readout() has left.
template <typename T>
void Network<T>::uncertainties(int64_t begin, int64_t m, Scratch& w) {
  const int64_t width = weights_.padded_readout;
  GemmCall<T> whiten =
      product(weights_.uncertainty.forward, m, w.readout.data(), w.deviations.data());
  whiten.bias = weights_.uncertainty.bias.data();
  kernels_.gemm(whiten);
  for (int64_t i = 0; i < m; ++i) {
    const T* deviations = w.deviations.data() + i * width;
    double sum = weights_.floor_squared;
    for (int64_t j = 0; j < width; ++j) {
      sum += static_cast<double>(deviations[j]) * static_cast<double>(deviations[j]);
    }
    outputs_.uncertainties[begin + i] = graph_.species[begin + i] < 0 ? 0.0 : std::sqrt(sum);
  }
}

// From adjoints of the update block's results (w.gs; w.gv unless k is last) to those of its
// arguments, stored as the rows that neighbours read.
template <typename T>
void Network<T>::update_adjoint(int64_t k, int64_t begin, int64_t m, const T* vu, const T* a,
                                const T* slope, const T* norms, Scratch& w) {
  const int64_t f = padded_;
  const bool last = k + 1 == num_interactions_;
  const InteractionWeights<T>& weights = weights_.interactions[static_cast<size_t>(k)];
  UpdateCall<T> update = update_call(m, vu);
  update.last = last;
  update.a = a;
  update.lda = last ? f : 2 * f;
  update.norms = norms;
  update.gs = w.gs.data();
  update.gv = w.gv.data();
  update.ga = w.ga.data();
  update.gcat = w.gcat.data();
  update.gvu = w.gvu.data();
  kernels_.update_adjoint_a(update);

  GemmCall<T> out = product(weights.update_reverse, m, w.ga.data(), w.hidden.data());
  out.epilogue = Epilogue::kScale;
  out.d = const_cast<T*>(slope);  // kScale reads it: one pointer for both, registers are short
  out.ldd = f;
  kernels_.gemm(out);
  kernels_.gemm(product(weights.update_in.reverse, m, w.hidden.data(), w.gcat.data()));
  kernels_.update_adjoint_vu(update);

  GemmCall<T> mix = product(weights.mix.reverse, 3 * m, w.gvu.data(), w.gv.data());
  mix.epilogue = last ? Epilogue::kStore : Epilogue::kAccumulate;
  kernels_.gemm(mix);

  kernels_.write_adjoints(m, f, w.gs.data(), w.gcat.data(), w.gv.data(),
                          adjoints(k) + begin * 4 * f);
}

// D += dE/dd r + (1 - r r^T)/d g for the edges of a tile; D holds the repulsion.
template <typename T>
void Network<T>::write_gradients(int64_t begin) {
  const int64_t tile = begin / tile_, first = edges_->first(tile);
  double* out = outputs_.pair_gradients + 3 * first;
  for (int64_t e = 0; e < edges_->count(tile); ++e) {
    const T* g = gradients_.data() + 4 * (first + e);
    const T* r = edges_->records()[first + e].r;
    const T inverse = edges_->inverse_distances()[first + e];
    double* to = out + 3 * static_cast<int64_t>(edges_->slots()[first + e]);
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
  Stopwatch watch(profile_);
  TileCall<T> call = tile_call(k, begin, m, w);
  call.rows = adjoints(k);
  call.centres = layer.features.data() + begin * 5 * f;
  call.sums = w.sums.data();
  kernels_.backward(call);
  kernels_.finish_sums(m, f, w.sums.data(), layer.x2.data() + begin * f,
                       layer.v.data() + begin * 3 * f, adjoints(k) + begin * 4 * f, w.x.data(),
                       w.gs.data(), w.gv.data());
  watch.lap(w.profile.edges_backward);

  GemmCall<T> out = product(weights.message_out.reverse, m, w.x.data(), w.hidden.data());
  out.epilogue = Epilogue::kScale;
  out.d = layer.message_slope.data() + begin * f;
  out.ldd = f;
  kernels_.gemm(out);
  GemmCall<T> in = product(weights.message_in.reverse, m, w.hidden.data(), w.gs.data());
  in.epilogue = Epilogue::kAccumulate;
  kernels_.gemm(in);

  // Norms are cheaper to recompute than to keep.
  const T* vu = below.vu.data() + begin * 6 * f;
  UpdateCall<T> norms = update_call(m, vu);
  norms.cat = w.cat.data();
  kernels_.update_norms(norms);
  update_adjoint(k - 1, begin, m, vu, below.a.data() + begin * 2 * f,
                 below.slope.data() + begin * f, w.cat.data(), w);
  watch.lap(w.profile.dense_backward);
}

template <typename T>
void Network<T>::backward_first_tile(int64_t begin, int64_t end, Scratch& w) {
  Stopwatch watch(profile_);
  TileCall<T> call = tile_call(0, begin, end - begin, w);
  call.centres = adjoints(0) + begin * 4 * padded_;
  kernels_.backward_first(call);
  write_gradients(begin);
  watch.lap(w.profile.edges_backward);
}

template <typename T>
size_t Network<T>::bytes() const {
  Bytes bytes;
  each_of_graph(*this, 0, 0, 0, bytes);
  for (const Scratch& w : scratch_) {
    each_of_tile(w, 0, 0, 0, true, bytes);
    w.exact.each(bytes);
  }
  return bytes.total + weights_.bytes() + table_.report().bytes;
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
