// The graph's edges as the kernels want them, and the parts of the energy that need no network.
#ifndef MLFF_CORE_EDGES_H_
#define MLFF_CORE_EDGES_H_

#include <cstdint>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "model_file.h"

namespace mlff {

// Screened nuclear repulsion, models/zbl.py: half of each pair's energy belongs to either atom.
class Repulsion {
 public:
  explicit Repulsion(const ModelFile& model);

  bool active() const { return num_species_ > 0; }
  // Pair energy in eV and its derivative by d; zero beyond the sum of the covalent radii.
  void evaluate(int species_a, int species_b, double d, double& energy, double& slope) const;

 private:
  struct Pair {
    double charge;  // Coulomb constant times Z1 Z2
    double inverse_length, range;
  };
  int num_species_ = 0;
  std::vector<Pair> pairs_;
};

// Edges inside the cutoff. Centre c's are the entries offsets[c] ... offsets[c] + counts[c] of
// every array; the graph's own offsets leave room for those in the skin.
template <typename T>
class EdgeGeometry {
 public:
  // Fills everything for `graph`; spline arguments only if inverse_spacing > 0. Sets
  // energies [n_local] to the repulsion and, if not null, gradients [n_edges][3] to its pair
  // gradients, those of energies times `weights` [n_local] if these are given. Throws InputError
  // for edges that point nowhere, NaN, and atoms on top of each other.
  void prepare(const Graph& graph, double cutoff, double inverse_spacing, int64_t intervals,
               const Repulsion& repulsion, int num_species, int num_threads, double* energies,
               double* gradients, const double* weights);

  const int32_t* counts() const { return counts_.data(); }
  const int32_t* senders() const { return senders_.data(); }
  const int32_t* slots() const { return slots_.data(); }  // edge of the graph, from offsets[c]
  const int32_t* intervals() const { return intervals_.data(); }
  const T* fractions() const { return fractions_.data(); }
  const T* directions() const { return directions_.data(); }  // [..][3]
  const T* inverse_distances() const { return inverse_distances_.data(); }
  int64_t max_count() const { return max_count_; }
  size_t bytes() const;

 private:
  Buffer<int32_t> counts_, senders_, slots_, intervals_;
  Buffer<T> fractions_, directions_, inverse_distances_;
  int64_t max_count_ = 0;
};

extern template class EdgeGeometry<float>;
extern template class EdgeGeometry<double>;

}  // namespace mlff

#endif  // MLFF_CORE_EDGES_H_
