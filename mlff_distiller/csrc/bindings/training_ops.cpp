// A training step of PaiNN on the CPU as operators of torch. This file converts tensors; the work
// is done by core/training.cpp. mlff_distiller/ops/training.py makes the arguments.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "core/isa.h"
#include "core/training.h"

namespace {

using at::Tensor;

// The arrays of mlff::TrainingGraph in their order; none if the edges are not sorted by receivers
// or one is without its reverse.
std::vector<Tensor> training_graph(const Tensor& edge_index, const Tensor& shifts,
                                   int64_t num_atoms) {
  TORCH_CHECK_VALUE(
      edge_index.dim() == 2 && edge_index.size(0) == 2 && edge_index.scalar_type() == at::kLong,
      "edge_index must be int64 of shape (2, edges), got ", edge_index.scalar_type(), " ",
      edge_index.sizes());
  const int64_t edges = edge_index.size(1);
  TORCH_CHECK_VALUE(shifts.dim() == 2 && shifts.size(0) == edges && shifts.size(1) == 3 &&
                        shifts.scalar_type() == at::kLong,
                    "shifts must be int64 of shape (", edges, ", 3), got ", shifts.scalar_type(),
                    " ", shifts.sizes());
  if (edges % 2) return {};
  const Tensor index = edge_index.contiguous(), images = shifts.contiguous();
  const int64_t* senders = index.const_data_ptr<int64_t>();
  for (int64_t e = 0; e < 2 * edges; ++e) {
    TORCH_CHECK_VALUE(senders[e] >= 0 && senders[e] < num_atoms, "edge_index must be within 0..",
                      num_atoms - 1, ", got ", senders[e]);
  }
  const auto numbers = [](int64_t count, at::ScalarType type) {
    return at::empty({count}, at::TensorOptions().dtype(type));
  };
  std::vector<Tensor> all = {numbers(num_atoms + 1, at::kLong), numbers(num_atoms, at::kLong),
                             numbers(num_atoms + 1, at::kLong), numbers(edges, at::kInt),
                             numbers(edges, at::kInt),          numbers(edges / 2, at::kLong)};
  mlff::TrainingGraphOf<int64_t, int32_t> graph;
  graph.num_atoms = num_atoms, graph.num_edges = edges, graph.num_pairs = edges / 2;
  graph.offsets = all[0].mutable_data_ptr<int64_t>();
  graph.middles = all[1].mutable_data_ptr<int64_t>();
  graph.first_pairs = all[2].mutable_data_ptr<int64_t>();
  graph.neighbors = all[3].mutable_data_ptr<int32_t>();
  graph.pairs = all[4].mutable_data_ptr<int32_t>();
  graph.edge_of_pair = all[5].mutable_data_ptr<int64_t>();
  if (!mlff::make_training_graph(senders, senders + edges, images.const_data_ptr<int64_t>(),
                                 graph)) {
    return {};
  }
  return all;
}

constexpr size_t kPerInteraction = 11;

template <typename T, typename Get>
mlff::TrainingParameters<T> parameters_of(const std::vector<Tensor>& all, const Get& get) {
  mlff::TrainingParameters<T> p;
  size_t next = 0;
  const auto take = [&] { return get(all[next++]); };
  p.embedding = take();
  const size_t layers = (all.size() - 5) / kPerInteraction;
  for (size_t k = 0; k < layers; ++k) {
    mlff::InteractionParameters<T> i;
    for (T** to :
         {&i.filter, &i.filter_bias, &i.message0, &i.message0_bias, &i.message2, &i.message2_bias,
          &i.mix, &i.update0, &i.update0_bias, &i.update2, &i.update2_bias}) {
      *to = take();
    }
    p.interactions.push_back(i);
  }
  for (T** to : {&p.readout0, &p.readout0_bias, &p.readout2, &p.readout2_bias}) *to = take();
  return p;
}

// What both calls have in common, checked.
struct Step {
  std::vector<Tensor> graph, parameters, radials;
  Tensor species, vectors, scales;
  double norm_epsilon, norm_shift;
  mlff::TrainingGraph pairs;
  mlff::TrainingModel model;

