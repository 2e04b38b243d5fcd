// Passes over edges: messages and their reverse.
//
// A warp has one centre and one chunk of 32 channels, a lane 16 bytes of it. So a quarter of the
// warp (in float64 half of it) covers the chunk, every load of a lane is the widest there is, and
// the warp does four edges (two) in one turn of its loop; what an edge needs once, like spline
// weights and addresses, is paid once for four. At the end of a row the quarters are added, always
// in the same order, so that results are the same bits in every run.
//
// What bounds them, per edge and chunk. L1 delivers a row of 128 bytes a cycle and SM: forward
// reads 12 rows of the table (8 where slopes are float16), 5 of the neighbour and half a row of
// records, backward 12 and 4, the same of records, and has shuffles: 17.5 (13.5) and 18 cycles.
// Backward would read 4 rows less, too, but 9 conversions more leave it where it is. Instructions
// (benchmarks/gpu_sass.py) take fewer on an H100, FP32 about as many on an A100. Blocks run chunk
// by chunk (grid.y is the chunk), so that at any time all of an SM's warps read one chunk's slice
// of the table, 198 kB with 256 intervals, most of which an A100's or H100's L1 holds. Persistent
// blocks with the slice in shared memory would read as many rows a cycle and leave the neighbours'
// rows no L1; an A100 has no room for it at all. The sums are in benchmarks/gpu_roofline.py.
//
// Measured on an H200 (docs/gpu.md): waiting for loads is what there is to save. So records are
// read a turn ahead, and sums of other interactions that the reverse pass adds to with the rows;
// reading rows a turn ahead, too, costs more registers, hence warps, than it gains.
#include "cuda/device_memory.h"
#include "cuda/edges.h"
#include "cuda/filters.h"
#include "cuda/pack.h"

