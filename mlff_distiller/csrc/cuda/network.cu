// A step: the passes over edges, and between each two of them the networks of the atoms.
#include <algorithm>

#include "cuda/network.h"
#include "cuda/network_calls-inl.h"
#include "cuda/network_load-inl.h"
#include "cuda/network_memory-inl.h"

namespace mlff {
namespace gpu {

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

  if (is_fused()) {
    FusedCall<T> call = fused_call(k);
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
  if (is_fused()) {
    FusedCall<T> call = fused_call(k - 1);
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

template class Network<float>;
template class Network<double>;

}  // namespace gpu
}  // namespace mlff
