// Kernels over edges.
//
// What bounds them, per edge and chunk of 32 channels. L1 delivers a row of 128 bytes a cycle and
// SM: forward reads 12 rows of the table, 5 of the neighbour and the record, backward 12 and 4, the
// record, and some 4 for its shuffles: 19 and 23 cycles. Arithmetic is about 30 and 60
// instructions: an H100 (128 FP32 lanes an SM) needs 8 and 15 cycles for it, so L1 and the issue of
// instructions bound both; an A100 (64 lanes) is bound by FP32 in reverse. Blocks run chunk by
// chunk (grid.y is the chunk), so that at any time all of an SM's warps read one chunk's slice of
// the table, 198 kB with 256 intervals, most of which an A100's or H100's L1 holds. With few atoms
// the chain record, sender's row, sum is what counts; the next record is therefore loaded ahead.
// The sums are in benchmarks/gpu_roofline.py; nothing was measured.
#include <algorithm>

#include "core/lattice.h"
#include "core/spline.h"
#include "cuda/edges.h"

namespace mlff {
namespace gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 8;  // edges whose sums over channels are taken together
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

template <typename T>
__global__ void __launch_bounds__(256)
    geometry_kernel(NeighborView list, double cutoff, double warn_distance, double inverse_spacing,
                    int intervals, EdgeRecord<T>* records, double* vectors) {
  const int64_t e = thread_index();
  State* state = list.state;
  if (e >= state->num_edges) return;
  const int64_t sender = list.senders[e], centre = list.receivers[e];
  const double* cell = list.box->given;
  double r[3], d2 = 0.0;
  for (int a = 0; a < 3; ++a) {
    const int* shift = list.shifts + 3 * e;
    r[a] = (list.positions[3 * sender + a] - list.positions[3 * centre + a]) +
           (shift[0] * cell[a] + shift[1] * cell[3 + a] + shift[2] * cell[6 + a]);
    d2 += r[a] * r[a];
    vectors[3 * e + a] = r[a];
  }
  EdgeRecord<T> record;
  record.sender = static_cast<int>(sender);
  record.interval = -1;
  record.r[0] = record.r[1] = record.r[2] = record.inverse = record.t = T(0);
  const bool inside = d2 < cutoff * cutoff;
  if (inside && d2 > kSamePoint * kSamePoint) {
    const double d = sqrt(d2), inverse = 1.0 / d, position = d * inverse_spacing;
    const int interval = min(static_cast<int>(position), intervals - 1);
    record.interval = interval;
    record.t = static_cast<T>(position - interval);
    record.inverse = static_cast<T>(inverse);
    for (int a = 0; a < 3; ++a) record.r[a] = static_cast<T>(r[a] * inverse);
    if (d < warn_distance) atomicMin(&state->close_edge, static_cast<int>(e));
  } else if (inside || !is_finite(d2)) {
    atomicOr(&state->faults, static_cast<unsigned>(inside ? kOnTop : kNotFinite));
    atomicMin(&state->fault_edge, static_cast<int>(e));
  }
  records[e] = record;
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

// --- filters -------------------------------------------------------------------------------------

// Weights of an edge, those of the derivative with 1/spacing.
template <typename T>
struct Spline {
  T q[3], b[3];
  __device__ __forceinline__ Spline(T t, T inverse_spacing) {
    mlff::spline_weights(t, q, b);
    for (T& weight : b) weight *= inverse_spacing;
  }
};

// One channel of one block: value and slope from the same four numbers.
template <typename T, int kBlocks, bool kSlope>
__device__ __forceinline__ T filter(const T* row, int block, const Spline<T>& spline, T& slope) {
  const T* at = row + block * kChannels;
  const T s0 = at[kBlocks * kChannels], s1 = at[3 * kBlocks * kChannels],
          s2 = at[5 * kBlocks * kChannels];
  if (kSlope) slope = spline.b[0] * s0 + spline.b[1] * s1 + spline.b[2] * s2;
  return at[0] + spline.q[0] * s0 + spline.q[1] * s1 + spline.q[2] * s2;
}

// --- messages ------------------------------------------------------------------------------------

template <typename T, bool kFirst>
__global__ void __launch_bounds__(kThreads) forward_kernel(EdgeCall<T> p) {
  constexpr int kBlocks = kFirst ? 2 : 3, kWidth = kFirst ? 2 : 5;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (c >= p.n_local) return;
  const int lane = threadIdx.x % 32, chunk = blockIdx.y, chunks = p.num_channels / kChannels;
  const int64_t f = p.num_channels, channel = chunk * kChannels + lane;
  T s = 0, v[3] = {0, 0, 0};
  if (kFirst) {
    const int species = p.species[c];
    if (species >= 0) s = p.embedding[species * f + channel];
  } else {
    s = p.s_in[c * f + channel];
    for (int a = 0; a < 3; ++a) v[a] = p.v_in[(3 * c + a) * f + channel];
  }
  const T* table = p.filter.rows + chunk * p.filter.chunk_stride + lane;
  const T* source = (kFirst ? p.species_x : p.rows) + chunk * kWidth * kChannels + lane;
  const int begin = p.offsets[c], end = p.offsets[c + 1];
  EdgeRecord<T> next;
  if (begin < end) next = p.edges[begin];
  for (int e = begin; e < end; ++e) {
    const EdgeRecord<T> edge = next;
    if (e + 1 < end) next = p.edges[e + 1];
    if (edge.interval < 0) continue;  // the same for the whole warp
    const int64_t index = kFirst ? p.species[edge.sender] : edge.sender;
    const T* x = source + index * chunks * kWidth * kChannels;
    const T* row = table + static_cast<int64_t>(edge.interval) * 2 * kBlocks * kChannels;
    const Spline<T> spline(edge.t, p.filter.inverse_spacing);
    T unused;
    s += x[0] * filter<T, kBlocks, false>(row, 0, spline, unused);
    const T along = x[kChannels] * filter<T, kBlocks, false>(row, 1, spline, unused);
    for (int a = 0; a < 3; ++a) v[a] += along * edge.r[a];
    if (!kFirst) {
      const T w2 = filter<T, kBlocks, false>(row, kBlocks - 1, spline, unused);
      for (int a = 0; a < 3; ++a) v[a] += x[(2 + a) % kWidth * kChannels] * w2;
    }
  }
  p.s_out[c * p.s_stride + channel] = s;
  for (int a = 0; a < 3; ++a) p.v_out[(3 * c + a) * f + channel] = v[a];
}

// Halves the number of values that a lane holds. Recursion, not a loop: with a loop some versions
// of nvcc index the array at run time and put it into local memory.
template <int kHalf, typename T>
__device__ __forceinline__ void fold(T (&values)[32], int lane) {
  const bool upper = (lane & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T send = upper ? values[i] : values[i + kHalf];
    const T keep = upper ? values[i + kHalf] : values[i];
    values[i] = keep + __shfl_xor_sync(kAllLanes, send, kHalf);
  }
  if constexpr (kHalf > 1) fold<kHalf / 2>(values, lane);
}

// Lane l gets the sum over lanes of values[l]: 31 shuffles, where a sum of each would take 160.
template <typename T>
__device__ __forceinline__ T transpose_sum(T (&values)[32], int lane) {
  fold<16>(values, lane);
  return values[0];
}

template <typename T, bool kFirst>
__global__ void __launch_bounds__(kThreads) backward_kernel(EdgeCall<T> p) {
  constexpr int kBlocks = kFirst ? 2 : 3;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (c >= p.n_local) return;
  const int lane = threadIdx.x % 32, chunk = blockIdx.y, chunks = p.num_channels / kChannels;
  const int64_t f = p.num_channels, channel = chunk * kChannels + lane;
  // First: the centre's adjoints and the sender's features (its edge as receiver). Others: the
  // centre's features and the neighbour's adjoints (its edge as sender, direction reversed).
  const T* adjoints = p.rows + chunk * 4 * kChannels + lane;
  const T* mine = adjoints + c * chunks * 4 * kChannels;
  T g[4], x[5] = {0, 0, 0, 0, 0}, sums[5] = {0, 0, 0, 0, 0};
  if (kFirst) {
    for (int k = 0; k < 4; ++k) g[k] = mine[k * kChannels];
  } else {
    const T* own = p.own + (c * chunks + chunk) * 5 * kChannels + lane;
    for (int k = 0; k < 5; ++k) x[k] = own[k * kChannels];
  }
  const T* table = p.filter.rows + chunk * p.filter.chunk_stride + lane;
  T* partial = p.partial + static_cast<int64_t>(chunk) * p.edge_capacity * 4;
  const int end = p.offsets[c + 1];
  for (int first = p.offsets[c]; first < end; first += kBatch) {
    T values[4 * kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      T dd = 0, gx = 0, gy = 0, gz = 0;
      EdgeRecord<T> edge;
      edge.interval = -1;
      if (first + j < end) edge = p.edges[first + j];
      if (edge.interval >= 0) {
        const T* row = table + static_cast<int64_t>(edge.interval) * 2 * kBlocks * kChannels;
        const Spline<T> spline(edge.t, p.filter.inverse_spacing);
        if (kFirst) {
          const T* from =
              p.species_x +
              (static_cast<int64_t>(p.species[edge.sender]) * chunks + chunk) * 2 * kChannels +
              lane;
          x[0] = from[0];
          x[1] = from[kChannels];
        } else {
          const T* from = adjoints + static_cast<int64_t>(edge.sender) * chunks * 4 * kChannels;
          for (int k = 0; k < 4; ++k) g[k] = from[k * kChannels];
        }
        T slope0, slope1, slope2 = 0;
        const T w0 = filter<T, kBlocks, true>(row, 0, spline, slope0);
        const T w1 = filter<T, kBlocks, true>(row, 1, spline, slope1);
        T along = g[1] * edge.r[0] + g[2] * edge.r[1] + g[3] * edge.r[2];
        T scale = x[1] * w1;
        if (!kFirst) {  // the reversed edge's direction is -r
          along = -along;
          scale = -scale;
          const T w2 = filter<T, kBlocks, true>(row, kBlocks - 1, spline, slope2);
          sums[0] += g[0] * w0;
          sums[1] += along * w1;
          for (int a = 0; a < 3; ++a) sums[2 + a] += g[1 + a] * w2;
          dd = (g[1] * x[2] + g[2] * x[3] + g[3] * x[4]) * slope2;
        }
        dd += g[0] * x[0] * slope0 + along * x[1] * slope1;
        gx = scale * g[1];
        gy = scale * g[2];
        gz = scale * g[3];
      }
      values[4 * j] = dd;
      values[4 * j + 1] = gx;
      values[4 * j + 2] = gy;
      values[4 * j + 3] = gz;
    }
    const T total = transpose_sum(values, lane);
    if (first + lane / 4 < end) {
      T* to = partial + 4 * static_cast<int64_t>(first) + lane;
      *to = p.accumulate ? *to + total : total;
    }
  }
  if (!kFirst) {
    const T x2 = p.x2[c * f + channel];
    T dot = 0;
    for (int a = 0; a < 3; ++a) {
      dot += sums[2 + a] * p.v_in[(3 * c + a) * f + channel];
      p.gv[(3 * c + a) * f + channel] = mine[(1 + a) * kChannels] + x2 * sums[2 + a];
    }
    p.gx[c * 3 * f + channel] = sums[0];
    p.gx[c * 3 * f + f + channel] = sums[1];
    p.gx[c * 3 * f + 2 * f + channel] = dot;
    p.gs[c * f + channel] = mine[0];
  }
}

// --- forces --------------------------------------------------------------------------------------

__device__ __forceinline__ double sum_over_lanes(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// One warp per centre, lanes over its edges.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pair_kernel(NeighborView list, RepulsionView repulsion, int chunks,
                const EdgeRecord<T>* records, const double* vectors, const T* partial,
                const double* weights, double* gradients, double* sums, double* energies) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (c >= list.n_local) return;
  const int lane = threadIdx.x % 32, end = list.offsets[c + 1];
  double total[kCentreSums + 1];
#pragma unroll
  for (int k = 0; k <= kCentreSums; ++k) total[k] = 0.0;
  for (int64_t e = list.offsets[c] + lane; e < end; e += 32) {
    const EdgeRecord<T> edge = records[e];
    double d[3] = {0.0, 0.0, 0.0};
    if (edge.interval >= 0) {
      if (partial) {
        double g[4] = {0.0, 0.0, 0.0, 0.0};
        for (int chunk = 0; chunk < chunks; ++chunk) {
          const T* from = partial + 4 * (chunk * list.edge_capacity + e);
          for (int k = 0; k < 4; ++k) g[k] += static_cast<double>(from[k]);
        }
        const double inverse = static_cast<double>(edge.inverse);
        double dot = 0.0;
        for (int a = 0; a < 3; ++a) dot += g[1 + a] * static_cast<double>(edge.r[a]);
        for (int a = 0; a < 3; ++a) {
          d[a] = (g[0] - dot * inverse) * static_cast<double>(edge.r[a]) + g[1 + a] * inverse;
        }
      }
      if (repulsion.pairs) {
        const double* r = vectors + 3 * e;
        const double distance = sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
        double energy, slope;
        const int pair = list.species[c] * repulsion.num_species + list.species[edge.sender];
        pair_repulsion(repulsion.pairs[pair], repulsion.screening, distance, energy, slope);
        total[kCentreSums] += 0.5 * energy;
        const double half = weights ? 0.5 * weights[c] : 0.5;
        for (int a = 0; a < 3; ++a) d[a] += half * slope * r[a] / distance;
      }
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
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32][k] = total[k];
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
  const int64_t row = static_cast<int64_t>(blockIdx.x - shares) * kWarps + threadIdx.x / 32;
  if (row >= list.n_rows) return;  // whole warps
  constexpr int kSums = kVirials ? kCentreSums : 3;
  double sum[kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) sum[k] = 0.0;
  const bool listed = list.state->num_edges > 0;  // not after an overflow
  const int end = listed ? list.incoming_offsets[row + 1] : 0;
  const int lane = threadIdx.x % 32;
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

template <typename T>
dim3 centre_grid(const EdgeCall<T>& pass) {
  return dim3(blocks_for(pass.n_local, kWarps), pass.num_channels / kChannels);
}

}  // namespace

template <typename T>
void edge_geometry(const NeighborView& list, double cutoff, double warn_distance,
                   double inverse_spacing, int intervals, EdgeRecord<T>* records, double* vectors,
                   cudaStream_t stream) {
  MLFF_LAUNCH(geometry_kernel<T>, dim3(blocks_for(list.edge_capacity, 256)), dim3(256), 0, stream,
              list, cutoff, warn_distance, inverse_spacing, intervals, records, vectors);
}

void name_edges(const NeighborView& list, const double* vectors, cudaStream_t stream) {
  MLFF_LAUNCH(name_edges_kernel, dim3(1), dim3(1), 0, stream, list, vectors);
}

template <typename T>
void edge_forward(const EdgeCall<T>& pass, bool first, cudaStream_t stream) {
  if (pass.n_local == 0) return;
  if (first) {
    MLFF_LAUNCH((forward_kernel<T, true>), centre_grid(pass), dim3(kThreads), 0, stream, pass);
  } else {
    MLFF_LAUNCH((forward_kernel<T, false>), centre_grid(pass), dim3(kThreads), 0, stream, pass);
  }
}

template <typename T>
void edge_backward(const EdgeCall<T>& pass, bool first, cudaStream_t stream) {
  if (pass.n_local == 0) return;
  if (first) {
    MLFF_LAUNCH((backward_kernel<T, true>), centre_grid(pass), dim3(kThreads), 0, stream, pass);
  } else {
    MLFF_LAUNCH((backward_kernel<T, false>), centre_grid(pass), dim3(kThreads), 0, stream, pass);
  }
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
                                 double*, cudaStream_t);                                           \
  template void edge_forward<T>(const EdgeCall<T>&, bool, cudaStream_t);                           \
  template void edge_backward<T>(const EdgeCall<T>&, bool, cudaStream_t);                          \
  template void pair_gradients<T>(const NeighborView&, const RepulsionView&, int,                  \
                                  const EdgeRecord<T>*, const double*, const T*, const double*,    \
                                  double*, double*, double*, cudaStream_t);
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)
#undef MLFF_INSTANTIATE

}  // namespace gpu
}  // namespace mlff
