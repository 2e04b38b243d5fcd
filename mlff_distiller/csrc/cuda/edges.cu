// Edge records before the passes over features (edge_passes.cu); forces, virial, totals after them.
#include <algorithm>

#include "core/lattice.h"
#include "cuda/edges.h"
#include "cuda/threads.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

// One edge of a centre: its vector, and its record, whose interval is -1 if it does not count.
template <typename T>
__device__ __forceinline__ EdgeRecord<T> make_record(const NeighborView& list, int64_t centre,
                                                     int e, double cutoff, double warn_distance,
                                                     double inverse_spacing, int intervals,
                                                     double* vectors) {
  const int64_t sender = list.senders[e];
  const int* shift = list.shifts + 3 * static_cast<int64_t>(e);
  const double* cell = list.box->given;
  double r[3], d2 = 0.0;
  for (int a = 0; a < 3; ++a) {
    r[a] = (list.positions[3 * sender + a] - list.positions[3 * centre + a]) +
           (shift[0] * cell[a] + shift[1] * cell[3 + a] + shift[2] * cell[6 + a]);
    d2 += r[a] * r[a];
    vectors[3 * static_cast<int64_t>(e) + a] = r[a];
  }
  EdgeRecord<T> record;
  record.sender = static_cast<int>(sender);
  record.species = list.species[sender];
  record.edge = e;
  record.interval = -1;
  record.r[0] = record.r[1] = record.r[2] = record.t = T(0);
  const bool inside = d2 < cutoff * cutoff;
  if (inside && d2 > kSamePoint * kSamePoint) {
    const double d = sqrt(d2), inverse = 1.0 / d, position = d * inverse_spacing;
    const int interval = min(static_cast<int>(position), intervals - 1);
    record.interval = interval;
    record.t = static_cast<T>(position - interval);
    for (int a = 0; a < 3; ++a) record.r[a] = static_cast<T>(r[a] * inverse);
    if (d < warn_distance) atomicMin(&list.state->close_edge, e);
  } else if (inside || !is_finite(d2)) {
    atomicOr(&list.state->faults, static_cast<unsigned>(inside ? kOnTop : kNotFinite));
    atomicMin(&list.state->fault_edge, e);
  }
  return record;
}

// One warp per centre, lanes over its edges. Which record goes where depends on the list alone.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    geometry_kernel(NeighborView list, double cutoff, double warn_distance, double inverse_spacing,
                    int intervals, EdgeRecord<T>* records, int* ends, double* vectors) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= list.n_local) return;
  const int lane = threadIdx.x % kWarp, end = list.offsets[c + 1];
  const unsigned lower = (1u << lane) - 1;
  int front = list.offsets[c], back = end;
  for (int first = front; first < end; first += 32) {
    const int e = first + lane;
    EdgeRecord<T> record;
    record.interval = -1;
    if (e < end) {
      record =
          make_record<T>(list, c, e, cutoff, warn_distance, inverse_spacing, intervals, vectors);
    }
    const bool counts = record.interval >= 0;
    const unsigned within = __ballot_sync(kAllLanes, counts);
    const unsigned beyond = __ballot_sync(kAllLanes, e < end && !counts);
    if (e < end) {
      const int at = counts ? front + __popc(within & lower) : back - 1 - __popc(beyond & lower);
      records[at] = record;
    }
    front += __popc(within);
    back -= __popc(beyond);
  }
  if (lane == 0) ends[c] = front;
}

// Names the atoms of the first edge with a fault and of the first short one. One thread.
__global__ void name_edges_kernel(NeighborView list, const double* vectors) {
  State* state = list.state;
  const int e = state->fault_edge;
  if (e < state->num_edges) {
    state->fault_centre = list.receivers[e];
    state->fault_sender = list.senders[e];
  }
  const int close = state->close_edge;
  if (close < state->num_edges) {
    state->close_centre = list.receivers[close];
    state->close_sender = list.senders[close];
    const double* r = vectors + 3 * static_cast<int64_t>(close);
    state->close_distance = sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
  }
}

// --- forces --------------------------------------------------------------------------------------