  Step(at::TensorList graph_, at::TensorList parameters_, const Tensor& species_,
       const Tensor& vectors_, at::TensorList radials_, const Tensor& scales_, double epsilon,
       double shift)
      : species(species_.contiguous()),
        vectors(vectors_.contiguous()),
        scales(scales_.contiguous()),
        norm_epsilon(epsilon),
        norm_shift(shift) {
    for (const Tensor& t : graph_) graph.push_back(t.contiguous());
    for (const Tensor& t : parameters_) parameters.push_back(t.contiguous());
    for (const Tensor& t : radials_) radials.push_back(t.contiguous());
    TORCH_CHECK_VALUE(graph.size() == 6, "expected the 6 arrays of training_graph, got ",
                      graph.size());
    TORCH_CHECK_VALUE(parameters.size() > 5 && (parameters.size() - 5) % kPerInteraction == 0,
                      "expected the parameters of PaiNN in their order, got ", parameters.size(),
                      " tensors");
    pairs.num_atoms = graph[1].numel(), pairs.num_edges = graph[3].numel();
    pairs.num_pairs = graph[5].numel();
    pairs.offsets = graph[0].const_data_ptr<int64_t>();
    pairs.middles = graph[1].const_data_ptr<int64_t>();
    pairs.first_pairs = graph[2].const_data_ptr<int64_t>();
    pairs.neighbors = graph[3].const_data_ptr<int32_t>();
    pairs.pairs = graph[4].const_data_ptr<int32_t>();
    pairs.edge_of_pair = graph[5].const_data_ptr<int64_t>();
    const auto layers = static_cast<int64_t>((parameters.size() - 5) / kPerInteraction);
    model.species = parameters[0].size(0), model.hidden = parameters[0].size(1);
    model.layers = layers;
    model.readout = parameters[parameters.size() - 4].size(0);
    TORCH_CHECK_VALUE(!radials.empty() && radials[0].dim() == 3,
                      "radials must have shape (pairs, 2, num_rbf + 1)");
    model.radial = radials[0].size(2);
    model.norm_epsilon = norm_epsilon, model.norm_shift = norm_shift;
    check();
  }

  void check() const {
    const int64_t f = model.hidden, r = model.readout;
    const std::vector<int64_t> sizes = {3 * f * (model.radial - 1),
                                        3 * f,
                                        f * f,
                                        f,
                                        3 * f * f,
                                        3 * f,
                                        2 * f * f,
                                        2 * f * f,
                                        f,
                                        3 * f * f,
                                        3 * f};
    const auto is = [&](const Tensor& t, int64_t count) {
      return t.numel() == count && t.scalar_type() == vectors.scalar_type();
    };
    bool fits = true;
    for (size_t k = 0; k + 5 < parameters.size(); ++k) {
      fits = fits && is(parameters[1 + k], sizes[k % kPerInteraction]);
    }
    const size_t last = parameters.size() - 4;
    fits = fits && is(parameters[last], r * f) && is(parameters[last + 1], r) &&
           is(parameters[last + 2], r) && is(parameters[last + 3], 1);
    TORCH_CHECK_VALUE(fits, "parameters must be those of PaiNN.parameters(), of type ",
                      vectors.scalar_type());
    TORCH_CHECK_VALUE(species.numel() == pairs.num_atoms && species.scalar_type() == at::kLong &&
                          is(vectors, 3 * pairs.num_pairs) && is(scales, model.species),
                      "expected species of ", pairs.num_atoms, " atoms, vectors of ",
                      pairs.num_pairs, " pairs and scales of ", model.species, " species");
    const int64_t* s = species.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < pairs.num_atoms; ++i) {
      TORCH_CHECK_VALUE(s[i] >= 0 && s[i] < model.species, "species must be within 0..",
                        model.species - 1, ", got ", s[i]);
    }
    for (const Tensor& t : radials) {
      TORCH_CHECK_VALUE(is(t, 2 * pairs.num_pairs * model.radial),
                        "radials must have shape (pairs, 2, num_rbf + 1), got ", t.sizes());
    }
    TORCH_CHECK_VALUE(radials.size() == 1 || static_cast<int64_t>(radials.size()) == model.layers,
                      "expected one radial or one of each interaction, got ", radials.size());
  }

  template <typename T>
  mlff::TrainingInput<T> input() const {
    mlff::TrainingInput<T> in;
    in.model = model, in.graph = &pairs;
    in.species = species.const_data_ptr<int64_t>();
    in.scales = scales.const_data_ptr<T>(), in.vectors = vectors.const_data_ptr<T>();
    for (int64_t k = 0; k < model.layers; ++k) {
      const size_t which = radials.size() == 1 ? 0 : static_cast<size_t>(k);
      in.radial.push_back(radials[which].const_data_ptr<T>());
    }
    return in;
  }
};

