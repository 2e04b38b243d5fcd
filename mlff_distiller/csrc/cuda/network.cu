#include <algorithm>
#include <cmath>
#include <string>

#include "core/edges.h"
#include "core/error.h"
#include "core/weights.h"
#include "cuda/network.h"

namespace mlff {
namespace gpu {
namespace {

int padded_channels(int64_t hidden) {
  return static_cast<int>((hidden + kChannels - 1) / kChannels * kChannels);
}

template <typename T>
std::vector<T> values_of(const PackedMatrix<T>& matrix) {
  mlff::GemmCall<T> call;
  matrix.fill(call);
  return std::vector<T>(call.b, call.b + matrix.k() * matrix.n());
}

template <typename T>
std::vector<T> transposed(const std::vector<T>& from, int64_t rows, int64_t columns) {
  std::vector<T> to(from.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      to[static_cast<size_t>(j * rows + i)] = from[static_cast<size_t>(i * columns + j)];
    }
  }
  return to;
}

// From the CPU's chunks of channels to ours: [items][F / theirs][blocks][theirs] to
// [items][F / 32][blocks][32].
template <typename T>
std::vector<T> rechunk(const T* from, int64_t items, int64_t blocks, int64_t f) {
  constexpr int64_t kTheirs = kChunkBytes / static_cast<int64_t>(sizeof(T));
  std::vector<T> to(static_cast<size_t>(items * blocks * f));
  for (int64_t i = 0; i < items; ++i) {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t c = 0; c < f; ++c) {
        to[static_cast<size_t>(i * blocks * f + (c / kChannels * blocks + b) * kChannels +
                               c % kChannels)] =
            from[i * blocks * f + (c / kTheirs * blocks + b) * kTheirs + c % kTheirs];
      }
    }
  }
  return to;
}

}  // namespace

template <typename T>
Network<T>::Network(const ModelFile& model, Dense& dense, bool half_tables, bool fuse)
    : dense_(dense),
      num_interactions_(model.num_interactions),
      f_(padded_channels(model.hidden_dim)),
      norm_epsilon_(static_cast<T>(model.norm_epsilon)),
      norm_shift_(static_cast<T>(model.norm_shift)),
      cutoff_(model.cutoff),
      filters_(model, f_, half_tables),
      layers_(static_cast<size_t>(model.num_interactions)),
      num_species_(static_cast<int>(model.elements.size())) {
  load_weights(model);
  // Whoever allows products to round has them from tensor cores, which the fused kernels do not
  // use.
  fuse_ = fuse && !rounds_products(dense.math()) && fused_fits<T>(f_, readout_width_);
  const Repulsion repulsion(model);
  if (repulsion.active()) repulsion_.assign(repulsion.pairs());
  screening_ = repulsion.screening();
}