// One warp per centre, lanes over its edges.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pair_kernel(NeighborView list, RepulsionView repulsion, int chunks,
                const EdgeRecord<T>* records, const double* vectors, const T* partial,
                const double* weights, double* gradients, double* sums, double* energies) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= list.n_local) return;
  const int lane = threadIdx.x % kWarp, end = list.offsets[c + 1];
  double total[kCentreSums + 1];
#pragma unroll
  for (int k = 0; k <= kCentreSums; ++k) total[k] = 0.0;
  for (int64_t at = list.offsets[c] + lane; at < end; at += 32) {
    const EdgeRecord<T> edge = records[at];
    const int64_t e = edge.edge;
    double d[3] = {0.0, 0.0, 0.0};
    if (edge.interval >= 0) {
      const double* vector = vectors + 3 * e;
      const double distance =
          sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
      const double inverse = 1.0 / distance;
      double along = 0.0;  // dE/dd
      if (partial) {
        double g[4] = {0.0, 0.0, 0.0, 0.0};
        for (int chunk = 0; chunk < chunks; ++chunk) {
          const T* from = partial + 4 * (chunk * list.edge_capacity + at);
          for (int k = 0; k < 4; ++k) g[k] += static_cast<double>(from[k]);
        }
        double dot = 0.0;
        for (int a = 0; a < 3; ++a) {
          d[a] = g[1 + a] * inverse;
          dot += d[a] * vector[a] * inverse;
        }
        along = g[0] - dot;
      }
      if (repulsion.pairs) {
        double energy, slope;
        const int pair = list.species[c] * repulsion.num_species + edge.species;
        pair_repulsion(repulsion.pairs[pair], repulsion.screening, distance, energy, slope);
        total[kCentreSums] += 0.5 * energy;
        along += (weights ? 0.5 * weights[c] : 0.5) * slope;
      }
      for (int a = 0; a < 3; ++a) d[a] += along * inverse * vector[a];
    }
    if (partial) {
      for (int a = 0; a < 3; ++a) {
        gradients[3 * e + a] = d[a];
        total[a] += d[a];
        for (int b = 0; b < 3; ++b) total[3 + 3 * a + b] -= vectors[3 * e + a] * d[b];
      }
    }
  }
#pragma unroll
  for (int k = 0; k <= kCentreSums; ++k) total[k] = sum_over_lanes(total[k]);
  if (lane != 0) return;
  if (partial) {
    for (int k = 0; k < kCentreSums; ++k) sums[kCentreSums * c + k] = total[k];
  }
  if (repulsion.pairs) energies[c] += total[kCentreSums];
}

// The share of block blockIdx.x, the first of `shares`, in the totals. Fixed blocks with fixed
// shares: the order of each sum is a function of n.
__device__ void sum_share(int64_t n, unsigned shares, const double* energies, const double* sums,
                          double* totals) {
  __shared__ double shared[kWarps][kTotals];
  double total[kTotals];
#pragma unroll
  for (int k = 0; k < kTotals; ++k) total[k] = 0.0;
  for (int64_t c = thread_index(); c < n; c += shares * kThreads) {
    total[0] += energies[c];
    if (!sums) continue;
    for (int k = 1; k < kTotals; ++k) total[k] += sums[kCentreSums * c + 2 + k];
  }
#pragma unroll
  for (int k = 0; k < kTotals; ++k) {
    total[k] = sum_over_lanes(total[k]);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp][k] = total[k];
  }
  __syncthreads();
  if (threadIdx.x < kTotals) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][threadIdx.x];
    totals[kTotals * blockIdx.x + threadIdx.x] = sum;
  }
}

