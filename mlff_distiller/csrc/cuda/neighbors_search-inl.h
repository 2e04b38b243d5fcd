// The edges of each centre, from the rows of the bins around it, and the end of a build.
#pragma once

#include "cuda/neighbors.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 256;  // of all kernels of the list that do not say otherwise

struct FindArguments {
  State* state;
  const Box* box;
  const double* positions;
  const int *bin, *wrap, *bin_offsets, *binned;
  int64_t n_local;
  double radius;
  int* counts;         // written by the first pass
  const int* offsets;  // read by the second
  int *senders, *receivers, *shifts, *incoming_counts;
};

// One warp per centre. (i, j, S) and (j, i, -S) give the same bits for the distance, as every
// difference and product changes only its sign: the list is symmetric without exception.
template <bool kWrite>
__global__ void __launch_bounds__(kThreads, 5) find_neighbors(FindArguments p) {
  const int64_t c = thread_index() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (c >= p.n_local || !p.state->rebuild) return;
  if (kWrite && p.state->num_edges == 0) return;
  int found = 0;
  const int at = kWrite ? p.offsets[c] : 0;
  const int home = p.bin[c];
  if (home >= 0) {
    const int* bins = p.state->bins;
    const int* range = p.state->range;
    const int own[3] = {home / (bins[1] * bins[2]), home / bins[2] % bins[1], home % bins[2]};
    const double x[3] = {p.positions[3 * c], p.positions[3 * c + 1], p.positions[3 * c + 2]};
    const double* basis = p.box->basis;
    int d[3];
    for (d[0] = -range[0]; d[0] <= range[0]; ++d[0]) {
      for (d[1] = -range[1]; d[1] <= range[1]; ++d[1]) {
        for (d[2] = -range[2]; d[2] <= range[2]; ++d[2]) {
          int index = 0, image[3];
          bool inside = true;
          for (int axis = 0; axis < 3; ++axis) {
            int b = own[axis] + d[axis];
            image[axis] = 0;
            if (p.box->periodic[axis]) {
              image[axis] = b >= 0 ? b / bins[axis] : -((bins[axis] - 1 - b) / bins[axis]);
              b -= image[axis] * bins[axis];
            } else {
              inside = inside && b >= 0 && b < bins[axis];
            }
            index = index * bins[axis] + b;
          }
          if (!inside) continue;
          const int end = p.bin_offsets[index + 1];
          for (int base = p.bin_offsets[index]; base < end; base += kWarp) {
            bool take = base + lane < end;
            int j = 0, shift[3] = {0, 0, 0};
            if (take) {
              j = p.binned[base + lane];
              for (int axis = 0; axis < 3; ++axis) {
                shift[axis] =
                    image[axis] - p.wrap[3 * static_cast<int64_t>(j) + axis] + p.wrap[3 * c + axis];
              }
              double d2 = 0.0;
              for (int a = 0; a < 3; ++a) {
                const double r =
                    (p.positions[3 * static_cast<int64_t>(j) + a] - x[a]) +
                    (shift[0] * basis[a] + shift[1] * basis[3 + a] + shift[2] * basis[6 + a]);
                d2 += r * r;
              }
              const bool self = j == c && !(shift[0] | shift[1] | shift[2]);
              take = d2 < p.radius * p.radius && !self;
            }
            const unsigned mask = __ballot_sync(kAllLanes, take);
            if (kWrite && take) {
              const int e = at + found + __popc(mask & ((1u << lane) - 1u));
              p.senders[e] = j;
              p.receivers[e] = static_cast<int>(c);
              const int* t = p.box->transform;
              for (int l = 0; l < 3; ++l) {
                p.shifts[3 * static_cast<int64_t>(e) + l] =
                    shift[0] * t[l] + shift[1] * t[3 + l] + shift[2] * t[6 + l];
              }
              atomicAdd(&p.incoming_counts[j], 1);
            }
            found += __popc(mask);
          }
        }
      }
    }
  }
  if (!kWrite && lane == 0) p.counts[c] = found;
}

// One thread.
__global__ void check_capacity(State* state, const int* offsets, int64_t n_local,
                               int64_t capacity) {
  if (!state->rebuild) return;
  state->needed_edges = offsets[n_local];
  state->num_edges = state->needed_edges <= capacity ? offsets[n_local] : 0;
  if (state->needed_edges > capacity)
    atomicOr(&state->faults, static_cast<unsigned>(kTooManyEdges));
}

// After an overflow every list is empty, so that the rest of the step stays within its memory.
__global__ void drop_overflow(const State* state, int* offsets, int64_t n_local) {
  const int64_t c = thread_index();
  if (c > n_local || !state->rebuild || state->needed_edges == state->num_edges) return;
  offsets[c] = 0;
}

__global__ void finish_build(State* state, const Box* box, const double* positions, double* built,
                             int64_t n_rows) {
  if (!state->rebuild) return;
  const int64_t i = thread_index();
  if (i < 3 * n_rows) built[i] = positions[i];
  if (i > 0) return;
  state->built = state->needed_edges == state->num_edges;
  state->force_rebuild = 0;
  ++state->num_builds;
  for (int k = 0; k < 9; ++k) state->built_cell[k] = box->given[k];
}

}  // namespace
}  // namespace gpu
}  // namespace mlff
