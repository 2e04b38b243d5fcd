// Screened nuclear repulsion, students/repulsion.py, one source for host and device.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace mlff {

// Two species.
struct RepulsionPair {
  double charge;          // Coulomb constant times Z1 Z2, eV Angstrom
  double inverse_length;  // 1/Angstrom
  double range;           // Angstrom
};

struct Screening {
  double amplitudes[4], decays[4];
  bool switched;  // smoothly to zero at the range, else cut there
};

// Pair energy in eV and its derivative by the distance d; zero from the range on.
MLFF_HOST_DEVICE inline void pair_repulsion(const RepulsionPair& pair, const Screening& screening,
                                            double d, double& energy, double& slope) {
  using std::exp;
  energy = slope = 0.0;
  if (d >= pair.range) return;
  double sum = 0.0, sum_slope = 0.0;
  for (int k = 0; k < 4; ++k) {
    const double decay = screening.decays[k] * pair.inverse_length;
    const double term = screening.amplitudes[k] * exp(-decay * d);
    sum += term;
    sum_slope -= decay * term;
  }
  const double bare = pair.charge / d;
  energy = bare * sum;
  slope = bare * sum_slope - energy / d;
  if (!screening.switched) return;
  const double x = d / pair.range, x5 = x * x * x * x * x;
  const double envelope = 1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x));
  const double envelope_slope = -168.0 * x5 * (1.0 - x) * (1.0 - x) / pair.range;
  slope = slope * envelope + energy * envelope_slope;
  energy *= envelope;
}

}  // namespace mlff
