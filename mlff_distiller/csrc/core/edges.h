// The graph's edges as the kernels want them, and the parts of the energy that need no network.
#pragma once

#include <cstdint>
#include <vector>

#include "core/graph.h"
#include "core/kernels.h"
#include "core/memory.h"
#include "core/model_file.h"
#include "core/repulsion.h"

namespace mlff {

// Repulsion between the species of a model: half of each pair's energy belongs to either atom.
class Repulsion {
 public:
  explicit Repulsion(const ModelFile& model);

  bool active() const { return !pairs_.empty(); }
  const std::vector<RepulsionPair>& pairs() const { return pairs_; }  // [species][species]
  const Screening& screening() const { return screening_; }
  void evaluate(int species_a, int species_b, double d, double& energy, double& slope) const {
    const auto pair = static_cast<size_t>(species_a * num_species_ + species_b);
    pair_repulsion(pairs_[pair], screening_, d, energy, slope);
  }

 private:
  int num_species_ = 0;
  std::vector<RepulsionPair> pairs_;
  Screening screening_{};
};

// Edges inside the cutoff, by tiles of centres: tile t holds centres [t tile, (t + 1) tile) and its
// edges are the entries first(t) ... first(t) + count(t) of every array, sorted by table interval;
// those of one interval keep the graph's order. The graph's own offsets leave room for edges in the
// skin.
template <typename T>
class EdgeGeometry {
 public:
  // Fills everything for `graph`. Without a table (intervals 1, inverse_spacing 0) records refer to
  // rows of FilterTable::evaluate. Sets energies [n_local] to the repulsion and, if not null,
  // gradients [n_edges][3] to its pair gradients, those of energies times `weights` [n_local] if
  // these are given. Throws InputError for edges that point nowhere, NaN, and atoms on top of each
  // other.
  void prepare(const Graph& graph, int64_t tile, double cutoff, double inverse_spacing,
               int64_t intervals, const Repulsion& repulsion, int num_species, int num_threads,
               double* energies, double* gradients, const double* weights);

  int64_t first(int64_t tile) const { return graph_offsets_[tile * tile_]; }
  int64_t count(int64_t tile) const { return counts_.data()[tile]; }
  const EdgeRecord<T>* records() const { return records_.data(); }
  const int32_t* slots() const { return slots_.data(); }  // edge of the graph, from first(tile)
  const T* inverse_distances() const { return inverse_distances_.data(); }
  size_t bytes() const;

 private:
  struct Unsorted {
    double inverse_distance, position;  // position: distance in intervals
    int32_t slot, sender, centre, interval;
  };
  struct Scratch {
    std::vector<Unsorted> edges;
    std::vector<int64_t> bins;
  };

  int64_t prepare_tile(const Graph& graph, int64_t t, double cutoff, double inverse_spacing,
                       int64_t intervals, const Repulsion& repulsion, double* energies,
                       double* gradients, const double* weights, Scratch& scratch);

  int64_t tile_ = 1;
  const int64_t* graph_offsets_ = nullptr;
  Buffer<int32_t> counts_, slots_;
  Buffer<EdgeRecord<T>> records_;
  Buffer<T> inverse_distances_;
  std::vector<Scratch> scratch_;
};

extern template class EdgeGeometry<float>;
extern template class EdgeGeometry<double>;

}  // namespace mlff