namespace mlff {
namespace gpu {
namespace {

// Two centres, so that a warp whose centre has few neighbours does not wait for many others.
constexpr int kThreads = 64;
constexpr int kWarps = kThreads / 32;
// Blocks of an SM that registers have to leave room for. Left to itself ptxas saves registers by
// waiting after every few loads: 32 warps with 5 loads each under way in forward, in place of 16
// with all their 18. The first interaction's passes read less and fit 24 warps; in double precision
// the others' reverse would spill with 16.
template <bool kFirst>
constexpr int kResident = kFirst ? 12 : 8;
template <typename T, bool kFirst>
constexpr int kResidentInReverse = kFirst || sizeof(T) == 4 ? kResident<kFirst> : 6;

// What a lane works on.
template <typename T>
struct Place {
  int64_t centre;
  int lane, group, chunk;
  int offset;  // of the lane's channels in the chunk
  __device__ __forceinline__ Place()
      : centre(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32),
        lane(threadIdx.x % 32),
        group(lane / kGroup<T>),
        chunk(blockIdx.y),
        offset(lane % kGroup<T> * kPack<T>) {}
};

// --- messages ------------------------------------------------------------------------------------

template <typename T, bool kFirst, typename Table>
__device__ __forceinline__ void forward_edges(const EdgeCall<T>& p) {
  constexpr int kBlocks = kFirst ? 2 : 3, kWidth = kFirst ? 2 : 5;
  const Place<T> place;
  const int64_t c = place.centre;
  if (c >= p.n_local) return;
  const int group = place.group, chunk = place.chunk, width = p.num_channels * kWidth;
  const Table filters(p.filter, chunk, place.offset);
  const T* source = (kFirst ? p.species_x : p.rows) + chunk * kWidth * kChannels + place.offset;
  Pack<T> sums[4] = {};  // s, v
  const int end = p.ends[c];
  int e = p.offsets[c] + group;
  EdgeRecord<T> next;  // read a turn ahead: addresses of all other loads come from it
  if (e < end) next = p.edges[e];
#pragma unroll 1
  for (; e < end; e += kPack<T>) {
    const EdgeRecord<T> edge = next;
    next = p.edges[min(e + kPack<T>, end - 1)];
    const T* from = source + static_cast<int64_t>(kFirst ? edge.species : edge.sender) * width;
    Pack<T> x[kWidth], w[kBlocks];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] = load(from + k * kChannels);
    filters(edge, w);
    sums[0] = sums[0] + x[0] * w[0];
    const Pack<T> along = x[1] * w[1];
#pragma unroll
    for (int a = 0; a < 3; ++a) sums[1 + a] = sums[1 + a] + edge.r[a] * along;
    if (!kFirst) {
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        sums[1 + a] = sums[1 + a] + x[(2 + a) % kWidth] * w[kBlocks - 1];
      }
    }
  }
  fold_groups<T>(sums, place.lane);
  const int64_t f = p.num_channels, channel = chunk * kChannels + place.offset;
#pragma unroll
  for (int i = 0; i < kKept<T>; ++i) {
    const int k = group * kKept<T> + i;
    if (k == 0) {
      const int64_t row = kFirst ? p.species[c] : c;
      const T* before = (kFirst ? p.embedding : p.s_in) + row * f + channel;
      store(p.s_out + c * p.s_stride + channel, row < 0 ? sums[i] : sums[i] + load(before));
    } else {
      const int64_t at = (3 * c + k - 1) * f + channel;
      store(p.v_out + at, kFirst ? sums[i] : sums[i] + load(p.v_in + at));
    }
  }
}

template <typename T, bool kFirst>
__global__ void __launch_bounds__(kThreads, kResident<kFirst>) forward_kernel(EdgeCall<T> p) {
  forward_edges<T, kFirst, Filters<T, kFirst ? 2 : 3>>(p);
}

template <bool kFirst>
__global__ void __launch_bounds__(kThreads, kResident<kFirst>)
    forward_half_kernel(EdgeCall<float> p) {
  forward_edges<float, kFirst, HalfFilters<kFirst ? 2 : 3>>(p);
}

template <typename T, bool kFirst>
__global__ void __launch_bounds__(kThreads, kResidentInReverse<T, kFirst>)
    backward_kernel(EdgeCall<T> p) {
  constexpr int kBlocks = kFirst ? 2 : 3;
  const Place<T> place;
  const int64_t c = place.centre;
  if (c >= p.n_local) return;
  const int group = place.group, chunk = place.chunk, width = 4 * p.num_channels;
  // First: the centre's adjoints and the sender's features (its edge as receiver). Others: the
  // centre's features and the neighbour's adjoints (its edge as sender, direction reversed).
  const T* adjoints = p.rows + chunk * 4 * kChannels + place.offset;
  const T* mine = adjoints + c * width;
  Pack<T> g[4], x[5], sums[5] = {};
  if (kFirst) {
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = load(mine + k * kChannels);
  } else {
    const T* own = p.own + c * 5 * p.num_channels + chunk * 5 * kChannels + place.offset;
#pragma unroll
    for (int k = 0; k < 5; ++k) x[k] = load(own + k * kChannels);
  }
  const T* table = p.filter.rows + chunk * p.filter.chunk_stride + place.offset;
  const T* features = p.species_x + chunk * 2 * kChannels + place.offset;
  const int begin = p.offsets[c], end = p.ends[c];
  T* partial = p.partial + 4 * (chunk * p.edge_capacity + begin + group) + kept_sum<T>(place.lane);
  // Groups without an edge do the last once more and drop what they find.
  EdgeRecord<T> next;
  if (begin < end) next = p.edges[min(begin + group, end - 1)];
#pragma unroll 1
  for (int turn = begin; turn < end; turn += kPack<T>, partial += 4 * kPack<T>) {
    const EdgeRecord<T> edge = next;
    next = p.edges[min(turn + kPack<T> + group, end - 1)];
    const bool counts = turn + group < end, writes = counts && place.lane % (kGroup<T> / 4) == 0;
    // Read here, where the wait for it is that for the rows.
    const T before = p.accumulate && writes ? *partial : T(0);
    const T* rows = table + static_cast<int64_t>(edge.interval) * (2 * kBlocks * kChannels);
    if (kFirst) {
      const T* from = features + static_cast<int64_t>(edge.species) * (2 * p.num_channels);
      x[0] = load(from);
      x[1] = load(from + kChannels);
    } else {
      const T* from = adjoints + static_cast<int64_t>(edge.sender) * width;
#pragma unroll
      for (int k = 0; k < 4; ++k) g[k] = load(from + k * kChannels);
    }
    T q[3], b[3];
    spline_weights(edge.t, q, b);
    Pack<T> slope0, slope1;
    const Pack<T> w0 = filter<kBlocks, true>(rows, 0, q, b, slope0);
    const Pack<T> w1 = filter<kBlocks, true>(rows, 1, q, b, slope1);
    const T sign = kFirst ? T(1) : T(-1);
    const Pack<T> along =
        sign * edge.r[0] * g[1] + sign * edge.r[1] * g[2] + sign * edge.r[2] * g[3];
    const Pack<T> scale = sign * x[1] * w1;
    T values[4];
    values[0] = add_dot(add_dot(T(0), g[0] * x[0], slope0), along * x[1], slope1);
#pragma unroll
    for (int a = 0; a < 3; ++a) values[1 + a] = add_dot(T(0), scale, g[1 + a]);
    if (!kFirst) {
      Pack<T> slope2;
      const Pack<T> w2 = filter<kBlocks, true>(rows, kBlocks - 1, q, b, slope2);
      values[0] = add_dot(values[0], g[1] * x[2] + g[2] * x[3] + g[3] * x[4], slope2);
      if (counts) {
        sums[0] = sums[0] + g[0] * w0;
        sums[1] = sums[1] + along * w1;
#pragma unroll
        for (int a = 0; a < 3; ++a) sums[2 + a] = sums[2 + a] + g[1 + a] * w2;
      }
    }
    values[0] *= p.filter.inverse_spacing;
    fold_lanes<T>(values, place.lane);
    if (writes) *partial = before + values[0];
  }
  if (kFirst) return;
  const int64_t f = p.num_channels, channel = chunk * kChannels + place.offset;
  T* gx = p.gx + c * 3 * f + channel;
  const Pack<T> x2 = load(p.x2 + c * f + channel);
  Pack<T> kept[4] = {sums[2], sums[3], sums[4], sums[0]}, rest[2] = {sums[1], {}};
  fold_groups<T>(kept, place.lane);
#pragma unroll
  for (int i = 0; i < kKept<T>; ++i) {
    const int k = group * kKept<T> + i;
    if (k < 3) {
      const int64_t at = (3 * c + k) * f + channel;
      store(p.gv + at, load(mine + (1 + k) * kChannels) + x2 * kept[i]);
      rest[1] = rest[1] + kept[i] * load(p.v_in + at);
    } else {
      store(gx, kept[i]);
      store(p.gs + c * f + channel, load(mine));
    }
  }
  fold<16, 1>(rest, place.lane);
  if constexpr (kPack<T> == 4) rest[0] = rest[0] + across(rest[0], 8);
  // The lower half of the warp has the sum for x1 now, the upper one that for x2.
  if (place.lane % 16 < kGroup<T>) store(gx + (1 + place.lane / 16) * f, rest[0]);
}

template <typename T>
dim3 centre_grid(const EdgeCall<T>& pass) {
  return dim3(blocks_for(pass.n_local, kWarps), pass.num_channels / kChannels);
}

}  // namespace

template <typename T>
void edge_forward(const EdgeCall<T>& pass, bool first, cudaStream_t stream) {
  if (pass.n_local == 0) return;
  if constexpr (sizeof(T) == 4) {
    if (pass.filter.half_rows && first) {
      MLFF_LAUNCH(forward_half_kernel<true>, centre_grid(pass), dim3(kThreads), 0, stream, pass);
      return;
    }
    if (pass.filter.half_rows) {
      MLFF_LAUNCH(forward_half_kernel<false>, centre_grid(pass), dim3(kThreads), 0, stream, pass);
      return;
    }
  }
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

#define MLFF_INSTANTIATE(T)                                              \
  template void edge_forward<T>(const EdgeCall<T>&, bool, cudaStream_t); \
  template void edge_backward<T>(const EdgeCall<T>&, bool, cudaStream_t);
MLFF_INSTANTIATE(float)
MLFF_INSTANTIATE(double)
#undef MLFF_INSTANTIATE

}  // namespace gpu
}  // namespace mlff
