// A training step of PaiNN on the CPU: energies, their gradients, and derivatives of a loss of both
// by the parameters, without automatic differentiation.
//
// The loss knows the energies E_i and the gradients g_p of ΣE by the vector r_p of each pair of
// neighbours. With c = dL/dE and u = dL/dg its gradient by the parameters θ is
//
//     dL/dθ = Σ_i c_i dE_i/dθ + d/dθ Σ_p u_p·g_p = d/dt Σ_i (1 + t c_i) dE_i/dθ (r + t u)   at t =
//     0
//
// since u·g is the derivative of ΣE along u. So one forward and one reverse pass over dual numbers
// (value and derivative by t) give everything, and the values are there from the first call, which
// has made a forward and a reverse pass for E and g (forward-over-reverse; Pearlmutter, "Fast exact
// multiplication by the Hessian", Neural Computation 6, 147, 1994). Only first derivatives of the
// radial functions are needed.
//
// Filters are evaluated once for the two directions of a pair. Threads share the atoms out and meet
// between an atom-wise and an edge part; sums over neighbours are gathered, gradients of weights
// are shared out by their rows: results depend on the number of threads only in the rounding of the
// gradients of the filters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/kernels.h"

namespace mlff {

// Pairs of a symmetric neighbour list, see TrainingEdges. The arrays are the caller's.
template <typename Int64, typename Int32>
struct TrainingGraphOf {
  int64_t num_atoms = 0, num_edges = 0, num_pairs = 0;  // num_edges = 2 num_pairs
  Int64 *offsets = nullptr, *middles = nullptr;         // [num_atoms + 1], [num_atoms]
  Int64* first_pairs = nullptr;                         // [num_atoms + 1], pairs of each owner
  Int32 *neighbors = nullptr, *pairs = nullptr;         // [num_edges]
  Int64* edge_of_pair = nullptr;                        // [num_pairs]; the owner is the receiver
};
using TrainingGraph = TrainingGraphOf<const int64_t, const int32_t>;

// From edges with shifts [num_edges][3]. False if they are not sorted by receivers, or one is
// without its reverse.
bool make_training_graph(const int64_t* senders, const int64_t* receivers, const int64_t* shifts,
                         const TrainingGraphOf<int64_t, int32_t>& graph);

struct TrainingModel {
  int64_t hidden = 0, layers = 0, radial = 0, readout = 0, species = 0;  // radial: num_rbf + 1
  double norm_epsilon = 0, norm_shift = 0;
};

// Weights [out][in] and biases as torch has them, in the order of PaiNN.parameters().
template <typename T>
struct InteractionParameters {
  T *filter, *filter_bias, *message0, *message0_bias, *message2, *message2_bias, *mix;
  T *update0, *update0_bias, *update2, *update2_bias;
};
template <typename T>
struct TrainingParameters {
  T* embedding = nullptr;
  std::vector<InteractionParameters<T>> interactions;
  T *readout0 = nullptr, *readout0_bias = nullptr, *readout2 = nullptr, *readout2_bias = nullptr;
};

template <typename T>
struct TrainingInput {
  TrainingModel model;
  const TrainingGraph* graph = nullptr;
  const int64_t* species = nullptr;  // [num_atoms]
  const T* scales = nullptr;         // [species]
  const T* vectors = nullptr;        // [num_pairs][3], from the owner to the other atom
  std::vector<const T*> radial;      // of each interaction: [num_pairs][2][radial], with slopes
  int threads = 1;
};

// Bytes of the work space; `gradients`: of one that the second call may follow.
template <typename T>
size_t training_bytes(const TrainingInput<T>& input, bool gradients);

// energies [num_atoms] and, if not null, the gradient by each pair's vector [num_pairs][3].
template <typename T>
void training_forward(const TrainingInput<T>& input, const TrainingParameters<const T>& parameters,
                      const Kernels<T>& kernels, bool gradients, void* work, T* energies,
                      T* pair_gradients);

// c [num_atoms], u [num_pairs][3]; `work` as the first call has left it. Overwrites `out`.
template <typename T>
void training_backward(const TrainingInput<T>& input, const Kernels<T>& kernels, void* work,
                       const T* c, const T* u, const TrainingParameters<T>& out);

}  // namespace mlff
