#include "core/radial.h"

#include <cmath>
#include <string>
#include <utility>

namespace mlff {
namespace {

constexpr double kPi = 3.14159265358979323846;
// Nearer than this (of the range) to an end, smooth steps differ from it by less than exp(-900).
constexpr double kFlat = 1e-3;

struct Value {
  double value, slope;
};

// 0.5 (cos(pi d / cutoff) + 1)
Value cosine(double d, double cutoff) {
  const double angle = kPi / cutoff;
  return {0.5 * (std::cos(angle * d) + 1.0), -0.5 * angle * std::sin(angle * d)};
}

// 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) = (1-x)^3 sum_{k<p} (k+1)(k+2)/2 x^k,
// which loses no digits at the cutoff.
Value polynomial(double d, double cutoff, int p) {
  const double x = d / cutoff, rest = 1.0 - x;
  double series = 0.0;
  for (int k = p - 1; k >= 0; --k) series = series * x + 0.5 * (k + 1) * (k + 2);
  const double slope = -0.5 * p * (p + 1) * (p + 2) * std::pow(x, p - 1) * rest * rest / cutoff;
  return {rest * rest * rest * series, slope};
}

// exp(1 - 1 / (1 - x^2))
Value mollifier(double d, double cutoff) {
  const double x = d / cutoff, rest = 1.0 - x * x;
  if (rest < kFlat) return {0.0, 0.0};
  const double value = std::exp(1.0 - 1.0 / rest);
  return {value, -2.0 * x / (rest * rest) * value / cutoff};
}

// g(1-x) / (g(x) + g(1-x)) with g(x) = exp(-1/x), x = (d - onset) / (cutoff - onset)
Value smooth_step(double d, double cutoff, double onset) {
  const double range = cutoff - onset, x = (d - onset) / range, rest = 1.0 - x;
  if (x < kFlat) return {1.0, 0.0};
  if (rest < kFlat) return {0.0, 0.0};
  const double value = 1.0 / (1.0 + std::exp(1.0 / rest - 1.0 / x));
  return {value, -value * (1.0 - value) * (1.0 / (x * x) + 1.0 / (rest * rest)) / range};
}

Value cutoff_function(const FilterSpec& spec, double d, double cutoff) {
  if (spec.cutoff_function == "cosine") return cosine(d, cutoff);
  if (spec.cutoff_function == "mollifier") return mollifier(d, cutoff);
  if (spec.cutoff_function == "switch") return smooth_step(d, cutoff, spec.parameter);
  return polynomial(d, cutoff, static_cast<int>(spec.parameter));
}

}  // namespace

RadialFunctions::RadialFunctions(const ModelFile& model, int64_t interaction)
    : spec_(model.filters[static_cast<size_t>(interaction)]),
      size_(spec_.num_rbf + 1),
      cutoff_(model.cutoff) {
  const std::string at = "interactions." + std::to_string(interaction) + ".rbf.";
  if (spec_.basis == "gaussian") {
    first_ = model.tensor(at + "centers").values;
    second_ = model.tensor(at + "widths").values;
    for (double& width : second_) width = 1.0 / width;
  } else if (spec_.basis == "bessel") {
    first_ = model.tensor(at + "frequencies").values;
  }
}

RadialFunctions::RadialFunctions(const FilterSpec& spec, double cutoff, std::vector<double> first,
                                 std::vector<double> second)
    : spec_(spec),
      size_(spec.num_rbf + 1),
      cutoff_(cutoff),
      first_(std::move(first)),
      second_(std::move(second)) {
  for (double& width : second_) width = 1.0 / width;
}

void RadialFunctions::evaluate(double d, double* values, double* derivatives) const {
  const Value cut = cutoff_function(spec_, d, cutoff_);
  basis(d, values, derivatives);
  const int64_t last = size_ - 1;
  for (int64_t k = 0; k < last; ++k) {
    derivatives[k] = derivatives[k] * cut.value + values[k] * cut.slope;
    values[k] *= cut.value;
  }
  values[last] = cut.value;
  derivatives[last] = cut.slope;
}

void RadialFunctions::basis(double d, double* values, double* derivatives) const {
  if (spec_.basis == "chebyshev") {  // T_n(x), x = 2 d / cutoff - 1
    const double scale = 2.0 / cutoff_, x = scale * d - 1.0;
    for (int64_t n = 0; n < spec_.num_rbf; ++n) {
      values[n] = n == 0 ? 1.0 : n == 1 ? x : 2.0 * x * values[n - 1] - values[n - 2];
      derivatives[n] =
          n == 0   ? 0.0
          : n == 1 ? scale
                   : 2.0 * (scale * values[n - 1] + x * derivatives[n - 1]) - derivatives[n - 2];
    }
    return;
  }
  for (int64_t k = 0; k < spec_.num_rbf; ++k) {
    const double p = first_[static_cast<size_t>(k)];
    if (spec_.basis == "gaussian") {  // exp(-x^2 / 2), x = (d - centre) / width
      const double inverse_width = second_[static_cast<size_t>(k)];
      const double x = (d - p) * inverse_width;
      values[k] = std::exp(-0.5 * x * x);
      derivatives[k] = -x * inverse_width * values[k];
      continue;
    }
    const double x = p * d;     // sin(p d) / d
    if (std::fabs(x) < 1e-2) {  // series, where the quotients lose digits
      const double x2 = x * x;
      values[k] = p * (1.0 - x2 / 6.0 * (1.0 - x2 / 20.0 * (1.0 - x2 / 42.0)));
      derivatives[k] = -p * p * x / 3.0 * (1.0 - x2 / 10.0 * (1.0 - x2 / 28.0 * (1.0 - x2 / 54.0)));
    } else {
      values[k] = std::sin(x) / d;
      derivatives[k] = (p * std::cos(x) - values[k]) / d;
    }
  }
}

}  // namespace mlff