template <typename T>
void Network<T>::load_weights(const ModelFile& model) {
  Kernels<T> plain;  // of the CPU's layout only this is used: row-major, unpacked
  plain.lanes = 1;
  plain.gemm_vectors = 0;
  const Weights<T> weights(model, plain, f_);
  const auto bias = [](const Buffer<T>& from, int64_t count, DeviceMemory<T>& to) {
    to.assign(from.data(), count);
  };
  for (int64_t k = 0; k < num_interactions_; ++k) {
    const InteractionWeights<T>& from = weights.interactions[static_cast<size_t>(k)];
    Layer& to = layers_[static_cast<size_t>(k)];
    const bool last = k + 1 == num_interactions_;
    to.mix.assign(values_of(from.mix.forward));
    to.mix_reverse.assign(values_of(from.mix.reverse));
    to.update_in.assign(values_of(from.update_in.forward));
    to.update_in_reverse.assign(values_of(from.update_in.reverse));
    bias(from.update_in.bias, f_, to.update_in_bias);
    // The CPU has a_ss and the rest as two products; here it is one, the reverse one's transpose.
    const std::vector<T> reverse = values_of(from.update_reverse);
    to.update_out_reverse.assign(reverse);
    to.update_out.assign(transposed(reverse, from.update_reverse.k(), from.update_reverse.n()));
    std::vector<T> all(from.update_ss.bias.data(), from.update_ss.bias.data() + f_);
    const T* rest = from.update_rest.bias.data();
    all.insert(all.end(), rest, rest + (last ? 1 : 2) * f_);
    to.update_out_bias.assign(all);
    if (k == 0) continue;
    to.message_in.assign(values_of(from.message_in.forward));
    to.message_in_reverse.assign(values_of(from.message_in.reverse));
    bias(from.message_in.bias, f_, to.message_in_bias);
    to.message_out.assign(values_of(from.message_out.forward));
    to.message_out_reverse.assign(values_of(from.message_out.reverse));
    bias(from.message_out.bias, 3 * f_, to.message_out_bias);
  }
  embedding_.assign(weights.embedding.data(), num_species_ * f_);
  species_x_.assign(rechunk(weights.species_x.data(), num_species_, 2, f_));
  readout_width_ = static_cast<int>(weights.padded_readout);
  readout_in_.assign(values_of(weights.readout_in.forward));
  readout_in_reverse_.assign(values_of(weights.readout_in.reverse));
  bias(weights.readout_in.bias, readout_width_, readout_in_bias_);
  readout_out_.assign(weights.readout_out.data(), num_species_ * readout_width_);
  offsets_.assign(weights.offsets);
  if (!model.has_uncertainty) return;
  uncertainty_.assign(values_of(weights.uncertainty.forward));
  bias(weights.uncertainty.bias, readout_width_, uncertainty_bias_);
  floor_squared_ = weights.floor_squared;
}

// Every buffer of a step.
template <typename T>
template <typename Self, typename F>
void Network<T>::each_of_step(Self& net, const NeighborView& list, bool gradients, F&& f) {
  const int64_t n = list.n_local, rows = list.n_rows, edges = list.edge_capacity, c = net.f_;
  const int64_t layers = net.num_interactions_;
  const auto if_gradients = [gradients](int64_t count) { return gradients ? count : -1; };
  for (int64_t k = 0; k < layers; ++k) {
    auto& layer = net.layers_[static_cast<size_t>(k)];
    f(layer.vu, n * 6 * c);
    f(layer.a, n * 3 * c);
    f(layer.slope, n * c);
    f(layer.features, k > 0 ? rows * 5 * c : -1);
    f(layer.x2, k > 0 ? n * c : -1);
    f(layer.v, k > 0 ? n * 3 * c : -1);
    f(layer.message_slope, k > 0 ? n * c : -1);
  }
  f(net.records_, edges);
  f(net.edge_ends_, n);
  f(net.vectors_, 3 * edges);
  f(net.energies_, n);
  f(net.centre_sums_, kCentreSums * n);
  f(net.s_, n * c);
  f(net.cat_, n * 2 * c);
  f(net.last_v_, n * 3 * c);
  f(net.hidden_, n * c);
  f(net.x_, n * 3 * c);
  f(net.readout_, n * net.readout_width_);
  f(net.readout_slope_, n * net.readout_width_);
  f(net.pair_gradients_, if_gradients(3 * edges));
  f(net.partial_, if_gradients(c / kChannels * edges * 4));
  f(net.adjoints_[0], if_gradients(rows * 4 * c));
  f(net.adjoints_[1], layers > 1 ? if_gradients(rows * 4 * c) : -1);
  f(net.gx_, if_gradients(n * 3 * c));
  f(net.gs_, if_gradients(n * c));
  f(net.gv_, if_gradients(n * 3 * c));
  f(net.ga_, if_gradients(n * 3 * c));
  f(net.gcat_, if_gradients(n * 2 * c));
  f(net.gvu_, if_gradients(n * 6 * c));
}

