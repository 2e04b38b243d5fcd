#include "core/weights.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace mlff {
namespace {

// A torch weight (out, in) seen as blocks: `out` is made of equal blocks of which `out_blocks`
// names those wanted, in order; `in` of `in_blocks` equal blocks. Every block is padded by zeros.
struct Blocks {
  std::vector<int64_t> out_blocks;
  int64_t out_size, padded_out;
  int64_t in_blocks, in_size, padded_in;

  int64_t rows() const { return in_blocks * padded_in; }
  int64_t columns() const { return static_cast<int64_t>(out_blocks.size()) * padded_out; }
};

// The matrix that a row vector is multiplied with: [in, out], or [out, in] for the reverse pass.
std::vector<double> arrange(const Tensor& weight, const Blocks& shape, bool reverse) {
  const int64_t in = shape.in_blocks * shape.in_size;
  std::vector<double> out(static_cast<size_t>(shape.rows() * shape.columns()), 0.0);
  for (size_t p = 0; p < shape.out_blocks.size(); ++p) {
    for (int64_t o = 0; o < shape.out_size; ++o) {
      const int64_t from = (shape.out_blocks[p] * shape.out_size + o) * in;
      const int64_t column = static_cast<int64_t>(p) * shape.padded_out + o;
      for (int64_t q = 0; q < shape.in_blocks; ++q) {
        for (int64_t i = 0; i < shape.in_size; ++i) {
          const int64_t row = q * shape.padded_in + i;
          const int64_t to = reverse ? column * shape.rows() + row : row * shape.columns() + column;
          out[static_cast<size_t>(to)] =
              weight.values[static_cast<size_t>(from + q * shape.in_size + i)];
        }
      }
    }
  }
  return out;
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

// y = W x + b on the model's own arrays.
std::vector<double> apply_linear(const ModelFile& model, const std::string& name,
                                 const std::vector<double>& x) {
  std::vector<double> y = model.tensor(name + ".bias").values;
  const std::vector<double>& w = model.tensor(name + ".weight").values;
  for (size_t o = 0; o < y.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
  }
  return y;
}

template <typename T>
class Packer {
 public:
  Packer(const ModelFile& model, const Kernels<T>& kernels) : model_(model), kernels_(kernels) {}

  void forward(const std::string& name, const Blocks& shape, PackedMatrix<T>& out) const {
    out.pack(kernels_, shape.rows(), shape.columns(),
             arrange(model_.tensor(name + ".weight"), shape, false));
  }
  void reverse(const std::string& name, const Blocks& shape, PackedMatrix<T>& out) const {
    out.pack(kernels_, shape.columns(), shape.rows(),
             arrange(model_.tensor(name + ".weight"), shape, true));
  }
  void bias(const std::string& name, const Blocks& shape, Buffer<T>& out) const {
    const std::vector<double>& values = model_.tensor(name + ".bias").values;
    T* to = out.require(shape.columns());
    std::fill(to, to + shape.columns(), T(0));
    for (size_t p = 0; p < shape.out_blocks.size(); ++p) {
      for (int64_t o = 0; o < shape.out_size; ++o) {
        to[static_cast<int64_t>(p) * shape.padded_out + o] =
            static_cast<T>(values[static_cast<size_t>(shape.out_blocks[p] * shape.out_size + o)]);
      }
    }
  }

 private:
  const ModelFile& model_;
  const Kernels<T>& kernels_;
};

template <typename T>
size_t bytes_of(const DenseLayer<T>& layer) {
  return layer.forward.bytes() + layer.reverse.bytes() + layer.bias.bytes();
}

}  // namespace

template <typename T>
Weights<T>::Weights(const ModelFile& model, const Kernels<T>& kernels, int64_t padded) {
  const int64_t f = model.hidden_dim;
  const int64_t species = static_cast<int64_t>(model.elements.size());
  const Packer<T> packer(model, kernels);
  auto square = [&](std::vector<int64_t> out_blocks, int64_t in_blocks) {
    return Blocks{std::move(out_blocks), f, padded, in_blocks, f, padded};
  };

  interactions.resize(static_cast<size_t>(model.num_interactions));
  for (int64_t k = 0; k < model.num_interactions; ++k) {
    const std::string at = "interactions." + std::to_string(k) + ".";
    const bool last = k + 1 == model.num_interactions;
    InteractionWeights<T>& w = interactions[static_cast<size_t>(k)];
    if (k > 0) {  // the first message network depends on the species alone, see species_x
      packer.forward(at + "message.0", square({0}, 1), w.message_in.forward);
      packer.reverse(at + "message.0", square({0}, 1), w.message_in.reverse);
      packer.bias(at + "message.0", square({0}, 1), w.message_in.bias);
      packer.forward(at + "message.2", square({0, 1, 2}, 1), w.message_out.forward);
      packer.reverse(at + "message.2", square({0, 1, 2}, 1), w.message_out.reverse);
      packer.bias(at + "message.2", square({0, 1, 2}, 1), w.message_out.bias);
    }
    packer.forward(at + "mix", square({0, 1}, 1), w.mix.forward);
    packer.reverse(at + "mix", square({0, 1}, 1), w.mix.reverse);
    packer.forward(at + "update.0", square({0}, 2), w.update_in.forward);
    packer.reverse(at + "update.0", square({0}, 2), w.update_in.reverse);
    packer.bias(at + "update.0", square({0}, 2), w.update_in.bias);
    // The model's order is a_ss, a_vv, a_sv; here the one that the last interaction lacks is last.
    const std::vector<int64_t> rest = last ? std::vector<int64_t>{2} : std::vector<int64_t>{2, 1};
    std::vector<int64_t> all = rest;
    all.insert(all.begin(), 0);
    packer.forward(at + "update.2", square({0}, 1), w.update_ss.forward);
    packer.bias(at + "update.2", square({0}, 1), w.update_ss.bias);
    packer.forward(at + "update.2", square(rest, 1), w.update_rest.forward);
    packer.bias(at + "update.2", square(rest, 1), w.update_rest.bias);
    packer.reverse(at + "update.2", square(all, 1), w.update_reverse);
  }

  const int64_t width = model.readout_dim, chunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  padded_readout = (width + chunk - 1) / chunk * chunk;
  const Blocks readout{{0}, width, padded_readout, 1, f, padded};
  packer.forward("readout.0", readout, readout_in.forward);
  packer.reverse("readout.0", readout, readout_in.reverse);
  packer.bias("readout.0", readout, readout_in.bias);
  T* out = readout_out.require(species * padded_readout);
  std::fill(out, out + species * padded_readout, T(0));
  offsets = model.tensor("reference_energies").values;
  for (int64_t z = 0; z < species; ++z) {
    const double scale = model.tensor("scales").values[static_cast<size_t>(z)];
    for (int64_t i = 0; i < width; ++i) {
      out[z * padded_readout + i] =
          static_cast<T>(scale * model.tensor("readout.2.weight").values[static_cast<size_t>(i)]);
    }
    offsets[static_cast<size_t>(z)] += scale * model.tensor("readout.2.bias").values[0];
  }

  if (model.has_uncertainty) {
    const Blocks square{{0}, width, padded_readout, 1, width, padded_readout};
    packer.forward("uncertainty", square, uncertainty.forward);
    packer.bias("uncertainty", square, uncertainty.bias);
    const double floor = model.tensor("uncertainty.floor").values[0];
    floor_squared = floor * floor;
  }

  T* embeddings = embedding.require(species * padded);
  T* x = species_x.require(species * 2 * padded);
  std::fill(embeddings, embeddings + species * padded, T(0));
  std::fill(x, x + species * 2 * padded, T(0));
  for (int64_t z = 0; z < species; ++z) {
    const double* row = &model.tensor("embedding.weight").values[static_cast<size_t>(z * f)];
    std::vector<double> hidden =
        apply_linear(model, "interactions.0.message.0", std::vector<double>(row, row + f));
    for (double& h : hidden) h = silu(h);
    const std::vector<double> message = apply_linear(model, "interactions.0.message.2", hidden);
    for (int64_t i = 0; i < f; ++i) {
      embeddings[z * padded + i] = static_cast<T>(row[i]);
      T* to = x + z * 2 * padded + i / chunk * 2 * chunk + i % chunk;
      to[0] = static_cast<T>(message[static_cast<size_t>(i)]);
      to[chunk] = static_cast<T>(message[static_cast<size_t>(f + i)]);
    }
  }
}

template <typename T>
size_t Weights<T>::bytes() const {
  size_t total = embedding.bytes() + species_x.bytes() + bytes_of(readout_in) +
                 readout_out.bytes() + bytes_of(uncertainty);
  for (const InteractionWeights<T>& w : interactions) {
    total += bytes_of(w.message_in) + bytes_of(w.message_out) + bytes_of(w.mix) +
             bytes_of(w.update_in) + bytes_of(w.update_ss) + bytes_of(w.update_rest) +
             w.update_reverse.bytes();
  }
  return total;
}

template struct Weights<float>;
template struct Weights<double>;

}  // namespace mlff
