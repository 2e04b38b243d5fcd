// When a neighbour list that reaches beyond the cutoff has to be built anew; for host and device.
#pragma once

#include "core/matrix3.h"

namespace mlff {

// Angstrom. Lists reach this much beyond the cutoff and live until an atom has moved half of it.
constexpr double kDefaultSkin = 0.3;

// How far atoms may have moved, Angstrom, in the sense of moved_squared(); <= 0: build. Sets `map`.
//
// With every direction periodic the cell may have been deformed: x = x_built M + delta with
// M = C_built^-1 C, so |r_built| <= |M^-1| (|r| + 2 max |delta|).
MLFF_HOST_DEVICE inline double allowed_move(const double* built_cell, const double* cell,
                                            bool all_periodic, double cutoff, double skin,
                                            double* map) {
  bool same = true;
  for (int i = 0; i < 9; ++i) {
    map[i] = i % 4 == 0 ? 1.0 : 0.0;
    same = same && cell[i] == built_cell[i];
  }
  double stretch = 1.0;
  if (!same) {
    if (!all_periodic) return -1.0;
    double back[9];
    inverse3(built_cell, back);
    multiply3(back, cell, map);
    stretch = inverse_stretch3(map);
  }
  return 0.5 * ((cutoff + skin) / stretch - cutoff) - 1e-9;
}

// |delta|^2 of one atom, at x now and at `built` when the list was made.
MLFF_HOST_DEVICE inline double moved_squared(const double* x, const double* built,
                                             const double* map) {
  double sum = 0.0;
  for (int a = 0; a < 3; ++a) {
    const double delta = x[a] - built[0] * map[a] - built[1] * map[3 + a] - built[2] * map[6 + a];
    sum += delta * delta;
  }
  return sum;
}

}  // namespace mlff
