// The grid of bins, and the bin of each row.
#pragma once

#include <cmath>

#include "cuda/neighbors.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kPlanThreads = 512;
constexpr double kMostCells = 5e8;  // shifts stay within int32 with room for sums

__device__ __forceinline__ double fraction(const Box* box, int axis, const double* x) {
  const double* d = box->dual + 3 * axis;
  return d[0] * x[0] + d[1] * x[1] + d[2] * x[2];
}

// One block: extent of open axes, then bins per axis so that there are at most max_bins.
__global__ void __launch_bounds__(kPlanThreads)
    plan_bins(State* state, const Box* box, const double* positions, int64_t n_rows, double radius,
              int64_t max_bins) {
  if (!state->rebuild) return;
  __shared__ double low[3][kPlanThreads / kWarp], high[3][kPlanThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  for (int axis = 0; axis < 3; ++axis) {
    double least = 1e300, most = -1e300;
    if (!box->periodic[axis]) {
      for (int64_t i = threadIdx.x; i < n_rows; i += blockDim.x) {
        const double s = fraction(box, axis, positions + 3 * i);
        if (s < least) least = s;  // not for NaN
        if (s > most) most = s;
      }
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const double a = __shfl_xor_sync(kAllLanes, least, step);
      const double b = __shfl_xor_sync(kAllLanes, most, step);
      least = a < least ? a : least;
      most = b > most ? b : most;
    }
    if (lane == 0) {
      low[axis][warp] = least;
      high[axis][warp] = most;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double bins[3];
  for (int axis = 0; axis < 3; ++axis) {
    double length = box->height[axis];
    if (!box->periodic[axis]) {
      double least = low[axis][0], most = high[axis][0];
      for (int w = 1; w < warps; ++w) {
        least = low[axis][w] < least ? low[axis][w] : least;
        most = high[axis][w] > most ? high[axis][w] : most;
      }
      const bool usable = most >= least && most - least < 1e30;  // else no or absurd positions
      state->origin[axis] = usable ? least : 0.0;
      length = usable ? most - least : 0.0;
    }
    // The cap keeps products of three within double's integers.
    bins[axis] = fmin(fmax(floor(length / radius), 1.0), 65536.0);
    state->per_bin[axis] = length;
  }
  while (bins[0] * bins[1] * bins[2] > static_cast<double>(max_bins)) {
    const int axis =
        bins[0] >= bins[1] ? (bins[0] >= bins[2] ? 0 : 2) : (bins[1] >= bins[2] ? 1 : 2);
    bins[axis] = floor(0.5 * (bins[axis] + 1.0));
    if (bins[0] + bins[1] + bins[2] <= 3.0) break;
  }
  for (int axis = 0; axis < 3; ++axis) {
    const double width = state->per_bin[axis] / bins[axis];
    state->bins[axis] = static_cast<int>(bins[axis]);
    state->per_bin[axis] = fmax(width, radius);
    // Rounding must not lose a bin: distances just below the radius reach 1 - 1e-12 bins further.
    state->range[axis] =
        box->periodic[axis] ? static_cast<int>(ceil(radius / width * (1.0 + 1e-12))) : 1;
  }
  state->num_bins = state->bins[0] * state->bins[1] * state->bins[2];
}

__global__ void clear_counts(const State* state, int* bin_counts, int* incoming_counts,
                             int64_t n_rows) {
  if (!state->rebuild) return;
  const int64_t i = thread_index();
  if (i < state->num_bins) bin_counts[i] = 0;
  if (i < n_rows) incoming_counts[i] = 0;
}

__global__ void bin_rows(State* state, const Box* box, const double* positions, const int* species,
                         int64_t n_rows, int* bin, int* wrap, int* bin_counts) {
  const int64_t i = thread_index();
  if (i >= n_rows || !state->rebuild) return;
  int index = 0;
  bool good = true;
  for (int axis = 0; axis < 3; ++axis) {
    double s = fraction(box, axis, positions + 3 * i);
    const int bins = state->bins[axis];
    int cells = 0;
    if (box->periodic[axis]) {
      const double whole = floor(s);
      good = good && fabs(whole) < kMostCells;  // false for NaN
      cells = good ? static_cast<int>(whole) : 0;
      s = (s - whole) * bins;
    } else {
      s = (s - state->origin[axis]) / state->per_bin[axis];
      good = good && fabs(s) < 1e15;
    }
    const int b = good ? static_cast<int>(fmin(fmax(s, 0.0), static_cast<double>(bins - 1))) : 0;
    index = index * bins + b;
    wrap[3 * i + axis] = cells;
  }
  if (!good) {
    atomicOr(&state->faults, static_cast<unsigned>(kNotFinite));
    atomicMin(&state->fault_atom, static_cast<int>(i));
  }
  if (!good || species[i] < 0) index = -1;
  bin[i] = index;
  if (index >= 0) atomicAdd(&bin_counts[index], 1);
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
