#include "tables.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "error.h"

namespace mlff {
namespace {

constexpr double kPi = 3.14159265358979323846;
// Knots beyond either end. Boundary conditions of the spline fade by 2 - sqrt(3) a knot.
constexpr int64_t kMargin = 30;

// Exact filters of one interaction, channels in the model's own order.
class ExactFilter {
 public:
  ExactFilter(const ModelFile& model, const RadialBasis& basis, int64_t interaction)
      : basis_(basis), num_channels_(model.hidden_dim * (interaction == 0 ? 2 : 3)) {
    const std::string name = "interactions." + std::to_string(interaction) + ".filter";
    const std::vector<double>& weight = model.tensor(name + ".weight").values;
    const std::vector<double>& bias = model.tensor(name + ".bias").values;
    const int64_t num_rbf = model.num_rbf;
    rows_.resize(static_cast<size_t>((num_rbf + 1) * num_channels_));
    for (int64_t c = 0; c < num_channels_; ++c) {
      for (int64_t k = 0; k < num_rbf; ++k)
        row(k)[c] = weight[static_cast<size_t>(c * num_rbf + k)];
      row(num_rbf)[c] = bias[static_cast<size_t>(c)];
    }
    values_.resize(static_cast<size_t>(basis.size()));
    derivatives_.resize(static_cast<size_t>(basis.size()));
  }

  int64_t num_channels() const { return num_channels_; }
  const double* row(int64_t k) const { return &rows_[static_cast<size_t>(k * num_channels_)]; }
  double* row(int64_t k) { return &rows_[static_cast<size_t>(k * num_channels_)]; }

  // w and, if not null, dw [num_channels] at d.
  void evaluate(double d, double* w, double* dw) {
    basis_.evaluate(d, values_.data(), derivatives_.data());
    std::fill(w, w + num_channels_, 0.0);
    if (dw) std::fill(dw, dw + num_channels_, 0.0);
    for (int k = 0; k < basis_.size(); ++k) {
      const double* from = row(k);
      const double value = values_[static_cast<size_t>(k)];
      for (int64_t c = 0; c < num_channels_; ++c) w[c] += value * from[c];
      if (!dw) continue;
      const double derivative = derivatives_[static_cast<size_t>(k)];
      for (int64_t c = 0; c < num_channels_; ++c) dw[c] += derivative * from[c];
    }
  }

