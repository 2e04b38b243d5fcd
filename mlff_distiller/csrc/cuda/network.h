// The network on the device: the passes of core/network.h over all atoms at once.
#pragma once

#include <cstdint>
#include <vector>

#include "core/graph.h"
#include "core/model_file.h"
#include "cuda/dense.h"
#include "cuda/device_memory.h"
#include "cuda/edges.h"
#include "cuda/filter_table.h"
#include "cuda/fused.h"
#include "cuda/neighbors.h"
#include "cuda/pointwise.h"

namespace mlff {
namespace gpu {

template <typename T>
class Network {
 public:
  // Copies weights and filter tables to the device. Throws InputError if the table misses its
  // bound, DeviceError if memory runs out. `dense` must outlive the network. !fuse: products one by
  // one in systems of any size.
  Network(const ModelFile& model, Dense& dense, bool half_tables, bool fuse);

  // Room for lists of that size.
  void resize(const NeighborView& list, bool gradients);
  // What a step needs before forward(0): edge records. weights: on the device, [n_local] or null.
  void begin(const NeighborView& list, const double* weights, bool gradients, double warn_distance,
             cudaStream_t stream);
  // 0 ... K-1; the last one computes energies and turns around.
  void forward(int64_t interaction, cudaStream_t stream);
  // K-1 ... 0
  void backward(int64_t interaction, cudaStream_t stream);
  // Pair gradients, forces [n_rows][3], virials of atoms [n_rows][9] or null, and totals [shares]
  // [10] (see finish_forces); without gradients only energies and their totals.
  void finish(double* forces, double* atom_virials, double* totals, cudaStream_t stream);

  // Whose edges the list's state means, see name_edges in edges.h. After begin().
  void name_edges(cudaStream_t stream);

  // Rows that neighbours read: features [n_rows][5F], adjoints [n_rows][4F].
  T* features(int64_t interaction) { return layers_[size_t(interaction)].features.data(); }
  T* adjoints(int64_t interaction) { return adjoints_[interaction & 1].data(); }
  double* energies() { return energies_.data(); }  // [n_local] eV
  // Of the step whose last forward() has run, [n_local] on the device; null without data for them.
  const double* uncertainties(cudaStream_t stream);
  int64_t num_interactions() const { return num_interactions_; }
  int num_channels() const { return f_; }  // padded to a multiple of 32
  const TableReport& table_report() const { return filters_.report(); }
  int64_t generation() const { return generation_; }  // changes whenever memory moved
  size_t bytes() const;                               // on the device

 private:
  struct Layer {
    // Weights, [in][out] and transposed for the reverse pass.
    DeviceMemory<T> mix, mix_reverse, update_in, update_in_reverse, update_in_bias;
    DeviceMemory<T> update_out, update_out_reverse, update_out_bias;
    DeviceMemory<T> message_in, message_in_reverse, message_in_bias;  // not in the first
    DeviceMemory<T> message_out, message_out_reverse, message_out_bias;
    // Kept from the forward to the reverse pass, see core/network.h.
    DeviceMemory<T> vu, a, slope, features, x2, v, message_slope;
  };

  // Call f(buffer, count of its items) for every buffer; see require and BytesOnDevice.
  template <typename Self, typename F>
  static void each_of_step(Self& network, const NeighborView& list, bool gradients, F&& f);
  template <typename F>
  void each_of_model(F&& f) const;

  void load_weights(const ModelFile& model);
  void update_adjoint(int64_t k, cudaStream_t stream);
  bool is_fused() const {
    return fuse_ && (!dense_.uses_cublas() || list_.n_local <= fused_atoms(f_));
  }
  FusedCall<T> fused_call(int64_t k);  // the update of k, without the message network
  void set_message(int64_t k, FusedCall<T>& call);
  EdgeCall<T> pass(int64_t k) const;
  UpdateCall<T> update(int64_t k);
  void multiply(int64_t m, int n, int k, const T* a, int lda, const DeviceMemory<T>& b, T* c,
                int ldc, bool accumulate, cudaStream_t stream);

  Dense& dense_;
  int64_t num_interactions_;
  int f_;
  bool fuse_ = false;
  T norm_epsilon_, norm_shift_;
  double cutoff_;
  FilterTables<T> filters_;
  std::vector<Layer> layers_;
  DeviceMemory<T> embedding_, species_x_;
  int readout_width_ = 0;
  DeviceMemory<T> readout_in_, readout_in_reverse_, readout_in_bias_, readout_out_;
  DeviceMemory<double> offsets_;
  DeviceMemory<T> uncertainty_, uncertainty_bias_;  // empty without
  double floor_squared_ = 0.0;
  DeviceMemory<RepulsionPair> repulsion_;
  Screening screening_{};
  int num_species_;

  NeighborView list_;
  const double* weights_ = nullptr;
  bool gradients_ = false;
  int64_t generation_ = 0;
  DeviceMemory<EdgeRecord<T>> records_;
  DeviceMemory<int> edge_ends_;
  DeviceMemory<double> vectors_, pair_gradients_, centre_sums_, energies_, uncertainties_;
  DeviceMemory<T> partial_;
  DeviceMemory<T> adjoints_[2];
  DeviceMemory<T> s_, cat_, last_v_, hidden_, x_, gx_, gs_, gv_, ga_, gcat_, gvu_;
  DeviceMemory<T> readout_, readout_slope_;
};

extern template class Network<float>;
extern template class Network<double>;

}  // namespace gpu
}  // namespace mlff
