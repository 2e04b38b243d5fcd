// The inner loops, compiled once per instruction set and picked at run time.
//
// Arrays are 64-byte aligned, and F below is the padded number of channels: a multiple of 64 bytes
// whose padding channels are zero in every weight and stay zero throughout.
#pragma once

#include <cstdint>

namespace mlff {

// What happens to A B (+ bias) on its way to C.
enum class Epilogue {
  kStore,       // C = A B + bias
  kAccumulate,  // C += A B
  kSilu,        // z = A B + bias;  C = silu(z), D = silu'(z)
  kScale,       // C = (A B) * D
};

// C [m, n] = A [m, k] B [k, n]; B packed by PackedMatrix, see gemm.h.
template <typename T>
struct GemmCall {
  int64_t m = 0, n = 0, k = 0;
  const T* a = nullptr;
  int64_t lda = 0;
  const T* b = nullptr;
  const T* bias = nullptr;  // [n] or null
  T* c = nullptr;
  int64_t ldc = 0;
  T* d = nullptr;  // kSilu (written), kScale (read)
  int64_t ldd = 0;
  Epilogue epilogue = Epilogue::kStore;
};

// Rows that neighbours read interleave their blocks in chunks of channels, so that what one chunk
// needs lies together: [row][F / chunk][blocks][chunk].
constexpr int64_t kChunkBytes = 64;

// Kernels prefetch the neighbours of this many edges ahead.
constexpr int64_t kRecordsAhead = 8;

// One edge inside the cutoff, ready for use.
template <typename T>
struct EdgeRecord {
  T q[3];            // w  = value_i + sum_k q_k slope_{i+k}
  T b[3];            // w' = sum_k b_k slope_{i+k}
  T r[3];            // direction from centre to sender
  int32_t interval;  // i
  int32_t sender;    // row
  int32_t centre;    // within the tile
};

// Filters of one interaction as rows over channels, see FilterTable: row i has the values at knot i
// and, slope_offset further, the slopes; three blocks w0 | w1 | w2 (first interaction: two) a
// chunk.
template <typename T>
struct FilterRows {
  const T* rows = nullptr;
  int64_t chunk_stride = 0, row_stride = 0, slope_offset = 0;  // numbers
};

// The edges of a tile of centres, sorted by interval.
template <typename T>
struct TileCall {
  int64_t num_channels = 0;  // F
  int64_t num_centres = 0, num_edges = 0;
  const EdgeRecord<T>* edges = nullptr;  // kRecordsAhead more may be read, not used
  FilterRows<T> filter;

  // First interaction: x depends on the species alone.
  const int32_t* species = nullptr;  // of rows
  const T* species_x = nullptr;      // [species][F/chunk][x0 | x1][chunk]