// The first blocks sum totals; behind them a warp has a row, its lanes that row's incoming edges.
// In one launch, as both need no more than what pair_kernel has written.
template <bool kVirials>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(NeighborView list, unsigned shares, const double* vectors,
                  const double* gradients, const double* sums, const double* energies,
                  double* forces, double* atom_virials, double* totals) {
  if (blockIdx.x < shares) {
    sum_share(list.n_local, shares, energies, sums, totals);
    return;
  }
  const int64_t row = static_cast<int64_t>(blockIdx.x - shares) * kWarps + threadIdx.x / kWarp;
  if (row >= list.n_rows) return;  // whole warps
  constexpr int kSums = kVirials ? kCentreSums : 3;
  double sum[kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) sum[k] = 0.0;
  const bool listed = list.state->num_edges > 0;  // not after an overflow
  const int end = listed ? list.incoming_offsets[row + 1] : 0;
  const int lane = threadIdx.x % kWarp;
  for (int p = (listed ? list.incoming_offsets[row] : 0) + lane; p < end; p += 32) {
    const int64_t e = list.incoming_edges[p];
    double g[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) g[a] = gradients[3 * e + a];
#pragma unroll
    for (int a = 0; a < 3; ++a) sum[a] -= g[a];
#pragma unroll
    for (int k = 3; k < kSums; ++k) sum[k] -= 0.5 * vectors[3 * e + (k - 3) / 3] * g[k % 3];
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) sum[k] = sum_over_lanes(sum[k]);
  if (lane != 0) return;
  const double* own = row < list.n_local ? sums + kCentreSums * row : nullptr;
#pragma unroll
  for (int a = 0; a < 3; ++a) forces[3 * row + a] = sum[a] + (own ? own[a] : 0.0);
#pragma unroll
  for (int k = 3; k < kSums; ++k) {
    atom_virials[9 * row + k - 3] = sum[k] + (own ? 0.5 * own[k] : 0.0);
  }
}

}  // namespace

template <typename T>
void edge_geometry(const NeighborView& list, double cutoff, double warn_distance,
                   double inverse_spacing, int intervals, EdgeRecord<T>* records, int* ends,
                   double* vectors, cudaStream_t stream) {
  MLFF_LAUNCH(geometry_kernel<T>, dim3(blocks_for(list.n_local, kWarps)), dim3(kThreads), 0, stream,
              list, cutoff, warn_distance, inverse_spacing, intervals, records, ends, vectors);
}

void name_edges(const NeighborView& list, const double* vectors, cudaStream_t stream) {
  MLFF_LAUNCH(name_edges_kernel, dim3(1), dim3(1), 0, stream, list, vectors);
}

template <typename T>
void pair_gradients(const NeighborView& list, const RepulsionView& repulsion, int num_channels,
                    const EdgeRecord<T>* records, const double* vectors, const T* partial,
                    const double* weights, double* gradients, double* sums, double* energies,
                    cudaStream_t stream) {
  if (list.n_local == 0) return;
  MLFF_LAUNCH(pair_kernel<T>, dim3(blocks_for(list.n_local, kWarps)), dim3(kThreads), 0, stream,
              list, repulsion, num_channels / kChannels, records, vectors, partial, weights,
              gradients, sums, energies);
}

int64_t total_shares(int64_t n_local) {
  constexpr int64_t kAtoms = 4 * kThreads, kMost = 64;
  return std::min<int64_t>(blocks_for(n_local, kAtoms), kMost);
}

void finish_forces(const NeighborView& list, const double* vectors, const double* gradients,
                   const double* sums, const double* energies, double* forces, double* atom_virials,
                   double* totals, cudaStream_t stream) {
  const unsigned shares = static_cast<unsigned>(total_shares(list.n_local));
  const bool rows = forces && list.n_rows > 0;
  const dim3 grid(shares + (rows ? blocks_for(list.n_rows, kWarps) : 0));
  if (atom_virials) {
    MLFF_LAUNCH(finish_kernel<true>, grid, dim3(kThreads), 0, stream, list, shares, vectors,
                gradients, sums, energies, forces, atom_virials, totals);
  } else {
    MLFF_LAUNCH(finish_kernel<false>, grid, dim3(kThreads), 0, stream, list, shares, vectors,
                gradients, sums, energies, forces, atom_virials, totals);
  }
}

#define MLFF_INSTANTIATE(T)                                                                        \
  template void edge_geometry<T>(const NeighborView&, double, double, double, int, EdgeRecord<T>*, \
                                 int*, double*, cudaStream_t);                                     \
  template void pair_gradients<T>(const NeighborView&, const RepulsionView&, int,                  \
                                  const EdgeRecord<T>*, const double*, const T*, const double*,    \
                                  double*, double*, double*, cudaStream_t);
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)
#undef MLFF_INSTANTIATE

}  // namespace gpu
}  // namespace mlff
