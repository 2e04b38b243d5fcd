// What a training step needs of its pairs of atoms and no parameter enters, as operators of torch:
// radial functions (core/radial.h) and repulsion (core/repulsion.h), with their derivatives.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/radial.h"
#include "core/repulsion.h"

namespace {

using at::Tensor;

constexpr int64_t kPairsPerThread = 128;

std::vector<double> numbers(const Tensor& t) {
  const Tensor exact = t.to(at::kDouble).contiguous();
  const double* data = exact.const_data_ptr<double>();
  return std::vector<double>(data, data + exact.numel());
}

template <typename T>
double length(const T* r) {
  const double x = r[0], y = r[1], z = r[2];
  return std::sqrt(x * x + y * y + z * z);
}

void check_vectors(const Tensor& vectors) {
  TORCH_CHECK_VALUE(vectors.dim() == 2 && vectors.size(1) == 3,
                    "vectors must have shape (pairs, 3), got ", vectors.sizes());
}

// (pairs, 3) -> (pairs, 2, num_rbf + 1), values and derivatives.
Tensor radial_functions(const Tensor& vectors_, const std::string& basis, int64_t num_rbf,
                        at::TensorList parameters, const std::string& cutoff_function,
                        double parameter, double cutoff) {
  check_vectors(vectors_);
  const Tensor vectors = vectors_.contiguous();
  const size_t expected = basis == "gaussian" ? 2 : basis == "bessel" ? 1 : 0;
  TORCH_CHECK_VALUE(parameters.size() == expected, "a ", basis, " basis has ", expected,
                    " tensors of parameters, got ", parameters.size());
  for (const Tensor& t : parameters) {
    TORCH_CHECK_VALUE(t.numel() == num_rbf, "expected ", num_rbf, " numbers of the basis, got ",
                      t.numel());
  }
  const mlff::RadialFunctions functions(
      {basis, num_rbf, cutoff_function, parameter}, cutoff,
      expected > 0 ? numbers(parameters[0]) : std::vector<double>(),
      expected > 1 ? numbers(parameters[1]) : std::vector<double>());
  const int64_t pairs = vectors.size(0), size = functions.size();
  Tensor out = at::empty({pairs, 2, size}, vectors.options());
  AT_DISPATCH_FLOATING_TYPES(vectors.scalar_type(), "radial_functions", [&] {
    const scalar_t* r = vectors.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, pairs, kPairsPerThread, [&](int64_t begin, int64_t end) {
      std::vector<double> row(static_cast<size_t>(2 * size));
      for (int64_t p = begin; p < end; ++p) {
        const double d = length(r + 3 * p);
        row.assign(row.size(), 0.0);
        if (!(d >= cutoff)) functions.evaluate(d, row.data(), row.data() + size);
        for (int64_t k = 0; k < 2 * size; ++k) {
          to[2 * size * p + k] = static_cast<scalar_t>(row[static_cast<size_t>(k)]);
        }
      }
    });
  });
  return out;
}

// Energies (atoms,) float64, half of a pair's to either atom, and the gradient by its vector.
// tables: charge, inverse_length and range (species, species), amplitudes and decays (4,).
std::tuple<Tensor, Tensor> pair_repulsion(const Tensor& species_, const Tensor& edge_index_,
                                          const Tensor& vectors_, at::TensorList tables,
                                          bool switched) {
  check_vectors(vectors_);
  const Tensor species = species_.contiguous(), edge_index = edge_index_.contiguous(),
               vectors = vectors_.contiguous();
  const int64_t pairs = vectors.size(0), atoms = species.numel();
  TORCH_CHECK_VALUE(edge_index.dim() == 2 && edge_index.size(0) == 2 &&
                        edge_index.size(1) == pairs && edge_index.scalar_type() == at::kLong &&
                        species.scalar_type() == at::kLong,
                    "edge_index must be int64 of shape (2, ", pairs, "), got ", edge_index.sizes());
  TORCH_CHECK_VALUE(tables.size() == 5, "expected 5 tables, got ", tables.size());
  std::vector<std::vector<double>> t;
  for (const Tensor& table : tables) t.push_back(numbers(table));
  const int64_t kinds = tables[0].size(0);
  mlff::Screening screening;
  for (size_t k = 0; k < 4; ++k) {
    screening.amplitudes[k] = t[3].at(k), screening.decays[k] = t[4].at(k);
  }
  screening.switched = switched;
  const int64_t *kind = species.const_data_ptr<int64_t>(),
                *sender = edge_index.const_data_ptr<int64_t>(), *receiver = sender + pairs;
  Tensor energies = at::zeros({atoms}, at::TensorOptions().dtype(at::kDouble));
  Tensor gradient = at::zeros_like(vectors);
  double* e = energies.mutable_data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES(vectors.scalar_type(), "pair_repulsion", [&] {
    const scalar_t* r = vectors.const_data_ptr<scalar_t>();
    scalar_t* g = gradient.mutable_data_ptr<scalar_t>();
    for (int64_t p = 0; p < pairs; ++p) {
      const int64_t ends[] = {receiver[p], sender[p]};
      for (const int64_t i : ends) {
        TORCH_CHECK_VALUE(i >= 0 && i < atoms && kind[i] >= 0 && kind[i] < kinds,
                          "edge_index must be within 0..", atoms - 1, " and species within 0..",
                          kinds - 1);
      }
      const double d = length(r + 3 * p);
      for (int end = 0; end < 2; ++end) {
        const auto at = static_cast<size_t>(kind[ends[end]] * kinds + kind[ends[1 - end]]);
        double energy, slope;
        mlff::pair_repulsion({t[0].at(at), t[1].at(at), t[2].at(at)}, screening, d, energy, slope);
        if (energy == 0.0 && slope == 0.0) continue;
        e[ends[end]] += 0.5 * energy;
        for (int a = 0; a < 3; ++a) {
          g[3 * p + a] +=
              static_cast<scalar_t>(0.5 * slope * static_cast<double>(r[3 * p + a]) / d);
        }
      }
    }
  });
  return {energies, gradient};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mlff, m) {
  m.def(
      "radial_functions(Tensor vectors, str basis, int num_rbf, Tensor[] parameters, "
      "str cutoff_function, float parameter, float cutoff) -> Tensor");
  m.def(
      "pair_repulsion(Tensor species, Tensor edge_index, Tensor vectors, Tensor[] tables, "
      "bool switched) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mlff, CPU, m) {
  m.impl("radial_functions", radial_functions);
  m.impl("pair_repulsion", pair_repulsion);
}
