// Radial filters w(d) = (Linear(rbf(d))) fcut(d), exact and tabulated as cubic B-splines.
#ifndef MLFF_CORE_TABLES_H_
#define MLFF_CORE_TABLES_H_

#include <cstdint>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "model_file.h"

namespace mlff {

// The functions that filters are linear in: rbf_k(d) fcut(d) for every k, then fcut(d) (the bias).
class RadialBasis {
 public:
  explicit RadialBasis(const ModelFile& model);

  int size() const { return size_; }  // num_rbf + 1
  // values and derivatives [size] at d, Angstrom. Smooth through 0 and the cutoff, where it is
  // continued analytically: callers leave out distances beyond the cutoff.
  void evaluate(double d, double* values, double* derivatives) const;

 private:
  bool gaussian_;
  int size_;
  double cutoff_;
  std::vector<double> first_, second_;  // centres and 1/widths, or frequencies
};

// Filters of every interaction as rows over channels, split in three blocks of `padded` channels
// (the first interaction has no third: there are no vectors to multiply yet).
//
// Tabulated: row i of interaction k holds the B-spline coefficients of knot i - 1, so a distance
// d = (i + t) spacing takes rows i ... i + 3. Exact: row i belongs to function i of RadialBasis.
template <typename T>
class FilterTable {
 public:
  // Starts with 256 intervals and refines until values are within `value_tolerance` of the exact
  // filters, relative to the largest of the interaction, and derivatives within
  // `derivative_tolerance`; both are checked at three points of every interval. The table that is
  // reported and used has rounded coefficients; the derivative's bound leaves their rounding out,
  // as it grows when intervals shrink (rounding / spacing: some 1e-6 in float32) and no refinement
  // mends it. Throws InputError if 8192 intervals do not suffice.
  void build(const ModelFile& model, const RadialBasis& basis, int64_t padded, bool tabulate);

  const T* rows(int64_t interaction) const {
    return rows_[static_cast<size_t>(interaction)].data();
  }
  double inverse_spacing() const { return inverse_spacing_; }
  const TableReport& report() const { return report_; }

  static constexpr double value_tolerance() { return sizeof(T) == 4 ? 1e-7 : 1e-10; }
  static constexpr double derivative_tolerance() { return sizeof(T) == 4 ? 2e-6 : 1e-8; }

 private:
  std::vector<Buffer<T>> rows_;
  double inverse_spacing_ = 0.0;
  TableReport report_;
};

extern template class FilterTable<float>;
extern template class FilterTable<double>;

}  // namespace mlff

#endif  // MLFF_CORE_TABLES_H_
