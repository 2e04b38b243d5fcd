// Message passing over the edges of a tile of centres, forward and reverse.
//
//   forward   s_c += sum_n x0_n w0;   v_c += sum_n x1_n w1 r^ + (x2_n v_n) w2
//   reverse   gx0_c = sum_n gs_n w0;  gx1_c = -sum_n (gv_n . r^) w1;  A_c = sum_n gv_n w2
//             (then gx2_c = v_c . A_c and gv_c += x2_c A_c, per atom)
//             dE/dd = sum_f gs_n x0_c w0' - (gv_n . r^) x1_c w1' + (gv_n . x2_c v_c) w2'
//
// Everything gathers, nothing is shared between tiles. The reverse pass uses that the list is
// symmetric: the edge c -> n of which c is the sender is this centre's edge with the direction
// reversed. Edges are sorted by table interval, and a centre's own by their place in the list where
// the interval is the same, so sums do not depend on the tiling.
//
// Why sorted, and why one slice of channels at a time: an edge needs 6 kB of table and 2.5 kB of
// its neighbour. Taken centre by centre all of that comes from L2, some 130 cache lines an edge.
// Sorted, with 16 or 32 channels at a time, the rows of the table pass through L1 (forward:
// registers) once a tile, the tile's sums stay near, and only the neighbours' 40 (32) lines come
// from L2, asked for a few edges ahead.
//
// What bounds them: per 16 floats the FMA units need 8.5 cycles forward (17 instructions) and 17.5
// in reverse (35). Measured alone, with hot caches, on an AVX-512 server core: 19 and 38, at 2.4 to
// 2.7 instructions a cycle (address arithmetic, broadcasts, loads and sums over lanes included).
// Leaving out the stores or the sums over lanes changes little, and neither do other numbers of
// chunks a sweep: the instruction stream is the limit, not L1. In whole runs 30 to 50 % is added
// by rows that come from L3. benchmarks/scaling.py prints the present fractions.
//
// w'(d) is never formed: dE/dd = sum_k b_k (sum_f c_f slope_kf), which leaves the derivative's
// weights out of the loop over channels.
#include "core/kernels.h"
#include "core/simd.h"

