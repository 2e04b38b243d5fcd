// Which of the network's arrays each kernel gets.
#pragma once

#include "cuda/network.h"

namespace mlff {
namespace gpu {

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
FusedCall<T> Network<T>::fused_call(int64_t k) {
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

}  // namespace gpu
}  // namespace mlff
