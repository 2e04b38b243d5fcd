#include "core/tables.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/error.h"

namespace mlff {
namespace {

// Exact filters of one interaction, channels in the model's own order.
class ExactFilter {
 public:
  ExactFilter(const ModelFile& model, const RadialFunctions& basis, int64_t interaction)
      : basis_(basis), num_channels_(model.hidden_dim * (interaction == 0 ? 2 : 3)) {
    const std::string name = "interactions." + std::to_string(interaction) + ".filter";
    const std::vector<double>& weight = model.tensor(name + ".weight").values;
    const std::vector<double>& bias = model.tensor(name + ".bias").values;
    const int64_t num_rbf = basis.size() - 1;
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
    for (int64_t k = 0; k < basis_.size(); ++k) {
      const double* from = row(k);
      const double value = values_[static_cast<size_t>(k)];
      for (int64_t c = 0; c < num_channels_; ++c) w[c] += value * from[c];
      if (!dw) continue;
      const double derivative = derivatives_[static_cast<size_t>(k)];
      for (int64_t c = 0; c < num_channels_; ++c) dw[c] += derivative * from[c];
    }
  }

 private:
  const RadialFunctions& basis_;
  int64_t num_channels_;
  std::vector<double> rows_, values_, derivatives_;
};

// Coefficients -1 ... intervals + 1 of the cubic B-spline through the filter at the knots
// 0 ... intervals, (c[j-1] + 4 c[j] + c[j+1]) / 6 = w(j spacing), with the filter's own slope at
// both ends, (c[j+1] - c[j-1]) / 2 = spacing w'. [intervals + 3][channels].
std::vector<double> spline_coefficients(ExactFilter& filter, int64_t intervals, double spacing) {
  const int64_t channels = filter.num_channels();
  std::vector<double> c(static_cast<size_t>((intervals + 3) * channels));
  std::vector<double> pivot(static_cast<size_t>(intervals + 1));
  std::vector<double> slope(static_cast<size_t>(channels)), last(slope);
  auto at = [&](int64_t j) { return &c[static_cast<size_t>((j + 1) * channels)]; };
  // Thomas algorithm; the first and the last equation have absorbed the outermost coefficients.
  for (int64_t j = 0; j <= intervals; ++j) {
    const bool end = j == 0 || j == intervals;
    filter.evaluate(static_cast<double>(j) * spacing, at(j), end ? last.data() : nullptr);
    if (j == 0) slope = last;
    const double below = j == 0 ? 0.0 : j == intervals ? 2.0 : 1.0;
    const double above_before = j == 1 ? 2.0 : 1.0;
    const double before = j == 0 ? 0.0 : pivot[static_cast<size_t>(j - 1)] * above_before;
    const double scale = 1.0 / (4.0 - below * before);
    pivot[static_cast<size_t>(j)] = scale;
    const double sign = j == 0 ? 2.0 : -2.0;
    double* now = at(j);
    for (int64_t f = 0; f < channels; ++f) {
      double right = 6.0 * now[f];
      if (end) right += sign * spacing * last[static_cast<size_t>(f)];
      if (j > 0) right -= below * at(j - 1)[f];
      now[f] = right * scale;
    }
  }
  for (int64_t j = intervals - 1; j >= 0; --j) {
    const double scale = pivot[static_cast<size_t>(j)] * (j == 0 ? 2.0 : 1.0);
    for (int64_t f = 0; f < channels; ++f) at(j)[f] -= scale * at(j + 1)[f];
  }
  for (int64_t f = 0; f < channels; ++f) {
    at(-1)[f] = at(1)[f] - 2.0 * spacing * slope[static_cast<size_t>(f)];
    at(intervals + 1)[f] = at(intervals - 1)[f] + 2.0 * spacing * last[static_cast<size_t>(f)];
  }
  return c;
}

// The rows of FilterTable, rounded to T: [intervals + 2][value | slope][channels].
template <typename T>
std::vector<T> spline_rows(ExactFilter& filter, int64_t intervals, double spacing) {
  const int64_t channels = filter.num_channels();
  const std::vector<double> c = spline_coefficients(filter, intervals, spacing);
  std::vector<T> rows(static_cast<size_t>((intervals + 2) * 2 * channels));
  for (int64_t i = 0; i < intervals + 2; ++i) {
    const double* from = &c[static_cast<size_t>(i * channels)];
    T* to = &rows[static_cast<size_t>(i * 2 * channels)];
    for (int64_t f = 0; f < channels; ++f) {
      // The last knot's value is never used: its interval is beyond the cutoff.
      const double value = i <= intervals
                               ? (from[f] + 4.0 * from[channels + f] + from[2 * channels + f]) / 6.0
                               : 0.0;
      to[f] = static_cast<T>(value);
      to[channels + f] = static_cast<T>(from[channels + f] - from[f]);
    }
  }
  return rows;
}

struct TableError {
  double value = 0.0, derivative = 0.0;
};

// Largest relative errors of the rows; stops early once a bound is missed.
template <typename T>
TableError check(ExactFilter& filter, const std::vector<T>& rows, int64_t intervals, double spacing,
                 const TableBounds& bounds) {
  const int64_t channels = filter.num_channels();
  std::vector<double> w(static_cast<size_t>(channels)), dw(w);
  double largest = 1e-300, largest_slope = 1e-300;
  for (int64_t i = 0; i <= intervals; ++i) {
    filter.evaluate(static_cast<double>(i) * spacing, w.data(), dw.data());
    for (int64_t f = 0; f < channels; ++f) {
      largest = std::max(largest, std::fabs(w[static_cast<size_t>(f)]));
      largest_slope = std::max(largest_slope, std::fabs(dw[static_cast<size_t>(f)]));
    }
  }
  TableError error;
  // Where the error of the value peaks, where that of the derivative does, (3 - sqrt 3)/6; knots.
  for (double t : {0.5, 0.2113248654, 0.0}) {
    double q[3], b[3];
    spline_weights(t, q, b);
    for (int64_t i = 0; i < intervals; ++i) {
      filter.evaluate((static_cast<double>(i) + t) * spacing, w.data(), dw.data());
      const T* row = &rows[static_cast<size_t>(i * 2 * channels)];
      double worst = 0.0, worst_slope = 0.0;
      for (int64_t f = 0; f < channels; ++f) {
        double value = static_cast<double>(row[f]), slope = 0.0;
        for (int k = 0; k < 3; ++k) {
          const double coefficient = static_cast<double>(row[(2 * k + 1) * channels + f]);
          value += q[k] * coefficient;
          slope += b[k] * coefficient;
        }
        worst = std::max(worst, std::fabs(value - w[static_cast<size_t>(f)]));
        worst_slope =
            std::max(worst_slope, std::fabs(slope / spacing - dw[static_cast<size_t>(f)]));
      }
      error.value = std::max(error.value, worst / largest);
      error.derivative = std::max(error.derivative, worst_slope / largest_slope);
      if (error.value > bounds.value || error.derivative > bounds.derivative) return error;
    }
  }
  return error;
}

// From rows over the model's channels, [count][value | slope][block][hidden], to the layout of
// FilterRows, [chunk][count][value | slope][block][chunk].
template <typename T>
void place_rows(const std::vector<T>& from, int64_t count, int64_t blocks, int64_t hidden,
                int64_t padded, Buffer<T>& buffer) {
  constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  T* to = buffer.require(count * 2 * blocks * padded);
  for (int64_t c = 0; c < padded; c += kChunk) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t b = 0; b < 2 * blocks; ++b) {
        const T* row = &from[static_cast<size_t>((i * 2 * blocks + b) * hidden)];
        for (int64_t f = c; f < c + kChunk; ++f) *to++ = f < hidden ? row[f] : T(0);
      }
    }
  }
}

}  // namespace