namespace mlff {
namespace MLFF_ISA_NAMESPACE {

#if MLFF_VECTOR_BYTES == 64
constexpr bool kTableInRegisters = true;  // 12 of 32 in the forward pass
#else
constexpr bool kTableInRegisters = false;
#endif
// Neighbours' rows are asked for this many edges before they are needed.
constexpr int kEdgesAhead = 6;
constexpr int kVectorsPerChunk = kChunkBytes / MLFF_VECTOR_BYTES;

template <typename T>
MLFF_INLINE void copy_chunks(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) store(to + i, load(from + i));
}

// A filter's piece of table for one interval and vector of channels: value, and slopes of three
// knots. w = value + sum_k q_k slope_k.
template <typename T>
struct Piece {
  Vec<T> value, slope[3];
};

template <typename T>
MLFF_INLINE Piece<T> load_piece(const T* row, int64_t row_stride, int64_t slope_offset) {
  const T* slopes = row + slope_offset;
  return {load(row), {load(slopes), load(slopes + row_stride), load(slopes + 2 * row_stride)}};
}

template <typename T>
MLFF_INLINE Vec<T> filter_value(const Piece<T>& piece, const Vec<T>* q) {
  Vec<T> w = piece.value + q[0] * piece.slope[0];
  w += q[1] * piece.slope[1];
  w += q[2] * piece.slope[2];
  return w;
}

// One vector of channels of the forward pass, for edges [e, end) of one interval.
template <typename T, bool kFirst>
MLFF_INLINE void forward_run(const TileCall<T>& call, const T* row, int64_t chunk, int64_t e,
                             int64_t end, T* sums) {
  constexpr int kBlocks = kFirst ? 2 : 3;
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  const int64_t row_stride = call.filter.row_stride, slope_offset = call.filter.slope_offset;
  const int64_t width = (kFirst ? 2 : 5) * kChunk;
  const int64_t source_stride = width * (call.num_channels / kChunk);
  const T* source = (kFirst ? call.species_x : call.rows) + chunk * width;
  for (int part = 0; part < kVectorsPerChunk; ++part) {
    const int64_t at = part * Simd<T>::kLanes;
    Piece<T> piece[kBlocks];
    if constexpr (kTableInRegisters) {
      for (int b = 0; b < kBlocks; ++b) {
        piece[b] = load_piece(row + b * kChunk + at, row_stride, slope_offset);
      }
    }
    for (int64_t i = e; i < end; ++i) {
      const EdgeRecord<T>& edge = call.edges[i];
      const int64_t index = kFirst ? call.species[edge.sender] : edge.sender;
      const T* x = source + index * source_stride + at;
      T* sum = sums + edge.centre * 4 * kChunk + at;
      if constexpr (!kFirst) {
        const T* ahead = source + call.edges[i + kEdgesAhead].sender * source_stride;
#pragma GCC unroll 5
        for (int line = 0; line < 5; ++line) __builtin_prefetch(ahead + line * kChunk);
      }
      Vec<T> q[3];
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) q[k] = broadcast<T>(edge.q[k]);
      Vec<T> w[kBlocks];
#pragma GCC unroll 3
      for (int b = 0; b < kBlocks; ++b) {
        w[b] = filter_value(kTableInRegisters
                                ? piece[b]
                                : load_piece(row + b * kChunk + at, row_stride, slope_offset),
                            q);
      }
      store(sum, load(sum) + load(x) * w[0]);
      const Vec<T> p = load(x + kChunk) * w[1];
#pragma GCC unroll 3
      for (int a = 0; a < 3; ++a) {
        Vec<T> v = load(sum + (1 + a) * kChunk) + p * edge.r[a];
        if constexpr (!kFirst) v += load(x + (2 + a) * kChunk) * w[2];
        store(sum + (1 + a) * kChunk, v);
      }
    }
  }
}

template <typename T, bool kFirst>
static void forward_tile(const TileCall<T>& call) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  const int64_t n = call.num_channels;
  T* sums = call.work;  // [centre][4][chunk]
  for (int64_t chunk = 0; chunk < n / kChunk; ++chunk) {
    for (int64_t c = 0; c < call.num_centres; ++c) {
      T* to = sums + c * 4 * kChunk;
      copy_chunks(to, call.s + c * call.s_stride + chunk * kChunk, kChunk);
      for (int a = 0; a < 3; ++a) {
        copy_chunks(to + (1 + a) * kChunk, call.v + (c * 3 + a) * n + chunk * kChunk, kChunk);
      }
    }
    const T* slice = call.filter.rows + chunk * call.filter.chunk_stride;
    for (int64_t e = 0; e < call.num_edges;) {
      const int32_t interval = call.edges[e].interval;
      int64_t end = e + 1;
      while (end < call.num_edges && call.edges[end].interval == interval) ++end;
      forward_run<T, kFirst>(call, slice + interval * call.filter.row_stride, chunk, e, end, sums);
      e = end;
    }
    for (int64_t c = 0; c < call.num_centres; ++c) {
      const T* from = sums + c * 4 * kChunk;
      copy_chunks(call.s + c * call.s_stride + chunk * kChunk, from, kChunk);
      for (int a = 0; a < 3; ++a) {
        copy_chunks(call.v + (c * 3 + a) * n + chunk * kChunk, from + (1 + a) * kChunk, kChunk);
      }
    }
  }
}

// Adds dE/dd and the vector g of one edge, summed over the channels of a sweep.
template <typename T>
MLFF_INLINE void add_edge_gradient(const EdgeRecord<T>& edge, const Vec<T>* slopes, const Vec<T>* g,
                                   T* out) {
  add_lanes4<T>(edge.b[0] * slopes[0] + edge.b[1] * slopes[1] + edge.b[2] * slopes[2], g[0], g[1],
                g[2], out);
}

