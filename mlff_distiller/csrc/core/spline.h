// A cubic spline with uniform knots, as FilterTable keeps it; one source for host and device.
#pragma once

#include "core/host_device.h"

namespace mlff {

// Weights of the three slopes at fraction t of an interval: q for the value, b for the derivative
// (1/spacing times): w = value + sum_k q_k slope_k, w' = sum_k b_k slope_k / spacing.
template <typename T>
MLFF_HOST_DEVICE inline void spline_weights(T t, T* q, T* b) {
  const T u = T(1) - t;
  b[0] = T(0.5) * u * u;
  b[1] = T(0.5) + t * u;
  b[2] = T(0.5) * t * t;
  q[0] = (T(1) - u * u * u) * T(1.0 / 6.0);
  q[1] = t * (T(0.5) + t * (T(0.5) - t * T(1.0 / 3.0)));
  q[2] = t * t * t * T(1.0 / 6.0);
}

}  // namespace mlff