// Work space kept by the caller: `work`, if it is large enough, or a new one. Threads are those of
// the first call of a step.
std::tuple<Tensor, Tensor, Tensor> training_forward(at::TensorList graph, at::TensorList parameters,
                                                    const Tensor& species, const Tensor& vectors,
                                                    at::TensorList radials, const Tensor& scales,
                                                    double norm_epsilon, double norm_shift,
                                                    bool gradients, int64_t threads,
                                                    const Tensor& work) {
  const Step step(graph, parameters, species, vectors, radials, scales, norm_epsilon, norm_shift);
  Tensor energies = at::empty({step.pairs.num_atoms}, step.vectors.options());
  Tensor pair_gradients = at::empty_like(step.vectors);
  Tensor space = work;
  AT_DISPATCH_FLOATING_TYPES(step.vectors.scalar_type(), "training_forward", [&] {
    using T = scalar_t;
    mlff::TrainingInput<T> in = step.input<T>();
    in.threads = static_cast<int>(threads);
    const auto bytes = static_cast<int64_t>(mlff::training_bytes(in, gradients));
    if (space.numel() < bytes) {
      space = at::empty({bytes + bytes / 8}, at::TensorOptions().dtype(at::kByte));
    }
    const auto read = [](const Tensor& t) { return t.const_data_ptr<T>(); };
    mlff::training_forward<T>(in, parameters_of<const T>(step.parameters, read),
                              mlff::best_kernels<T>(), gradients, space.mutable_data_ptr(),
                              energies.mutable_data_ptr<T>(), pair_gradients.mutable_data_ptr<T>());
  });
  return {energies, pair_gradients, space};
}

std::vector<Tensor> training_backward(at::TensorList graph, at::TensorList parameters,
                                      const Tensor& species, const Tensor& vectors,
                                      at::TensorList radials, const Tensor& scales,
                                      double norm_epsilon, double norm_shift, int64_t threads,
                                      const Tensor& work, const Tensor& energy_weights,
                                      const Tensor& gradient_weights) {
  const Step step(graph, parameters, species, vectors, radials, scales, norm_epsilon, norm_shift);
  const Tensor c = energy_weights.contiguous(), u = gradient_weights.contiguous();
  TORCH_CHECK_VALUE(c.numel() == step.pairs.num_atoms && u.numel() == 3 * step.pairs.num_pairs,
                    "expected weights of energies and of pair gradients");
  std::vector<Tensor> out;
  for (const Tensor& p : step.parameters) out.push_back(at::empty_like(p));
  AT_DISPATCH_FLOATING_TYPES(step.vectors.scalar_type(), "training_backward", [&] {
    using T = scalar_t;
    mlff::TrainingInput<T> in = step.input<T>();
    in.threads = static_cast<int>(threads);
    TORCH_CHECK_VALUE(work.numel() >= static_cast<int64_t>(mlff::training_bytes(in, true)),
                      "expected the work space that training_forward has returned");
    const auto write = [](const Tensor& t) { return t.mutable_data_ptr<T>(); };
    mlff::training_backward<T>(in, mlff::best_kernels<T>(), work.mutable_data_ptr(),
                               c.const_data_ptr<T>(), u.const_data_ptr<T>(),
                               parameters_of<T>(out, write));
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mlff, m) {
  m.def("training_graph(Tensor edge_index, Tensor shifts, int num_atoms) -> Tensor[]");
  m.def(
      "training_forward(Tensor[] graph, Tensor[] parameters, Tensor species, Tensor vectors, "
      "Tensor[] radials, Tensor scales, float norm_epsilon, float norm_shift, bool gradients, "
      "int threads, Tensor work) -> (Tensor, Tensor, Tensor)");
  m.def(
      "training_backward(Tensor[] graph, Tensor[] parameters, Tensor species, Tensor vectors, "
      "Tensor[] radials, Tensor scales, float norm_epsilon, float norm_shift, int threads, "
      "Tensor(a!) work, Tensor energy_weights, Tensor gradient_weights) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(mlff, CPU, m) {
  m.impl("training_graph", training_graph);
  m.impl("training_forward", training_forward);
  m.impl("training_backward", training_backward);
}