template <typename T>
void FilterTable<T>::build(const ModelFile& model, const Kernels<T>& kernels, int64_t padded,
                           bool tabulate, const TableBounds& bounds) {
  const int64_t layers = model.num_interactions, hidden = model.hidden_dim;
  kernels_ = &kernels;
  functions_.clear();
  for (int64_t k = 0; k < layers; ++k) functions_.emplace_back(model, k);
  padded_ = padded;
  cutoff_ = model.cutoff;
  rows_.resize(static_cast<size_t>(layers));
  exact_.resize(static_cast<size_t>(layers));
  report_ = TableReport();
  report_.tabulated = tabulate;
  if (!tabulate) {
    for (int64_t k = 0; k < layers; ++k) pack_exact(model, k);
    return;
  }
  int64_t intervals = bounds.intervals;
  for (int64_t k = 0; k < layers;) {
    ExactFilter filter(model, functions_[static_cast<size_t>(k)], k);
    const double spacing = model.cutoff / static_cast<double>(intervals);
    const std::vector<T> rows = spline_rows<T>(filter, intervals, spacing);
    const TableError error = check(filter, rows, intervals, spacing, bounds);
    if (error.value > bounds.value || error.derivative > bounds.derivative) {
      // One spacing for all interactions, so that an edge's spline weights serve them all.
      intervals = (intervals & (intervals - 1)) == 0 ? intervals * 3 / 2 : intervals * 4 / 3;
      if (intervals > 8192) {
        std::ostringstream out;
        out << "the filter table must be within " << bounds.value << " (slope " << bounds.derivative
            << ") of the exact filters, got " << error.value << " (" << error.derivative
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
    Buffer<T>& buffer = rows_[static_cast<size_t>(k)];
    buffer = Buffer<T>();
    place_rows(rows, intervals + 2, k == 0 ? 2 : 3, hidden, padded, buffer);
    report_.bytes += buffer.bytes();
    ++k;
  }
  report_.intervals = intervals;
  inverse_spacing_ = static_cast<double>(intervals) / model.cutoff;
}

template <typename T>
void FilterTable<T>::pack_exact(const ModelFile& model, int64_t k) {
  constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  const ExactFilter filter(model, functions_[static_cast<size_t>(k)], k);
  const int64_t blocks = k == 0 ? 2 : 3, hidden = model.hidden_dim;
  const int64_t size = functions_[static_cast<size_t>(k)].size();
  std::vector<double> matrix;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t c = 0; c < padded_; c += kChunk) {
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t f = c; f < c + kChunk; ++f) {
          matrix.push_back(f < hidden ? filter.row(i)[b * hidden + f] : 0.0);
        }
      }
    }
  }
  PackedMatrix<T>& packed = exact_[static_cast<size_t>(k)];
  packed.pack(*kernels_, size, blocks * padded_, matrix);
  report_.bytes += packed.bytes();
}