// Every buffer of the model.
template <typename T>
template <typename F>
void Network<T>::each_of_model(F&& f) const {
  for (const Layer& layer : layers_) {
    for (const DeviceMemory<T>* weights :
         {&layer.mix, &layer.mix_reverse, &layer.update_in, &layer.update_in_reverse,
          &layer.update_in_bias, &layer.update_out, &layer.update_out_reverse,
          &layer.update_out_bias, &layer.message_in, &layer.message_in_reverse,
          &layer.message_in_bias, &layer.message_out, &layer.message_out_reverse,
          &layer.message_out_bias}) {
      f(*weights, weights->count());
    }
  }
  for (const DeviceMemory<T>* weights :
       {&embedding_, &species_x_, &readout_in_, &readout_in_reverse_, &readout_in_bias_,
        &readout_out_, &uncertainty_, &uncertainty_bias_}) {
    f(*weights, weights->count());
  }
  filters_.each(f);
  f(offsets_, offsets_.count());
  f(repulsion_, repulsion_.count());
}

template <typename T>
void Network<T>::resize(const NeighborView& list, bool gradients) {
  // Buffers only ever grow, so the sum changes whenever one of them does. Memory may run out
  // halfway.
  const size_t before = bytes();
  ++generation_;
  each_of_step(*this, list, gradients, require);
  if (bytes() == before) --generation_;
}

template <typename T>
void Network<T>::begin(const NeighborView& list, const double* weights, bool gradients,
                       double warn_distance, cudaStream_t stream) {
  list_ = list;
  weights_ = weights;
  gradients_ = gradients;
  edge_geometry(list, cutoff_, warn_distance, filters_.inverse_spacing(), filters_.intervals(),
                records_.data(), edge_ends_.data(), vectors_.data(), stream);
}

template <typename T>
EdgeCall<T> Network<T>::pass(int64_t k) const {
  const Layer& layer = layers_[static_cast<size_t>(k)];
  EdgeCall<T> pass;
  pass.n_local = list_.n_local;
  pass.edge_capacity = list_.edge_capacity;
  pass.num_channels = f_;
  pass.offsets = list_.offsets;
  pass.ends = edge_ends_.data();
  pass.species = list_.species;
  pass.edges = records_.data();
  pass.filter = filters_.view(k);
  pass.embedding = embedding_.data();
  pass.species_x = species_x_.data();
  pass.v_in = layer.v.data();
  pass.partial = partial_.data();
  pass.accumulate = k + 1 != num_interactions_;
  return pass;
}

template <typename T>
UpdateCall<T> Network<T>::update(int64_t k) {
  Layer& layer = layers_[static_cast<size_t>(k)];
  UpdateCall<T> u;
  u.n = list_.n_local;
  u.num_channels = f_;
  u.last = k + 1 == num_interactions_;
  u.norm_epsilon = norm_epsilon_;
  u.norm_shift = norm_shift_;
  u.vu = layer.vu.data();
  u.bias = layer.update_out_bias.data();
  u.a = layer.a.data();
  u.cat = cat_.data();
  u.v = u.last ? last_v_.data() : layers_[static_cast<size_t>(k + 1)].v.data();
  u.s_out = s_.data();
  u.gs = gs_.data();
  u.gv = gv_.data();
  u.ga = ga_.data();
  u.gcat = gcat_.data();
  u.gvu = gvu_.data();
  return u;
}

template <typename T>
FusedCall<T> Network<T>::fused(int64_t k) {
  const Layer& layer = layers_[static_cast<size_t>(k)];
  FusedCall<T> call;
  call.update = update(k);
  call.weights.mix = layer.mix.data();
  call.weights.in = layer.update_in.data();
  call.weights.in_bias = layer.update_in_bias.data();
  call.weights.out = layer.update_out.data();
  call.weights.mix_reverse = layer.mix_reverse.data();
  call.weights.in_reverse = layer.update_in_reverse.data();
  call.weights.out_reverse = layer.update_out_reverse.data();
  call.slope = layer.slope.data();
  call.adjoints = adjoints(k);
  call.readout.width = readout_width_;
  call.readout.in = readout_in_.data();
  call.readout.bias = readout_in_bias_.data();
  call.readout.in_reverse = readout_in_reverse_.data();
  call.readout.out = readout_out_.data();
  call.readout.offsets = offsets_.data();
  call.readout.weights = weights_;
  call.readout.species = list_.species;
  call.readout.hidden = readout_.data();
  call.readout.energies = energies_.data();
  call.gradients = gradients_;
  return call;
}

