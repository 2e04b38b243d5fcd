// What filters are made of: radial basis times cutoff function. The twin of students/radial.py.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model_file.h"

namespace mlff {

// The functions that the filters of one interaction are linear in: rbf_k(d) fcut(d) for every k,
// then fcut(d) (the bias).
class RadialFunctions {
 public:
  RadialFunctions(const ModelFile& model, int64_t interaction);
  // `first`: centres or frequencies; `second`: widths; of a Chebyshev basis neither.
  RadialFunctions(const FilterSpec& spec, double cutoff, std::vector<double> first,
                  std::vector<double> second);

  int64_t size() const { return size_; }  // num_rbf + 1
  // values and derivatives [size] at d, Angstrom, within [0, cutoff].
  void evaluate(double d, double* values, double* derivatives) const;

 private:
  void basis(double d, double* values, double* derivatives) const;

  FilterSpec spec_;
  int64_t size_;
  double cutoff_;
  std::vector<double> first_, second_;  // centres and 1/widths, or frequencies
};

}  // namespace mlff
