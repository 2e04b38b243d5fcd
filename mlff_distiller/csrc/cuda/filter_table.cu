#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "core/tables.h"
#include "cuda/filter_table.h"

namespace mlff {
namespace gpu {
namespace {

int64_t blocks_of(int64_t interaction) { return interaction == 0 ? 2 : 3; }

// Rows of one interaction, [F / 32][intervals + 2][value | slope][blocks][32].
template <typename T>
struct Rows {
  std::vector<T> numbers;
  int64_t chunks, rows, blocks;

  T& at(int64_t chunk, int64_t row, int64_t part, int64_t block, int64_t channel) {
    const int64_t place = ((chunk * rows + row) * 2 + part) * blocks + block;
    return numbers[static_cast<size_t>(place * kChannels + channel)];
  }
  T& value(int64_t chunk, int64_t row, int64_t block, int64_t channel) {
    return at(chunk, row, 0, block, channel);
  }
  T& slope(int64_t chunk, int64_t row, int64_t block, int64_t channel) {
    return at(chunk, row, 1, block, channel);
  }
  template <typename F>
  void each_column(F&& f) const {  // f(chunk, block, channel)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t channel = 0; channel < kChannels; ++channel) f(chunk, block, channel);
      }
    }
  }
};

// From the CPU's layout, see core/tables.h.
template <typename T>
Rows<T> rechunked(const FilterRows<T>& from, int64_t num_channels, int64_t rows, int64_t blocks) {
  constexpr int64_t kTheirs = kChunkBytes / static_cast<int64_t>(sizeof(T));
  Rows<T> to{std::vector<T>(static_cast<size_t>(rows * 2 * blocks * num_channels)),
             num_channels / kChannels, rows, blocks};
  to.each_column([&](int64_t chunk, int64_t block, int64_t channel) {
    const int64_t c = chunk * kChannels + channel;
    const T* column = from.rows + c / kTheirs * from.chunk_stride + c % kTheirs + block * kTheirs;
    for (int64_t i = 0; i < rows; ++i) {
      to.value(chunk, i, block, channel) = column[i * from.row_stride];
      to.slope(chunk, i, block, channel) = column[i * from.row_stride + from.slope_offset];
    }
  });
  return to;
}

// --- slopes of half width ------------------------------------------------------------------------

// Of the unrounded table: well below the 2^-11 by which float16 rounds. About a third of the
// intervals that float32 asks for: the slice that a multiprocessor reads then stays in its L1, and
// what rounding does to second derivatives, which goes with the inverse spacing, is less.
constexpr TableBounds kHalfBounds{1e-5, 5e-5, 64};

// A power of two that brings the largest slope near float16's largest number, so that small ones,
// at the cutoff, keep all their bits, too.
float scale_of(Rows<float>& rows) {
  float largest = 0.0f;
  rows.each_column([&](int64_t chunk, int64_t block, int64_t channel) {
    for (int64_t i = 0; i < rows.rows; ++i) {
      largest = std::max(largest, std::fabs(rows.slope(chunk, i, block, channel)));
    }
  });
  int exponent = 0;  // largest < 2^exponent
  static_cast<void>(std::frexp(largest, &exponent));
  return std::ldexp(1.0f, exponent - 15);
}

// Rounds slopes to scale * float16 and makes values their integral from the cutoff inwards, where
// filters end. The largest relative changes go to the report's errors.
void round_slopes(Rows<float>& rows, float scale, TableReport& changes) {
  const int64_t last = rows.rows - 2;  // the knot at the cutoff
  double value = 0.0, largest_value = 1e-300, slope = 0.0, largest_slope = 1e-300;
  rows.each_column([&](int64_t chunk, int64_t block, int64_t channel) {
    const auto knot = [&](int64_t i) -> float& { return rows.value(chunk, i, block, channel); };
    const auto at = [&](int64_t i) -> float& { return rows.slope(chunk, i, block, channel); };
    double left = 0.0;  // what is still to be given to slopes further in
    double sum = knot(last);
    for (int64_t i = last + 1; i >= 0; --i) {
      const double exact = at(i);
      // The two around the cutoff cancel there, and still do when each is rounded for itself.
      const double wanted = exact + (i < last ? left : 0.0);
      const float rounded = scale * from_half(to_half(static_cast<float>(wanted / scale)));
      left += exact - rounded;
      at(i) = rounded;
      slope = std::max(slope, std::fabs(rounded - exact));
      largest_slope = std::max(largest_slope, std::fabs(exact));
      if (i >= last) continue;
      sum -= (static_cast<double>(at(i)) + 4.0 * at(i + 1) + at(i + 2)) / 6.0;
      value = std::max(value, std::fabs(sum - knot(i)));
      largest_value = std::max(largest_value, std::fabs(static_cast<double>(knot(i))));
      knot(i) = static_cast<float>(sum);
    }
  });
  changes.value_error = std::max(changes.value_error, value / largest_value);
  changes.derivative_error = std::max(changes.derivative_error, slope / largest_slope);
}

// [F / 32][intervals + 2][kHalfRows][32], see edges.h.
std::vector<uint32_t> half_rows(Rows<float>& rows, float scale) {
  const int64_t width = rows.blocks == 2 ? kHalfRows<2> : kHalfRows<3>;
  std::vector<uint32_t> words(static_cast<size_t>(rows.chunks * rows.rows * width * kChannels));
  const auto slope = [&](int64_t chunk, int64_t i, int64_t block, int64_t channel) -> uint32_t {
    return i < rows.rows ? to_half(rows.slope(chunk, i, block, channel) / scale) : 0u;
  };
  uint32_t* to = words.data();
  for (int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
    for (int64_t i = 0; i < rows.rows; ++i) {
      for (int64_t row = 0; row < width; ++row) {
        for (int64_t c = 0; c < kChannels; ++c, ++to) {
          if (row < rows.blocks) {
            std::memcpy(to, &rows.value(chunk, i, row, c), sizeof(*to));
          } else if (row == rows.blocks) {
            *to = slope(chunk, i, 0, c) | slope(chunk, i, 1, c) << 16;
          } else {
            *to = slope(chunk, i, 2, c) | slope(chunk, i + 1, 2, c) << 16;
          }
        }
      }
    }
  }
  return words;
}

}  // namespace

