// A student's weights and tables, from its file to the device. Of network.cu alone, as the other
// network_*-inl.h.
#pragma once

#include <vector>

#include "core/edges.h"
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

}  // namespace gpu
}  // namespace mlff