template <typename T>
FilterRows<T> FilterTable<T>::rows(int64_t interaction) const {
  constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  const int64_t blocks = interaction == 0 ? 2 : 3;
  FilterRows<T> out;
  out.rows = rows_[static_cast<size_t>(interaction)].data();
  out.slope_offset = blocks * kChunk;
  out.row_stride = 2 * blocks * kChunk;
  out.chunk_stride = (report_.intervals + 2) * out.row_stride;
  return out;
}

template <typename T>
FilterRows<T> FilterTable<T>::evaluate(int64_t interaction, int64_t count,
                                       const T* inverse_distances, Scratch& scratch) const {
  constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
  const PackedMatrix<T>& matrix = exact_[static_cast<size_t>(interaction)];
  const RadialFunctions& functions = functions_[static_cast<size_t>(interaction)];
  const int64_t width = matrix.n(), size = functions.size();
  scratch.values.resize(static_cast<size_t>(size));
  scratch.derivatives.resize(static_cast<size_t>(size));
  T* basis = scratch.basis.require(2 * count * size);  // all values, then all derivatives
  T* rows = scratch.rows.require((count + 2) * 2 * width);
  for (int64_t e = 0; e < count; ++e) {
    // 1/d may have been rounded down to the cutoff.
    const double d = std::min(cutoff_, 1.0 / static_cast<double>(inverse_distances[e]));
    functions.evaluate(d, scratch.values.data(), scratch.derivatives.data());
    for (int64_t i = 0; i < size; ++i) {
      basis[e * size + i] = static_cast<T>(scratch.values[static_cast<size_t>(i)]);
      basis[(count + e) * size + i] = static_cast<T>(scratch.derivatives[static_cast<size_t>(i)]);
    }
  }
  for (int half = 0; half < 2; ++half) {
    GemmCall<T> call;
    matrix.fill(call);
    call.m = count;
    call.a = basis + half * count * size;
    call.lda = size;
    call.c = rows + half * width;
    call.ldc = 2 * width;
    kernels_->gemm(call);
  }
  // The last edges' weights of the following rows are zero, but zero times garbage may be NaN.
  std::fill(rows + count * 2 * width, rows + (count + 2) * 2 * width, T(0));
  FilterRows<T> out;
  out.rows = rows;
  out.slope_offset = width;
  out.row_stride = 2 * width;
  out.chunk_stride = (interaction == 0 ? 2 : 3) * kChunk;
  return out;
}

template class FilterTable<float>;
template class FilterTable<double>;

}  // namespace mlff
