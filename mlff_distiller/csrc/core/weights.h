// All parameters of the network but the filters, padded and packed for the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "core/gemm.h"
#include "core/kernels.h"
#include "core/memory.h"
#include "core/model_file.h"

namespace mlff {

// One dense layer y = W x + b: forward product with bias, reverse product with the transpose.
template <typename T>
struct DenseLayer {
  PackedMatrix<T> forward, reverse;
  Buffer<T> bias;
};

template <typename T>
struct InteractionWeights {
  DenseLayer<T> message_in;        // F -> F
  DenseLayer<T> message_out;       // F -> x0 | x1 | x2
  DenseLayer<T> mix;               // F -> V v | U v, no bias
  DenseLayer<T> update_in;         // s | norm -> F
  DenseLayer<T> update_ss;         // F -> a_ss (forward only)
  DenseLayer<T> update_rest;       // F -> a_sv | a_vv, last: a_sv (forward only)
  PackedMatrix<T> update_reverse;  // ga_ss | ga_sv | ga_vv, last: ga_ss | ga_sv -> F
};

template <typename T>
struct Weights {
  // Packs for `kernels`; `padded` is the padded F.
  Weights(const ModelFile& model, const Kernels<T>& kernels, int64_t padded);

  size_t bytes() const;

  Buffer<T> embedding;  // [species][F]
  Buffer<T> species_x;  // [species][F/chunk][x0 | x1][chunk] of the first interaction
  std::vector<InteractionWeights<T>> interactions;
  int64_t padded_readout = 0;   // width of the readout, padded
  DenseLayer<T> readout_in;     // F -> width
  Buffer<T> readout_out;        // [species][width], each species' energy scale included
  std::vector<double> offsets;  // [species], eV: scaled bias and reference energy
  // Of uncertainties, empty without: a linear layer (forward only) and the floor.
  DenseLayer<T> uncertainty;   // width -> width
  double floor_squared = 0.0;  // (eV/Angstrom)^2
};

extern template struct Weights<float>;
extern template struct Weights<double>;

}  // namespace mlff
