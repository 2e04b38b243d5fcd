// 3x3 matrices as nine numbers, rows one after the other; for host and device.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace mlff {

MLFF_HOST_DEVICE inline double determinant3(const double* m) {
  return m[0] * (m[4] * m[8] - m[5] * m[7]) + m[1] * (m[5] * m[6] - m[3] * m[8]) +
         m[2] * (m[3] * m[7] - m[4] * m[6]);
}

// `out` must not be `m`.
MLFF_HOST_DEVICE inline void inverse3(const double* m, double* out) {
  const double s = 1.0 / determinant3(m);
  out[0] = (m[4] * m[8] - m[5] * m[7]) * s;
  out[1] = (m[2] * m[7] - m[1] * m[8]) * s;
  out[2] = (m[1] * m[5] - m[2] * m[4]) * s;
  out[3] = (m[5] * m[6] - m[3] * m[8]) * s;
  out[4] = (m[0] * m[8] - m[2] * m[6]) * s;
  out[5] = (m[2] * m[3] - m[0] * m[5]) * s;
  out[6] = (m[3] * m[7] - m[4] * m[6]) * s;
  out[7] = (m[1] * m[6] - m[0] * m[7]) * s;
  out[8] = (m[0] * m[4] - m[1] * m[3]) * s;
}

// c = a b; `c` must be neither.
MLFF_HOST_DEVICE inline void multiply3(const double* a, const double* b, double* c) {
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
    }
  }
}

// How far a deformation m is from none: 1 + |m^-1 - 1|, an upper bound of |m^-1|.
MLFF_HOST_DEVICE inline double inverse_stretch3(const double* m) {
  using std::sqrt;
  double inverse[9], off = 0.0;
  inverse3(m, inverse);
  for (int i = 0; i < 9; ++i) {
    const double x = inverse[i] - (i % 4 == 0 ? 1.0 : 0.0);
    off += x * x;
  }
  return 1.0 + sqrt(off);
}

}  // namespace mlff