template <typename T>
FilterTables<T>::FilterTables(const ModelFile& model, int num_channels, bool half)
    : layers_(static_cast<size_t>(model.num_interactions)) {
  FilterTable<T> table;
  table.build(model, *portable_kernels<T>(), num_channels, true,
              half ? kHalfBounds : FilterTable<T>::exact_bounds());
  report_ = table.report();
  inverse_spacing_ = table.inverse_spacing();
  TableReport changes;
  for (int64_t k = 0; k < model.num_interactions; ++k) {
    Layer& layer = layers_[static_cast<size_t>(k)];
    Rows<T> rows = rechunked(table.rows(k), num_channels, report_.intervals + 2, blocks_of(k));
    if constexpr (sizeof(T) == 4) {
      if (half) {
        layer.scale = scale_of(rows);
        round_slopes(rows, layer.scale, changes);
        layer.half_rows.assign(half_rows(rows, layer.scale));
      }
    }
    layer.rows.assign(rows.numbers);
  }
  report_.value_error += changes.value_error;
  report_.derivative_error += changes.derivative_error;
}

template <typename T>
FilterView<T> FilterTables<T>::view(int64_t interaction) const {
  const Layer& layer = layers_[static_cast<size_t>(interaction)];
  const int64_t rows = report_.intervals + 2, blocks = blocks_of(interaction);
  FilterView<T> view;
  view.rows = layer.rows.data();
  view.chunk_stride = rows * 2 * blocks * kChannels;
  view.inverse_spacing = static_cast<T>(inverse_spacing_);
  view.half_rows = layer.half_rows.data();
  view.half_stride = rows * (blocks == 2 ? kHalfRows<2> : kHalfRows<3>)*kChannels;
  view.half_scale = layer.scale;
  return view;
}

template class FilterTables<float>;
template class FilterTables<double>;

}  // namespace gpu
}  // namespace mlff