  // forward: features  [row][F/chunk][x0 | x1 | x2 v_x | x2 v_y | x2 v_z][chunk]
  // backward: adjoints [row][F/chunk][gs | gv_x | gv_y | gv_z][chunk]
  const T* rows = nullptr;
  // forward: messages are added to s, row stride s_stride, and v [centre][3][F].
  T* s = nullptr;
  int64_t s_stride = 0;
  T* v = nullptr;
  // backward: features of the centres, first interaction: adjoints of the centres; laid out as
  // rows.
  const T* centres = nullptr;
  // backward: sums over neighbours n, [centre][F/chunk][5][chunk], overwritten:
  //   gs_n w0 | -(gv_n . r) w1 | gv_n w2 (three)
  T* sums = nullptr;
  // backward: [num_edges][4], added to; dE/dd, then the vector g that multiplies (1 - r r^T)/d.
  T* gradients = nullptr;
  T* work = nullptr;  // [num_centres][20][chunk]
};

// m atoms' rows for the element-wise parts of the update block.
template <typename T>
struct UpdateCall {
  int64_t m = 0, num_channels = 0;
  bool last = false;         // last interaction: vectors end here, no a_vv
  T norm_epsilon = 0;        // the norm is sqrt(|V v|^2 + epsilon) - shift
  T norm_shift = 0;          //
  const T* vu = nullptr;     // [m][3][2F], V v | U v
  const T* a = nullptr;      // [m][2F] a_sv | a_vv, last: [m][F] a_sv
  int64_t lda = 0;           // row stride of a
  T* cat = nullptr;          // [m][2F] s | norm
  const T* norms = nullptr;  // [m][2F], of the adjoints: cat as the forward pass left it
  T* v = nullptr;            // [m][3][F]
  const T* gs = nullptr;     // [m][F] dE/ds after the update
  const T* gv = nullptr;     // [m][3][F] dE/dv after the update, null in the last interaction
  T* ga = nullptr;           // [m][3F] dE/da of a_ss | a_sv | a_vv, last: [m][2F]
  const T* gcat = nullptr;   // [m][2F]
  T* gvu = nullptr;          // [m][3][2F]
};

// A run of edges of the message pass for training; see kernels_messages-inl.h. Arrays are dense,
// rows of nodes unless marked otherwise. With `vectors` a width of 3F, else of 2F, and then v and
// hv are not read and v_out is not written.
template <typename T>
struct MessageCall {
  int64_t begin = 0, end = 0;                              // edges
  int64_t channels = 0;                                    // F, any number
  bool vectors = false;                                    //
  const int64_t *senders = nullptr, *receivers = nullptr;  // [edges]
  const T *x = nullptr, *v = nullptr;                      // [width], [3][F]
  const T *w = nullptr, *r = nullptr;                      // of edges: [width], [3]
  // Upstream gradients of s and V; of the results of backward.
  const T *g = nullptr, *G = nullptr;                                  // [F], [3][F]
  const T *hx = nullptr, *hv = nullptr, *hw = nullptr, *hr = nullptr;  // as x, v, w, r
  // Results of nodes, added to. s_out and V_out are the messages or, by double_backward, the
  // gradients of g and G; the others are the gradients of x and v.
  T *s_out = nullptr, *V_out = nullptr, *x_out = nullptr, *v_out = nullptr;
  // Results of edges, written: the gradients of w and r.
  T *w_out = nullptr, *r_out = nullptr;
};

// An array of the training pass and its tangent. Kernels of the primal pass read and write v; those
// of the dual pass read both and write d.
template <typename T>
struct DualArray {
  T* v = nullptr;
  T* d = nullptr;
};

// C [m, n] = or += A^T B with A [k, m] and B [k, n], both row-major: gradients of weights.
template <typename T>
struct OuterCall {
  int64_t m = 0, n = 0, k = 0;  // n a multiple of the vector length
  const T *a = nullptr, *b = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0;
  T* c = nullptr;
  bool accumulate = false;
};

// Rows of m atoms for the element-wise parts of training; see kernels_training-inl.h. All dense.
template <typename T>
struct TrainingRows {
  int64_t m = 0, channels = 0;  // F, padded
  bool last = false;            // last interaction: vectors end here, a has no a_vv, no gv
  T norm_epsilon = 0, norm_shift = 0;
  DualArray<T> x, v0, features;  // [3F] x0 | x1 | x2, [3][F], [5F] x0 | x1 | x2 v
  DualArray<T> cat, v1, vu, a;   // [2F] s | norm, [3][F], [3][2F] V v | U v, [3F] ss | sv | vv
  DualArray<T> s, v;             // [F], [3][F] after the update
  DualArray<T> gs, gv, ga;       // [F], [3][F] adjoints of s and v, [3F] of a
  DualArray<T> gcat, gvu, gv1;   // [2F], [3][2F], [3][F] adjoint of v1 through U and V alone
  DualArray<T> adjoints;         // [4F] gs | gv after the messages
};

// Messages to and from a run of centres. The edges of a centre are sorted: pairs that it owns come
// first, and these are numbered in this order; a pair's vector points from its owner.
template <typename T>
struct TrainingEdges {
  int64_t begin = 0, end = 0;                            // centres
  int64_t channels = 0;                                  // F, padded
  const int64_t *offsets = nullptr, *middles = nullptr;  // first edge, end of the owned ones
  const int32_t *neighbors = nullptr, *pairs = nullptr;
  const T* geometry = nullptr;   // [pairs][8] r, 1/d, and the tangents of r and d
  const T* filters = nullptr;    // [pairs][2][3F or 2F] values and slopes
  DualArray<T> features;         // rows [5F]; first interaction: [2F], no tangent
  DualArray<T> adjoints;         // rows [4F]
  DualArray<T> s0, v0;           // rows [F], [3F]: before the messages; first: neither v0 nor s0.d
  DualArray<T> cat, v1;          // forward: rows [2F] (the first half), [3F]
  DualArray<T> x, gx, gv;        // backward: rows [3F or 2F]; [3F] the adjoint of v0
  bool sums = true;              // backward: gx and gv are wanted
  T* gradients = nullptr;        // backward, primal: [pairs][4] added to: dE/dd, dE/dr
  T* filter_adjoints = nullptr;  // backward, dual: [pairs][2][3F or 2F] from pair first_pair on
  int64_t first_pair = 0;
};

template <typename T>
struct TrainingKernels {
  void (*silu)(int64_t count, DualArray<T> z, DualArray<T> a) = nullptr;
  // ga *= silu'(z), to gz
  void (*silu_adjoint)(int64_t count, DualArray<T> z, DualArray<T> ga, DualArray<T> gz) = nullptr;
  void (*features)(const TrainingRows<T>&) = nullptr;         // x, v0 -> features
  void (*norms)(const TrainingRows<T>&) = nullptr;            // vu -> cat's norms
  void (*combine)(const TrainingRows<T>&) = nullptr;          // cat, a, vu, v1 -> s, v
  void (*adjoint_a)(const TrainingRows<T>&) = nullptr;        // gs, gv, vu -> ga
  void (*adjoint_vu)(const TrainingRows<T>&) = nullptr;       // gs, gv, a, vu, cat, gcat -> gvu
  void (*adjoint_message)(const TrainingRows<T>&) = nullptr;  // gs, gv, gcat, gv1 -> adjoints
  void (*forward_first)(const TrainingEdges<T>&) = nullptr;
  void (*forward)(const TrainingEdges<T>&) = nullptr;
  void (*backward_first)(const TrainingEdges<T>&) = nullptr;
  void (*backward)(const TrainingEdges<T>&) = nullptr;
};

template <typename T>
struct Kernels {
  int lanes = 0;         // numbers per vector
  int gemm_vectors = 0;  // vectors per packed panel
  void (*gemm)(const GemmCall<T>&) = nullptr;
  void (*forward_first)(const TileCall<T>&) = nullptr;
  void (*forward)(const TileCall<T>&) = nullptr;
  void (*backward_first)(const TileCall<T>&) = nullptr;
  void (*backward)(const TileCall<T>&) = nullptr;
  void (*update_norms)(const UpdateCall<T>&) = nullptr;       // vu -> cat's norms
  void (*update_combine)(const UpdateCall<T>&) = nullptr;     // a, vu -> cat's s, v
  void (*update_adjoint_a)(const UpdateCall<T>&) = nullptr;   // gs, gv, vu -> ga
  void (*update_adjoint_vu)(const UpdateCall<T>&) = nullptr;  // gs, gv, gcat, a, vu -> gvu
  void (*write_features)(int64_t m, int64_t num_channels, const T* x, const T* v, T* x2,
                         T* rows) = nullptr;
  void (*write_adjoints)(int64_t m, int64_t num_channels, const T* gs, const T* gcat, const T* gv,
                         T* rows) = nullptr;
  void (*finish_sums)(int64_t m, int64_t num_channels, const T* sums, const T* x2, const T* v,
                      const T* rows, T* gx, T* gs, T* gv) = nullptr;
  void (*message_forward)(const MessageCall<T>&) = nullptr;
  void (*message_backward)(const MessageCall<T>&) = nullptr;
  void (*message_double_backward)(const MessageCall<T>&) = nullptr;
  void (*outer)(const OuterCall<T>&) = nullptr;
  TrainingKernels<T> training[2];  // primal and dual pass
  // n distinct keys in ascending order.
  void (*rank_sort)(const int64_t* keys, int64_t n, int64_t* sorted) = nullptr;
  double (*fma_rounds)(int64_t rounds) = nullptr;         // ceilings.h
  T (*read_sum)(int64_t count, const T* data) = nullptr;  // count a multiple of 256
};

// One per compiled instruction set; null where the compiler has no such target.
template <typename T>
const Kernels<T>* portable_kernels();
template <typename T>
const Kernels<T>* avx2_kernels();
template <typename T>
const Kernels<T>* avx512_kernels();

}  // namespace mlff
