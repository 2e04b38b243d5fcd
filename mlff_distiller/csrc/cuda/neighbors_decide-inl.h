// Whether a step builds a list: had an atom moved too far, or does the host say so?
#pragma once

#include <climits>

#include "core/skin.h"
#include "cuda/neighbors.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

// See core/skin.h. One thread.
__global__ void decide_begin(State* state, const Box* box, double cutoff, double skin,
                             int keep_list) {
  state->faults = 0;
  state->blocks_done = 0;
  state->fault_edge = state->fault_atom = state->close_edge = INT_MAX;
  int rebuild = state->force_rebuild || !state->built;
  state->allowed2 = -1.0;
  if (!rebuild && !keep_list) {
    const bool all_periodic = box->periodic[0] && box->periodic[1] && box->periodic[2];
    const double allowed =
        allowed_move(state->built_cell, box->given, all_periodic, cutoff, skin, state->map);
    if (allowed > 0.0) {
      state->allowed2 = allowed * allowed;
    } else {
      rebuild = 1;
    }
  }
  state->rebuild = rebuild;
}

// The last block that is done tells `condition`, if there is one, whether a list is to be built.
__global__ void find_moved(State* state, const double* positions, const double* built,
                           int64_t n_rows, Condition condition) {
  const int64_t i = thread_index();
  if (i < n_rows && state->allowed2 >= 0.0) {
    const double d2 = moved_squared(positions + 3 * i, built + 3 * i, state->map);
    if (!(d2 <= state->allowed2)) {  // NaN, too
      atomicExch(&state->rebuild, 1);
      __threadfence();
    }
  }
  if (!condition) return;
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(&state->blocks_done, 1u) != gridDim.x - 1) return;
  set_condition(condition, atomicOr(&state->rebuild, 0) != 0);
}

__global__ void request_build(State* state) { state->force_rebuild = 1; }

}  // namespace
}  // namespace gpu
}  // namespace mlff