// First interaction: nothing below to differentiate for but the edge itself, so the centre's own
// adjoints are used (the edge as receiver) and no neighbour is read.
template <typename T, int kChunks>
MLFF_INLINE void backward_first_sweep(const TileCall<T>& call, int64_t chunk) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  const int64_t chunks = call.num_channels / kChunk;
  const int64_t row_stride = call.filter.row_stride, slope_offset = call.filter.slope_offset;
  T* own = call.work;  // [centre][kChunks][4][chunk]
  for (int64_t c = 0; c < call.num_centres; ++c) {
    copy_chunks(own + c * kChunks * 4 * kChunk, call.centres + (c * chunks + chunk) * 4 * kChunk,
                kChunks * 4 * kChunk);
  }
  const T* slice = call.filter.rows + chunk * call.filter.chunk_stride;
  const T* species_x = call.species_x + chunk * 2 * kChunk;
  for (int64_t e = 0; e < call.num_edges; ++e) {
    const EdgeRecord<T>& edge = call.edges[e];
    const T* row = slice + edge.interval * row_stride;
    const T* x = species_x + call.species[edge.sender] * chunks * 2 * kChunk;
    const T* mine = own + edge.centre * kChunks * 4 * kChunk;
    Vec<T> q[3], r[3], slopes[3] = {}, g[3] = {};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      q[k] = broadcast<T>(edge.q[k]);
      r[k] = broadcast<T>(edge.r[k]);
    }
#pragma GCC unroll 8
    for (int part = 0; part < kChunks * kVectorsPerChunk; ++part) {
      const int64_t which = part / kVectorsPerChunk;
      const int64_t at = part % kVectorsPerChunk * Simd<T>::kLanes;
      const T* table = row + which * call.filter.chunk_stride + at;
      const T* xs = x + which * 2 * kChunk + at;
      const T* gs = mine + which * 4 * kChunk + at;
      const Vec<T> vx = load(gs + kChunk), vy = load(gs + 2 * kChunk), vz = load(gs + 3 * kChunk);
      const Vec<T> x1 = load(xs + kChunk);
      const Vec<T> c0 = load(gs) * load(xs);
      const Vec<T> c1 = (vx * r[0] + vy * r[1] + vz * r[2]) * x1;
      const Piece<T> piece1 = load_piece(table + kChunk, row_stride, slope_offset);
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        slopes[k] += c0 * load(table + slope_offset + k * row_stride);
        slopes[k] += c1 * piece1.slope[k];
      }
      const Vec<T> p = x1 * filter_value(piece1, q);
      g[0] += p * vx;
      g[1] += p * vy;
      g[2] += p * vz;
    }
    add_edge_gradient<T>(edge, slopes, g, call.gradients + 4 * e);
  }
}

template <typename T, int kChunks>
MLFF_INLINE void backward_sweep(const TileCall<T>& call, int64_t chunk) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(T);
  const int64_t chunks = call.num_channels / kChunk;
  const int64_t row_stride = call.filter.row_stride, slope_offset = call.filter.slope_offset;
  constexpr int64_t kWidth = kChunks * 10 * kChunk;
  T* work = call.work;  // [centre][kChunks][own features 5, sums 5][chunk]
  for (int64_t c = 0; c < call.num_centres; ++c) {
    for (int64_t q = 0; q < kChunks; ++q) {
      T* to = work + c * kWidth + q * 10 * kChunk;
      copy_chunks(to, call.centres + (c * chunks + chunk + q) * 5 * kChunk, 5 * kChunk);
      for (int64_t i = 0; i < 5 * kChunk; i += Simd<T>::kLanes) {
        store(to + 5 * kChunk + i, Vec<T>{});
      }
    }
  }
  const T* slice = call.filter.rows + chunk * call.filter.chunk_stride;
  const T* rows = call.rows + chunk * 4 * kChunk;
  for (int64_t e = 0; e < call.num_edges; ++e) {
    const EdgeRecord<T>& edge = call.edges[e];
    const T* row = slice + edge.interval * row_stride;
    const T* adjoint = rows + edge.sender * chunks * 4 * kChunk;
    T* mine = work + edge.centre * kWidth;
    const T* ahead = rows + call.edges[e + kEdgesAhead].sender * chunks * 4 * kChunk;
#pragma GCC unroll 8
    for (int line = 0; line < kChunks * 4; ++line) __builtin_prefetch(ahead + line * kChunk);
    Vec<T> q[3], r[3], slopes[3] = {}, g[3] = {};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      q[k] = broadcast<T>(edge.q[k]);
      r[k] = broadcast<T>(edge.r[k]);
    }
