// The network's passes over tiles of atoms; engine.cpp runs them. Private to the engine.
//
// Every tile goes through a whole layer at once, so that what one dense layer writes the next one
// finds in L2: messages, mixing, update network, then the next interaction's message network. Only
// two things leave the tile: features that neighbours will read, and what the reverse pass needs.
//
// Stages over all atoms (K interactions), each a parallel loop over tiles; results do not depend on
// tiling or threads, as every row of a matrix product and every sum over edges has its own order:
//   forward 0 ... K-1     the last one turns around: readout, its adjoint, update adjoint
//   backward K-1 ... 1    edges gather adjoints, message adjoint, update adjoint below
//   backward 0            edges only
#pragma once

#include <cstdint>
#include <vector>

#include "core/edges.h"
#include "core/graph.h"
#include "core/kernels.h"
#include "core/memory.h"
#include "core/model_file.h"
#include "core/tables.h"
#include "core/weights.h"

namespace mlff {

template <typename T>
class Network {
 public:
  Network(const ModelFile& model, const Kernels<T>& kernels, bool tabulate);

  // Centres per tile for a graph, which EdgeGeometry has to use.
  int64_t tile_size(int64_t n_local, int num_threads) const;
  // Sizes every buffer for a graph; `edges` and `graph` must outlive the passes.
  void prepare(const Graph& graph, const EdgeGeometry<T>& edges, int num_threads,
               const Outputs& outputs, bool profile);
  void forward(int64_t interaction);
  void backward(int64_t interaction);

  // Rows that neighbours read: features [n_rows][5F], adjoints [n_rows][4F].
  T* features(int64_t interaction) { return layers_[size_t(interaction)].features.data(); }
  T* adjoints(int64_t interaction) { return adjoints_[interaction & 1].data(); }
  int64_t padded() const { return padded_; }
  const FilterTable<T>& table() const { return table_; }
  size_t bytes() const;
  Profile profile() const;
  void reset_profile();

 private:
  // Kept from the forward to the reverse pass, per interaction.
  struct Layer {
    Buffer<T> vu;             // [n_local][3][2F] V v | U v, but for the last
    Buffer<T> a;              // [n_local][2F] a_sv | a_vv, but for the last
    Buffer<T> slope;          // [n_local][F] silu' of the update network, but for the last
    Buffer<T> features;       // [n_rows][5F] rows, see TileCall, but for the first
    Buffer<T> x2;             // [n_local][F], but for the first
    Buffer<T> v;              // [n_local][3][F] vectors before the message, but for the first
    Buffer<T> message_slope;  // [n_local][F] silu' of the message network, but for the first
  };
  // Work space of one thread, for one tile.
  struct Scratch {
    Buffer<T> cat;            // [tile][2F] s | norm
    Buffer<T> v;              // [tile][3][F]
    Buffer<T> vu, gvu;        // [tile][3][2F]
    Buffer<T> hidden, slope;  // [tile][F]
    Buffer<T> a, ga;          // [tile][3F]
    Buffer<T> gs, gv, gcat;   // [tile][F], [tile][3][F], [tile][2F]
    Buffer<T> readout, readout_slope;
    Buffer<T> deviations;  // [tile][readout], where uncertainties are asked for
    Buffer<T> x;           // [tile][3F]
    Buffer<T> sums;        // [tile][5F]
    Buffer<T> edge_work;   // see TileCall
    typename FilterTable<T>::Scratch exact;
    Profile profile;
  };

  // Call f(buffer, count of its numbers) for every buffer; see core/memory.h.
  template <typename Self, typename F>
  static void each_of_graph(Self& network, int64_t n, int64_t n_rows, int64_t num_edges, F&& f);
  template <typename Self, typename F>
  static void each_of_tile(Self& scratch, int64_t m, int64_t f, int64_t readout, bool uncertain,
                           F&& visit);

  void forward_tile(int64_t k, int64_t begin, int64_t end, Scratch& w);
  void message_network(int64_t k, int64_t begin, int64_t m, Scratch& w);
  void readout(int64_t begin, int64_t m, Scratch& w);
  void uncertainties(int64_t begin, int64_t m, Scratch& w);
  void update_adjoint(int64_t k, int64_t begin, int64_t m, const T* vu, const T* a, const T* slope,
                      const T* norms, Scratch& w);
  void backward_tile(int64_t k, int64_t begin, int64_t end, Scratch& w);
  void backward_first_tile(int64_t begin, int64_t end, Scratch& w);
  TileCall<T> tile_call(int64_t k, int64_t begin, int64_t m, Scratch& w);
  UpdateCall<T> update_call(int64_t m, const T* vu) const;
  void write_gradients(int64_t begin);
  template <typename Function>
  void for_tiles(Function&& function);

  const Kernels<T>& kernels_;
  FilterTable<T> table_;
  int64_t padded_;
  int64_t num_interactions_;
  T norm_epsilon_, norm_shift_;
  Weights<T> weights_;

  Graph graph_;
  const EdgeGeometry<T>* edges_ = nullptr;
  Outputs outputs_;
  int num_threads_ = 1;
  int64_t tile_ = 1;
  bool profile_ = false;
  std::vector<Layer> layers_;
  Buffer<T> s_;            // [n_local][F]
  Buffer<T> gradients_;    // [n_edges][4] summed over interactions, see TileCall; order of edges_
  Buffer<T> adjoints_[2];  // [n_rows][4F] gs | gv, by parity of the interaction
  std::vector<Scratch> scratch_;
};

extern template class Network<float>;
extern template class Network<double>;

}  // namespace mlff
