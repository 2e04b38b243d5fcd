// Passes over edges on the device: geometry, messages, their reverse, forces and virial.
//
// Rows that neighbours read interleave their blocks in chunks of 32 channels:
// [row][F / 32][blocks][32]. A warp has one centre and one chunk, keeps that centre's sums in
// registers and gathers over its edges, forward and in reverse (the list is symmetric:
// core/kernels_edges-inl.h), so feature passes need no atomics and give the same bits in every run.
#pragma once

#include <cstdint>

#include "core/repulsion.h"
#include "cuda/gpu.h"
#include "cuda/neighbors.h"

namespace mlff {
namespace gpu {

constexpr int kChannels = 32;  // of a chunk

// An edge ready for use: 32 bytes in float32, two 16-byte reads. Records of a centre lie where the
// list has its edges, but those within the cutoff come first (in the list's order) and the rest
// last, so that passes over features meet no edge in vain.
template <typename T>
struct alignas(16) EdgeRecord {
  T r[3];        // direction from centre to sender
  T t;           // place within the interval of the table, 0 to 1
  int interval;  // of the table; -1 at or beyond the cutoff
  int sender;    // its row
  int species;   // of the sender
  int edge;      // of the list
};
// Every byte belongs to a member: lanes read them all.
static_assert(sizeof(EdgeRecord<float>) == 4 * sizeof(float) + 4 * sizeof(int), "a hole");
static_assert(sizeof(EdgeRecord<double>) == 4 * sizeof(double) + 4 * sizeof(int), "a hole");

// Filters of one interaction, [F / 32][intervals + 2][value | slope][blocks][32]; see FilterTable
// in core/tables.h. The first interaction has two blocks, others three.
template <typename T>
struct FilterView {
  const T* rows = nullptr;
  int64_t chunk_stride = 0;
  T inverse_spacing = 0;  // 1/Angstrom
  // Unless null: the same filters for forward passes, slopes in float16; see filter_table.h.
  const uint32_t* half_rows = nullptr;
  int64_t half_stride = 0;
  float half_scale = 1.0f;
};

// Rows of 32 words of an interval with slopes in float16: of each block the values, then the slopes
// of the first two blocks in one, then those of the third, this interval's and the next one's.
template <int kBlocks>
constexpr int kHalfRows = kBlocks == 2 ? 3 : 5;

// Repulsion between species, [species][species]; null without.
struct RepulsionView {
  const RepulsionPair* pairs = nullptr;
  int num_species = 0;
  Screening screening{};
};

template <typename T>
struct EdgeCall {
  int64_t n_local = 0, edge_capacity = 0;
  int num_channels = 0;          // F, a multiple of 32
  const int* offsets = nullptr;  // [n_local + 1]
  const int* ends = nullptr;     // [n_local], where the records within the cutoff end
  const int* species = nullptr;  // [n_rows]
  const EdgeRecord<T>* edges = nullptr;
  FilterView<T> filter;
  // First interaction: features depend on the species alone.
  const T* embedding = nullptr;  // [species][F]
  const T* species_x = nullptr;  // [species][F / 32][x0 | x1][32]
  // forward: features of senders [row][F / 32][x0 | x1 | x2 v_x | x2 v_y | x2 v_z][32]
  // backward: adjoints of receivers [row][F / 32][gs | gv_x | gv_y | gv_z][32]
  const T* rows = nullptr;
  // forward, in: scalars [n][F] and vectors [n][3][F] before the message (first: unused).
  const T* s_in = nullptr;
  const T* v_in = nullptr;
  // forward, out: scalars with row stride s_stride, vectors [n][3][F].
  T* s_out = nullptr;
  int64_t s_stride = 0;
  T* v_out = nullptr;
  // backward: features of centres (as rows of forward; first: unused), x2 [n][F]; v_in as above.
  const T* own = nullptr;
  const T* x2 = nullptr;
  // backward, out (first: unused): adjoints of x [n][3F], of s [n][F] and of v [n][3][F].
  T* gx = nullptr;
  T* gs = nullptr;
  T* gv = nullptr;
  // backward, added to or, if !accumulate, set: [F / 32][capacity][4], by record: dE/dd and the
  // vector g that multiplies (1 - r r^T)/d.
  T* partial = nullptr;
  bool accumulate = false;
};

// Records and their ends [n_local], and edge vectors [capacity][3] in Angstrom, in the list's
// order. The first edge with a fault goes to the view's state, and so does one shorter than
// `warn_distance`.
template <typename T>
void edge_geometry(const NeighborView& list, double cutoff, double warn_distance,
                   double inverse_spacing, int intervals, EdgeRecord<T>* records, int* ends,
                   double* vectors, cudaStream_t stream);

// Whose edges those are, to the view's state: for a host that has seen that there are some.
void name_edges(const NeighborView& list, const double* vectors, cudaStream_t stream);

template <typename T>
void edge_forward(const EdgeCall<T>& pass, bool first, cudaStream_t stream);
template <typename T>
void edge_backward(const EdgeCall<T>& pass, bool first, cudaStream_t stream);

// Numbers per centre made by pair_gradients: force on it from its own edges (3), virial (9).
constexpr int kCentreSums = 12;

// Pair gradients D [capacity][3] (core/engine.h: F_n -= D, F_c += D) from the partial sums and the
// repulsion; sums [n][12]; the repulsion's energy is added to energies [n]. With partial == null
// only the last happens. weights [n] (null: 1) multiply the centre's energy in D.
template <typename T>
void pair_gradients(const NeighborView& list, const RepulsionView& repulsion, int num_channels,
                    const EdgeRecord<T>* records, const double* vectors, const T* partial,
                    const double* weights, double* gradients, double* sums, double* energies,
                    cudaStream_t stream);

constexpr int64_t kTotals = 10;
// Blocks that share the sums over n_local centres.
int64_t total_shares(int64_t n_local);

// Unless null: forces [n_rows][3] and virials of atoms [n_rows][9] (the gauge of add_atom_virials
// in core/potential.h). Always the sums over the centres of each share, totals [shares][10]: of
// energies, and of virials unless `sums` is null.
void finish_forces(const NeighborView& list, const double* vectors, const double* gradients,
                   const double* sums, const double* energies, double* forces, double* atom_virials,
                   double* totals, cudaStream_t stream);

}  // namespace gpu
}  // namespace mlff
