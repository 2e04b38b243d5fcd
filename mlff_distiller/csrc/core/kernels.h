// The inner loops, compiled once per instruction set and picked at run time.
//
// Arrays are 64-byte aligned, and F below is the padded number of channels: a multiple of 64 bytes
// whose padding channels are zero in every weight and stay zero throughout.
#ifndef MLFF_CORE_KERNELS_H_
#define MLFF_CORE_KERNELS_H_

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

// Filters w(d) = sum_k basis_k(d) row_k. Tabulated: four rows from `intervals[e]` on, B-spline
// basis at `fractions[e]`. Exact: all `num_rows` rows, basis and its derivative given per edge.
template <typename T>
struct FilterRows {
  const T* rows = nullptr;  // row stride: 3F, first interaction 2F (no w2: v is zero)
  T inverse_spacing = 0;    // 1/Angstrom
  int num_rows = 0;         // 0: tabulated
};

// The edges of one centre, inside the cutoff.
template <typename T>
struct EdgeCall {
  int64_t num_channels = 0;            // F
  int64_t num_edges = 0;               //
  const int32_t* senders = nullptr;    //
  const int32_t* intervals = nullptr;  // tabulated
  const T* fractions = nullptr;        // tabulated, in [0, 1]
  const T* basis = nullptr;            // exact: [num_edges][2][num_rows], values then derivatives
  const T* directions = nullptr;       // [num_edges][3], from centre to sender
  FilterRows<T> filter;

  // First interaction: x depends on the species alone.
  const int32_t* species = nullptr;  // of rows
  const T* species_x = nullptr;      // [species][2F]: x0 | x1

  const T* rows = nullptr;  // forward: features  [.., 5F] x0 | x1 | x2 v_x | x2 v_y | x2 v_z
                            // backward: adjoints [.., 4F] gs | gv_x | gv_y | gv_z
  // forward: in/out messages s [F] and v [3F].
  T* s = nullptr;
  T* v = nullptr;
  // backward, first interaction: the centre's adjoints [4F]; else the centre's own features [5F].
  const T* centre = nullptr;
  // backward: sums over neighbours n, [5F], overwritten:
  //   gs_n w0 | -(gv_n . direction) w1 | gv_n w2 (three)
  T* sums = nullptr;
  // backward: [num_edges][4]; dE/dd, then the vector g that multiplies (1 - r r^T)/d.
  T* gradients = nullptr;
};

// m atoms' rows for the element-wise parts of the update block.
template <typename T>
struct UpdateCall {
  int64_t m = 0, num_channels = 0;
  bool last = false;        // last interaction: vectors end here, no a_vv
  const T* vu = nullptr;    // [m][3][2F], V v | U v
  const T* a = nullptr;     // [m][2F] a_sv | a_vv, last: [m][F] a_sv
  int64_t lda = 0;          // row stride of a
  T* cat = nullptr;         // [m][2F] s | norm
  T* v = nullptr;           // [m][3][F]
  const T* gs = nullptr;    // [m][F] dE/ds after the update
  const T* gv = nullptr;    // [m][3][F] dE/dv after the update, null in the last interaction
  T* ga = nullptr;          // [m][3F] dE/da of a_ss | a_sv | a_vv, last: [m][2F]
  const T* gcat = nullptr;  // [m][2F]
  T* gvu = nullptr;         // [m][3][2F]
};

template <typename T>
struct Kernels {
  int lanes = 0;         // numbers per vector
  int gemm_vectors = 0;  // vectors per packed panel
  void (*gemm)(const GemmCall<T>&) = nullptr;
  void (*forward_first)(const EdgeCall<T>&) = nullptr;
  void (*forward)(const EdgeCall<T>&) = nullptr;
  void (*backward_first)(const EdgeCall<T>&) = nullptr;
  void (*backward)(const EdgeCall<T>&) = nullptr;
  void (*update_norms)(const UpdateCall<T>&) = nullptr;       // vu -> cat's norms
  void (*update_combine)(const UpdateCall<T>&) = nullptr;     // a, vu -> cat's s, v
  void (*update_adjoint_a)(const UpdateCall<T>&) = nullptr;   // gs, gv, vu -> ga
  void (*update_adjoint_vu)(const UpdateCall<T>&) = nullptr;  // gs, gv, gcat, a, vu -> gvu
  void (*scale_vectors)(int64_t m, int64_t num_channels, const T* x2, const T* v,
                        T* features) = nullptr;
  void (*finish_sums)(int64_t num_channels, const T* sums, const T* x2, const T* v, const T* gv_own,
                      T* gx, T* gv) = nullptr;
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

#endif  // MLFF_CORE_KERNELS_H_
