// Filter tables on the device: the CPU's checked ones in chunks of 32 channels, and for `math`
// other than float32 with slopes rounded to float16, which forward passes read at half width, and
// with as many intervals as that precision asks for, a third or so.
//
// Rounded tables are another smooth potential, not a noisy one. Slopes are rounded first, each
// taking over what the one before left, so that their sums stay within half a step; values are then
// summed up from the rounded slopes, in double, and kept in float32. So the filter is still exactly
// the integral of its derivative, without steps at knots, and forces are as exact derivatives of
// the energy as in float32. Backward passes read the same numbers as float32: they are bound by
// instructions, of which conversions would be more (benchmarks/gpu_sass.py).
#pragma once

#include <cstdint>
#include <vector>

#include "core/graph.h"
#include "core/model_file.h"
#include "cuda/device_memory.h"
#include "cuda/edges.h"

namespace mlff {
namespace gpu {

template <typename T>
class FilterTables {
 public:
  // Throws InputError if the unrounded table misses its bound. `half` is for float32 alone.
  FilterTables(const ModelFile& model, int num_channels, bool half);

  FilterView<T> view(int64_t interaction) const;
  // Errors include rounding, if there is any.
  const TableReport& report() const { return report_; }
  int intervals() const { return static_cast<int>(report_.intervals); }
  double inverse_spacing() const { return inverse_spacing_; }  // 1/Angstrom

  template <typename F>
  void each(F&& f) const {
    for (const Layer& layer : layers_) {
      f(layer.rows, layer.rows.count());
      f(layer.half_rows, layer.half_rows.count());
    }
  }

 private:
  struct Layer {
    DeviceMemory<T> rows;
    DeviceMemory<uint32_t> half_rows;  // empty without
    float scale = 1.0f;
  };
  TableReport report_;
  double inverse_spacing_ = 0.0;
  std::vector<Layer> layers_;
};

extern template class FilterTables<float>;
extern template class FilterTables<double>;

}  // namespace gpu
}  // namespace mlff
