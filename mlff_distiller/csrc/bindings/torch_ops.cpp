// Operators registered with torch as `mlff::…`. This file only converts tensors; the work is done
// in csrc/core. No Python symbols: any libtorch loads the library.

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>

#include "bindings/neighbor_inputs.h"
#include "core/error.h"
#include "core/neighbors.h"

#ifndef MLFF_TORCH_VERSION
#error "define MLFF_TORCH_VERSION: the version of the torch that this library is compiled against"
#endif

// Python looks for this text in the file before loading it: with another torch the loader would
// only report an undefined symbol.
extern "C" __attribute__((used, visibility("default"))) const char mlff_build_torch_version[] =
    "mlff_build_torch_version=" MLFF_TORCH_VERSION;

namespace {

using at::Tensor;

std::string build_torch_version() { return MLFF_TORCH_VERSION; }

// positions (n, 3), cell (3, 3), pbc (3,) bool  ->  edge_index (2, E) and shifts (E, 3), int64.
// Order and meaning: csrc/core/neighbors.h.
std::tuple<Tensor, Tensor> neighbor_list_cpu(const Tensor& positions, const Tensor& cell,
                                             const Tensor& pbc, double cutoff) {
  const mlff_bindings::NeighborInputs in(positions, cell, pbc);

  // Kept between the calls of a thread, so that they need not allocate; not if it is large.
  static thread_local mlff::NeighborList list;
  constexpr size_t kKeptBytes = size_t{128} << 20;
  const int64_t n = in.points.size(0);
  try {
    mlff::build_neighbor_list(n, in.points.const_data_ptr<double>(),
                              in.rows.const_data_ptr<double>(), in.periodic, cutoff,
                              at::get_num_threads(), list);
  } catch (const mlff::InputError& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }

  const int64_t n_edges = list.num_edges();
  const auto options = at::TensorOptions().dtype(at::kLong);
  Tensor edge_index = at::empty({2, n_edges}, options);
  Tensor shifts = at::empty({n_edges, 3}, options);
  int64_t* senders = edge_index.mutable_data_ptr<int64_t>();
  int64_t* receivers = senders + n_edges;
  int64_t* shift = shifts.mutable_data_ptr<int64_t>();
  const mlff::NeighborList& result = list;  // thread_local: name it for the other threads
  at::parallel_for(0, n, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t e = result.offsets[i]; e < result.offsets[i + 1]; ++e) {
        senders[e] = result.senders[e];
        receivers[e] = i;
        std::copy(result.shifts[e].begin(), result.shifts[e].end(), shift + 3 * e);
      }
    }
  });
  if (list.bytes() > kKeptBytes) list = mlff::NeighborList();
  return {edge_index, shifts};
}

}  // namespace

TORCH_LIBRARY(mlff, m) {
  m.def("build_torch_version() -> str", build_torch_version);
  m.def(
      "neighbor_list(Tensor positions, Tensor cell, Tensor pbc, float cutoff) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mlff, CPU, m) { m.impl("neighbor_list", neighbor_list_cpu); }
