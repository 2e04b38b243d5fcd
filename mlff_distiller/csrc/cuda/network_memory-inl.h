// The buffers of a step, which grow with the list, and what all of them take on the device.
#pragma once

#include "cuda/network.h"

namespace mlff {
namespace gpu {

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
size_t Network<T>::bytes() const {
  BytesOnDevice bytes;
  each_of_step(*this, NeighborView(), false, bytes);
  each_of_model(bytes);
  return bytes.total;
}

}  // namespace gpu
}  // namespace mlff