 private:
  const RadialBasis& basis_;
  int64_t num_channels_;
  std::vector<double> rows_, values_, derivatives_;
};

// Cubic B-spline coefficients through the filter at knots -1 ... intervals + 1:
// (c[j-1] + 4 c[j] + c[j+1]) / 6 = w(j spacing), [intervals + 3][channels].
std::vector<double> spline_coefficients(ExactFilter& filter, int64_t intervals, double spacing) {
  const int64_t channels = filter.num_channels();
  const int64_t first = -1 - kMargin, count = intervals + 3 + 2 * kMargin;
  std::vector<double> c(static_cast<size_t>(count * channels));
  std::vector<double> pivot(static_cast<size_t>(count));
  auto at = [&](int64_t j) { return &c[static_cast<size_t>(j * channels)]; };
  for (int64_t j = 0; j < count; ++j) {
    filter.evaluate(static_cast<double>(first + j) * spacing, at(j), nullptr);
  }
  // Thomas algorithm; the outermost coefficients are set to the values themselves.
  for (int64_t j = 1; j + 1 < count; ++j) {
    const double scale = 1.0 / (4.0 - (j > 1 ? pivot[static_cast<size_t>(j - 1)] : 0.0));
    pivot[static_cast<size_t>(j)] = scale;
    const double* before = at(j - 1);
    double* now = at(j);
    for (int64_t f = 0; f < channels; ++f) now[f] = (6.0 * now[f] - before[f]) * scale;
  }
  for (int64_t j = count - 2; j > 0; --j) {
    const double* after = at(j + 1);
    double* now = at(j);
    const double scale = pivot[static_cast<size_t>(j)];
    for (int64_t f = 0; f < channels; ++f) now[f] -= scale * after[f];
  }
  return std::vector<double>(c.begin() + kMargin * channels, c.end() - kMargin * channels);
}

struct TableError {
  double value = 0.0, derivative = 0.0;  // with rounded coefficients
  double truncation = 0.0;               // of the derivative, with coefficients in double
};

// Largest relative errors of the rounded coefficients; stops early once a bound is missed.
template <typename T>
TableError check(ExactFilter& filter, const std::vector<double>& coefficients, int64_t intervals,
                 double spacing, double value_tolerance, double derivative_tolerance) {
  const int64_t channels = filter.num_channels();
  std::vector<double> w(static_cast<size_t>(channels)), dw(w), rounded(coefficients);
  for (double& x : rounded) x = static_cast<double>(static_cast<T>(x));
  double largest = 1e-300, largest_slope = 1e-300;
  for (int64_t i = 0; i <= intervals; ++i) {
    filter.evaluate(static_cast<double>(i) * spacing, w.data(), dw.data());
    for (int64_t f = 0; f < channels; ++f) {
      largest = std::max(largest, std::fabs(w[static_cast<size_t>(f)]));
      largest_slope = std::max(largest_slope, std::fabs(dw[static_cast<size_t>(f)]));
    }
  }
  TableError error;
  // Knots; where the error of the derivative peaks, (3 - sqrt 3)/6; where that of the value does.
  for (double t : {0.5, 0.2113248654, 0.0}) {
    const double u = 1.0 - t;
    const double b[4] = {u * u * u / 6.0, 2.0 / 3.0 - t * t * (1.0 - 0.5 * t),
                         2.0 / 3.0 - u * u * (1.0 - 0.5 * u), t * t * t / 6.0};
    const double s = 1.0 / spacing;
    const double g[4] = {-0.5 * u * u * s, t * (1.5 * t - 2.0) * s, u * (2.0 - 1.5 * u) * s,
                         0.5 * t * t * s};
    for (int64_t i = 0; i < intervals; ++i) {
      filter.evaluate((static_cast<double>(i) + t) * spacing, w.data(), dw.data());
      const double* row = &rounded[static_cast<size_t>(i * channels)];
      const double* fine = &coefficients[static_cast<size_t>(i * channels)];
      double worst = 0.0, worst_slope = 0.0, worst_fine = 0.0;
      for (int64_t f = 0; f < channels; ++f) {
        double value = -w[static_cast<size_t>(f)], slope = -dw[static_cast<size_t>(f)];
        double fine_slope = slope;
        for (int k = 0; k < 4; ++k) {
          value += b[k] * row[k * channels + f];
          slope += g[k] * row[k * channels + f];
          fine_slope += g[k] * fine[k * channels + f];
        }
        worst = std::max(worst, std::fabs(value));
        worst_slope = std::max(worst_slope, std::fabs(slope));
        worst_fine = std::max(worst_fine, std::fabs(fine_slope));
      }
      error.value = std::max(error.value, worst / largest);
      error.derivative = std::max(error.derivative, worst_slope / largest_slope);
      error.truncation = std::max(error.truncation, worst_fine / largest_slope);
      if (error.value > value_tolerance || error.truncation > derivative_tolerance) return error;
    }
  }
  return error;
}

// Copies rows over the model's channels to rows over padded blocks.
template <typename T>
void place_rows(const double* from, int64_t count, int64_t blocks, int64_t hidden, int64_t padded,
                Buffer<T>& buffer) {
  T* to = buffer.require(count * blocks * padded);
  std::fill(to, to + count * blocks * padded, T(0));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t f = 0; f < hidden; ++f) {
        to[(i * blocks + b) * padded + f] = static_cast<T>(from[(i * blocks + b) * hidden + f]);
      }
    }
  }
}

}  // namespace

