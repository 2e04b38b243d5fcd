// Radial filters w(d) = Linear(rbf(d)) fcut(d), exact and tabulated as cubic B-splines. Filters are
// functions of the distance, one set for each interaction: what they are made of (radial.h) matters
// only to whoever fills the table.
#pragma once

#include <cstdint>
#include <vector>

#include "core/gemm.h"
#include "core/graph.h"
#include "core/kernels.h"
#include "core/memory.h"
#include "core/model_file.h"
#include "core/radial.h"
#include "core/spline.h"

namespace mlff {

// Largest errors of a table, relative to the largest value and derivative of the interaction, and
// the intervals it starts with.
struct TableBounds {
  double value, derivative;
  int64_t intervals = 256;
};

// Filters of every interaction as rows over channels, in the layout of FilterRows: chunks of
// channels, each with its two or three blocks (the first interaction has no w2: there are no
// vectors to multiply yet).
//
// Tabulated: w is a cubic spline with uniform knots, so w' is a quadratic B-spline. Row i holds the
// value at knot i and the i-th coefficient of w' (times the spacing); at d = (i + t) spacing
//   w  = value_i + sum_k q_k(t) slope_{i+k},   w' = sum_k b_k(t) slope_{i+k} / spacing,  k = 0, 1,
//   2,
// with q the integral of b from 0. The usual form, four coefficients of w, needs as many reads, one
// more FMA for w and for w' each, and rounds worse: w' is then a difference of float32 numbers that
// are almost equal, whose error grows as intervals shrink.
//
// Exact: evaluate() makes such rows for given distances.
template <typename T>
class FilterTable {
 public:
  // Refines until the bounds are kept, which is checked at three points of every interval with the
  // rounded numbers of the table. Throws InputError if 8192 intervals do not suffice.
  void build(const ModelFile& model, const Kernels<T>& kernels, int64_t padded, bool tabulate,
             const TableBounds& bounds = exact_bounds());

  bool tabulated() const { return report_.tabulated; }
  const TableReport& report() const { return report_; }
  int64_t intervals() const { return tabulated() ? report_.intervals : 1; }
  double inverse_spacing() const { return inverse_spacing_; }  // 1/Angstrom
  FilterRows<T> rows(int64_t interaction) const;

  // Work space of evaluate().
  struct Scratch {
    Buffer<T> rows, basis;
    std::vector<double> values, derivatives;
    template <typename F>
    void each(F&& f) const {
      f(rows), f(basis), f(values), f(derivatives);
    }
  };
  // Exact filters as rows, row e for the edge with 1/distance inverse_distances[e]. Edges use them
  // with interval e, q = 0 and b = (1, 0, 0). Valid until the next call.
  FilterRows<T> evaluate(int64_t interaction, int64_t count, const T* inverse_distances,
                         Scratch& scratch) const;

  // As good as T.
  static constexpr TableBounds exact_bounds() {
    return sizeof(T) == 4 ? TableBounds{1e-7, 2e-6} : TableBounds{1e-10, 1e-8};
  }

 private:
  void pack_exact(const ModelFile& model, int64_t interaction);

  const Kernels<T>* kernels_ = nullptr;
  std::vector<RadialFunctions> functions_;  // of each interaction
  int64_t padded_ = 0;
  double cutoff_ = 0.0;
  std::vector<Buffer<T>> rows_;
  std::vector<PackedMatrix<T>> exact_;  // functions_ -> filters
  double inverse_spacing_ = 0.0;
  TableReport report_;
};

extern template class FilterTable<float>;
extern template class FilterTable<double>;

}  // namespace mlff