template <typename T>
void Network<T>::set_message(int64_t k, FusedCall<T>& call) {
  const Layer& layer = layers_[static_cast<size_t>(k)];
  call.message.in = layer.message_in.data();
  call.message.in_bias = layer.message_in_bias.data();
  call.message.out = layer.message_out.data();
  call.message.out_bias = layer.message_out_bias.data();
  call.message.in_reverse = layer.message_in_reverse.data();
  call.message.out_reverse = layer.message_out_reverse.data();
  call.message_slope = layer.message_slope.data();
  call.x2 = layer.x2.data();
  call.features = layer.features.data();
  call.gx = gx_.data();
}

template <typename T>
void Network<T>::multiply(int64_t m, int n, int k, const T* a, int lda, const DeviceMemory<T>& b,
                          T* c, int ldc, bool accumulate, cudaStream_t stream) {
  GemmCall<T> product;
  product.m = m;
  product.n = n;
  product.k = k;
  product.a = a;
  product.lda = lda;
  product.b = b.data();
  product.c = c;
  product.ldc = ldc;
  product.accumulate = accumulate;
  dense_.multiply(product, stream);
}

template <typename T>
void Network<T>::forward(int64_t k, cudaStream_t stream) {
  const int64_t n = list_.n_local;
  const int f = f_;
  const bool last = k + 1 == num_interactions_;
  const int parts = last ? 2 : 3;
  Layer& layer = layers_[static_cast<size_t>(k)];
  const UpdateCall<T> u = update(k);

  EdgeCall<T> edges = pass(k);
  edges.rows = layer.features.data();
  edges.s_in = s_.data();
  edges.s_out = cat_.data();
  edges.s_stride = 2 * f;
  edges.v_out = u.v;
  edge_forward(edges, k == 0, stream);

  if (fused()) {
    FusedCall<T> call = fused(k);
    if (last) {
      fused_turn(call, stream);
    } else {
      set_message(k + 1, call);
      fused_forward(call, stream);
    }
    return;
  }
  multiply(3 * n, 2 * f, f, u.v, f, layer.mix, layer.vu.data(), 2 * f, false, stream);
  update_norms(u, stream);
  multiply(n, f, 2 * f, cat_.data(), 2 * f, layer.update_in, hidden_.data(), f, false, stream);
  silu(n, f, layer.update_in_bias.data(), hidden_.data(), layer.slope.data(), stream);
  multiply(n, parts * f, f, hidden_.data(), f, layer.update_out, layer.a.data(), parts * f, false,
           stream);
  update_combine(u, stream);

  if (!last) {
    Layer& next = layers_[static_cast<size_t>(k + 1)];
    multiply(n, f, f, s_.data(), f, next.message_in, hidden_.data(), f, false, stream);
    silu(n, f, next.message_in_bias.data(), hidden_.data(), next.message_slope.data(), stream);
    multiply(n, 3 * f, f, hidden_.data(), f, next.message_out, x_.data(), 3 * f, false, stream);
    write_features(n, f, x_.data(), next.message_out_bias.data(), next.v.data(), next.x2.data(),
                   next.features.data(), stream);
    return;
  }
  multiply(n, readout_width_, f, s_.data(), f, readout_in_, readout_.data(), readout_width_, false,
           stream);
  readout(n, readout_width_, readout_in_bias_.data(), readout_.data(), readout_out_.data(),
          offsets_.data(), list_.species, weights_, readout_slope_.data(), energies_.data(),
          stream);
  if (!gradients_) return;
  multiply(n, f, readout_width_, readout_slope_.data(), readout_width_, readout_in_reverse_,
           gs_.data(), f, false, stream);
  update_adjoint(k, stream);
}