#pragma GCC unroll 8
    for (int part = 0; part < kChunks * kVectorsPerChunk; ++part) {
      const int64_t which = part / kVectorsPerChunk;
      const int64_t at = part % kVectorsPerChunk * Simd<T>::kLanes;
      const T* table = row + which * call.filter.chunk_stride + at;
      const T* gs = adjoint + which * 4 * kChunk + at;
      const T* x = mine + which * 10 * kChunk + at;
      T* out = mine + which * 10 * kChunk + 5 * kChunk + at;
      const Vec<T> vx = load(gs + kChunk), vy = load(gs + 2 * kChunk), vz = load(gs + 3 * kChunk);
      // The reversed edge's direction is -r, hence the minus signs.
      const Vec<T> along = -(vx * r[0]) - vy * r[1] - vz * r[2];
      const Vec<T> x1 = load(x + kChunk);
      const Vec<T> c0 = load(gs) * load(x);
      const Vec<T> c1 = along * x1;
      const Vec<T> c2 =
          vx * load(x + 2 * kChunk) + vy * load(x + 3 * kChunk) + vz * load(x + 4 * kChunk);

      const Piece<T> piece0 = load_piece(table, row_stride, slope_offset);
      store(out, load(out) + load(gs) * filter_value(piece0, q));
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) slopes[k] += c0 * piece0.slope[k];

      const Piece<T> piece1 = load_piece(table + kChunk, row_stride, slope_offset);
      const Vec<T> w1 = filter_value(piece1, q);
      store(out + kChunk, load(out + kChunk) + along * w1);
      const Vec<T> p = x1 * w1;
      g[0] -= p * vx;
      g[1] -= p * vy;
      g[2] -= p * vz;
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) slopes[k] += c1 * piece1.slope[k];

      const Piece<T> piece2 = load_piece(table + 2 * kChunk, row_stride, slope_offset);
      const Vec<T> w2 = filter_value(piece2, q);
      store(out + 2 * kChunk, load(out + 2 * kChunk) + vx * w2);
      store(out + 3 * kChunk, load(out + 3 * kChunk) + vy * w2);
      store(out + 4 * kChunk, load(out + 4 * kChunk) + vz * w2);
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) slopes[k] += c2 * piece2.slope[k];
    }
    add_edge_gradient<T>(edge, slopes, g, call.gradients + 4 * e);
  }
  for (int64_t c = 0; c < call.num_centres; ++c) {
    for (int64_t q = 0; q < kChunks; ++q) {
      copy_chunks(call.sums + (c * chunks + chunk + q) * 5 * kChunk,
                  work + c * kWidth + (q * 10 + 5) * kChunk, 5 * kChunk);
    }
  }
}

// Two chunks a sweep halve the sums over lanes and the moves of edge data.
template <typename T, bool kFirst>
static void backward_tile(const TileCall<T>& call) {
  const int64_t chunks = call.num_channels * static_cast<int64_t>(sizeof(T)) / kChunkBytes;
  int64_t chunk = 0;
  for (; chunk + 2 <= chunks; chunk += 2) {
    if constexpr (kFirst) {
      backward_first_sweep<T, 2>(call, chunk);
    } else {
      backward_sweep<T, 2>(call, chunk);
    }
  }
  if (chunk < chunks) {
    if constexpr (kFirst) {
      backward_first_sweep<T, 1>(call, chunk);
    } else {
      backward_sweep<T, 1>(call, chunk);
    }
  }
}

}  // namespace MLFF_ISA_NAMESPACE
}  // namespace mlff