RadialBasis::RadialBasis(const ModelFile& model)
    : gaussian_(model.rbf == "gaussian"),
      size_(static_cast<int>(model.num_rbf) + 1),
      cutoff_(model.cutoff) {
  if (gaussian_) {
    first_ = model.tensor("rbf.centers").values;
    second_ = model.tensor("rbf.widths").values;
    for (double& width : second_) width = 1.0 / width;
  } else {
    first_ = model.tensor("rbf.frequencies").values;
  }
}

void RadialBasis::evaluate(double d, double* values, double* derivatives) const {
  const double angle = kPi / cutoff_;
  const double cut = 0.5 * (std::cos(angle * d) + 1.0);
  const double cut_slope = -0.5 * angle * std::sin(angle * d);
  const int last = size_ - 1;
  for (int k = 0; k < last; ++k) {
    double value, slope;
    const double p = first_[static_cast<size_t>(k)];
    if (gaussian_) {  // exp(-x^2 / 2), x = (d - centre) / width
      const double inverse_width = second_[static_cast<size_t>(k)];
      const double x = (d - p) * inverse_width;
      value = std::exp(-0.5 * x * x);
      slope = -x * inverse_width * value;
    } else {  // sin(p d) / d
      const double x = p * d;
      if (std::fabs(x) < 1e-2) {  // series, where the quotients lose digits
        const double x2 = x * x;
        value = p * (1.0 - x2 / 6.0 * (1.0 - x2 / 20.0 * (1.0 - x2 / 42.0)));
        slope = -p * p * x / 3.0 * (1.0 - x2 / 10.0 * (1.0 - x2 / 28.0 * (1.0 - x2 / 54.0)));
      } else {
        value = std::sin(x) / d;
        slope = (p * std::cos(x) - value) / d;
      }
    }
    values[k] = value * cut;
    derivatives[k] = slope * cut + value * cut_slope;
  }
  values[last] = cut;
  derivatives[last] = cut_slope;
}

template <typename T>
void FilterTable<T>::build(const ModelFile& model, const RadialBasis& basis, int64_t padded,
                           bool tabulate) {
  const int64_t layers = model.num_interactions;
  rows_.resize(static_cast<size_t>(layers));
  report_ = TableReport();
  report_.tabulated = tabulate;
  int64_t intervals = 256;
  for (int64_t k = 0; k < layers;) {
    ExactFilter filter(model, basis, k);
    Buffer<T>& rows = rows_[static_cast<size_t>(k)];
    const int64_t blocks = k == 0 ? 2 : 3;
    if (!tabulate) {
      place_rows(filter.row(0), basis.size(), blocks, model.hidden_dim, padded, rows);
      report_.bytes += rows.bytes();
      ++k;
      continue;
    }
    const double spacing = model.cutoff / static_cast<double>(intervals);
    const std::vector<double> coefficients = spline_coefficients(filter, intervals, spacing);
    const TableError error = check<T>(filter, coefficients, intervals, spacing, value_tolerance(),
                                      derivative_tolerance());
    if (error.value > value_tolerance() || error.truncation > derivative_tolerance()) {
      // One spacing for all interactions, so that an edge's spline argument serves them all.
      intervals = (intervals & (intervals - 1)) == 0 ? intervals * 3 / 2 : intervals * 4 / 3;
      if (intervals > 8192) {
        std::ostringstream out;
        out << "filter table must be within " << value_tolerance() << " of the exact filters, got "
            << error.value << " (derivative " << error.truncation
            << ") with 8192 intervals; run with tabulate=off";
        throw InputError(out.str());
      }
      k = 0;
      report_.bytes = 0;
      report_.value_error = report_.derivative_error = 0.0;
      continue;
    }
    report_.value_error = std::max(report_.value_error, error.value);
    report_.derivative_error = std::max(report_.derivative_error, error.derivative);
    place_rows(coefficients.data(), intervals + 3, blocks, model.hidden_dim, padded, rows);
    report_.bytes += rows.bytes();
    ++k;
  }
  if (tabulate) {
    report_.intervals = intervals;
    inverse_spacing_ = static_cast<double>(intervals) / model.cutoff;
  }
}

template class FilterTable<float>;
template class FilterTable<double>;

}  // namespace mlff