template <typename T>
const double* Network<T>::uncertainties(cudaStream_t stream) {
  if (uncertainty_.count() == 0) return nullptr;
  double* found = uncertainties_.require(std::max<int64_t>(1, list_.n_local));
  uncertainty(list_.n_local, readout_width_, readout_.data(), uncertainty_.data(),
              uncertainty_bias_.data(), floor_squared_, list_.species, found, stream);
  return found;
}

template <typename T>
void Network<T>::update_adjoint(int64_t k, cudaStream_t stream) {
  const int64_t n = list_.n_local;
  const int f = f_;
  const bool last = k + 1 == num_interactions_;
  const int parts = last ? 2 : 3;
  Layer& layer = layers_[static_cast<size_t>(k)];
  const UpdateCall<T> u = update(k);
  update_adjoint_a(u, stream);
  multiply(n, f, parts * f, ga_.data(), parts * f, layer.update_out_reverse, hidden_.data(), f,
           false, stream);
  scale(n * f, layer.slope.data(), hidden_.data(), stream);
  multiply(n, 2 * f, f, hidden_.data(), f, layer.update_in_reverse, gcat_.data(), 2 * f, false,
           stream);
  update_adjoint_vu(u, stream);
  multiply(3 * n, f, 2 * f, gvu_.data(), 2 * f, layer.mix_reverse, gv_.data(), f, !last, stream);
  write_adjoints(n, f, gs_.data(), gcat_.data(), gv_.data(), adjoints(k), stream);
}

template <typename T>
void Network<T>::backward(int64_t k, cudaStream_t stream) {
  const int64_t n = list_.n_local;
  const int f = f_;
  Layer& layer = layers_[static_cast<size_t>(k)];
  EdgeCall<T> edges = pass(k);
  edges.rows = adjoints(k);
  edges.own = layer.features.data();
  edges.x2 = layer.x2.data();
  edges.gx = gx_.data();
  edges.gs = gs_.data();
  edges.gv = gv_.data();
  edge_backward(edges, k == 0, stream);
  if (k == 0) return;
  if (fused()) {
    FusedCall<T> call = fused(k - 1);
    set_message(k, call);
    fused_backward(call, stream);
    return;
  }
  multiply(n, f, 3 * f, gx_.data(), 3 * f, layer.message_out_reverse, hidden_.data(), f, false,
           stream);
  scale(n * f, layer.message_slope.data(), hidden_.data(), stream);
  multiply(n, f, f, hidden_.data(), f, layer.message_in_reverse, gs_.data(), f, true, stream);
  update_adjoint(k - 1, stream);
}

template <typename T>
void Network<T>::finish(double* forces, double* atom_virials, double* totals, cudaStream_t stream) {
  RepulsionView repulsion;
  repulsion.pairs = repulsion_.data();
  repulsion.num_species = num_species_;
  repulsion.screening = screening_;
  if (gradients_ || repulsion.pairs) {
    pair_gradients<T>(list_, repulsion, f_, records_.data(), vectors_.data(),
                      gradients_ ? partial_.data() : nullptr, weights_, pair_gradients_.data(),
                      centre_sums_.data(), energies_.data(), stream);
  }
  finish_forces(list_, vectors_.data(), pair_gradients_.data(),
                gradients_ ? centre_sums_.data() : nullptr, energies_.data(),
                gradients_ ? forces : nullptr, atom_virials, totals, stream);
}

template <typename T>
void Network<T>::name_edges(cudaStream_t stream) {
  gpu::name_edges(list_, vectors_.data(), stream);
}

template <typename T>
size_t Network<T>::bytes() const {
  BytesOnDevice bytes;
  each_of_step(*this, NeighborView(), false, bytes);
  each_of_model(bytes);
  return bytes.total;
}

template class Network<float>;
template class Network<double>;

}  // namespace gpu
}  // namespace mlff
