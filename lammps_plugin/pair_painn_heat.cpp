// The 9-component virial of atoms that makes `compute heat/flux` exact for message passing.
//
// With the energy at the atoms, sum_i E_i delta(r - r_i), continuity fixes the potential part of
// the heat flux (Langer, Frank, Knoop, "Heat flux for semilocal machine-learning potentials",
// Phys. Rev. B 108, L100302 (2023), arXiv:2303.14434):
//
//   J = sum_j W_j v_j,   W_j = sum_i (r_i - r_j) (outer) dE_i/dr_j,
//
// i over all atoms within the receptive field of K cutoffs, periodic images apart. A pair form
// r_ij (outer) F_ij has the same sum, the virial, but moves energy between neighbours only, while
// message passing moves it further: its J is another one.
//
// The sum over i needs no list of far pairs. B_a = sum_i r_ia E_i with r_ia as constant weights
// has W_j,ab = dB_a/dr_jb - r_ja dE/dr_jb, and dB_a is a reverse pass whose seeds are weights
// instead of 1. Across ranks and periodic images only the frame differs: if an atom sits at x in
// its owner's frame and at x + L in ours, then its adjoints of B_a here are those of its owner
// plus L_a times its adjoints of E. So the common exchange serves, and three more passes per step.
// Everything is relative to a point near the atoms of the rank, to lose no digits far from zero.
#include <algorithm>
#include <cstring>

#include "atom.h"
#include "pair_painn.h"

using namespace LAMMPS_NS;

namespace {

// rows += offset * kept, for the ghost rows of one exchange.
template <typename T>
void shift_frame(T* rows, const T* kept, int64_t n_ghost, int64_t row_numbers,
                 const double* offsets) {
  for (int64_t g = 0; g < n_ghost; ++g) {
    const T offset = static_cast<T>(offsets[3 * g]);
    for (int64_t k = 0; k < row_numbers; ++k)
      rows[g * row_numbers + k] += offset * kept[g * row_numbers + k];
  }
}

}  // namespace

// Called behind every reverse exchange of the pass for E.
void PairPaiNN::keep_ghost_adjoints(const mlff::ExchangeRequest& request) {
  if (ghost_adjoints_.size() <= kept_adjoints_) ghost_adjoints_.emplace_back();
  std::vector<char>& kept = ghost_adjoints_[kept_adjoints_++];
  kept.resize(static_cast<size_t>(request.n_rows - request.n_local) * request.row_bytes);
  std::memcpy(kept.data(),
              static_cast<const char*>(request.rows) + request.n_local * request.row_bytes,
              kept.size());
}

// Pair gradients of B_x, B_y, B_z. Collective.
void PairPaiNN::find_barycentre_gradients(mlff::Graph graph) {
  const double* const* x = atom->x;
  const double to_angstrom = 1.0 / units_.length;
  const int n_ghost = n_rows_ - n_local_;
  const double* origin = n_local_ ? x[0] : nullptr;
  relative_.resize(static_cast<size_t>(std::max(1, n_rows_)) * 3);
  ghost_offsets_.resize(static_cast<size_t>(std::max(1, n_ghost)) * 3);
  weights_.resize(static_cast<size_t>(std::max(1, n_local_)));
  auto position = [&](int i, int a) {
    return (x[i][a] - (origin ? origin[a] : 0.0)) * to_angstrom;
  };
  for (int i = 0; i < n_local_; ++i)
    for (int a = 0; a < 3; ++a) relative_[3 * i + a] = position(i, a);
  forward_rows(relative_.data(), 3);
  for (int g = 0; g < n_ghost; ++g)
    for (int a = 0; a < 3; ++a)
      ghost_offsets_[3 * g + a] = position(n_local_ + g, a) - relative_[3 * (n_local_ + g) + a];

  mlff::Outputs outputs;
  outputs.atomic_energies = atomic_energies_.data();  // the same values once more
  outputs.energy_weights = weights_.data();
  for (int a = 0; a < 3; ++a) {
    for (int i = 0; i < n_local_; ++i) weights_[i] = relative_[3 * i + a];
    barycentre_gradients_[a].resize(pair_gradients_.size());
    outputs.pair_gradients = barycentre_gradients_[a].data();
    engine_->begin(graph, outputs);  // the input passed its checks before
    size_t reverse = 0;
    while (const mlff::ExchangeRequest* request = engine_->advance()) {
      forward_rows(request->rows, static_cast<int>(request->row_bytes / sizeof(double)));
      if (!request->backward) continue;
      char* ghosts = static_cast<char*>(request->rows) + request->n_local * request->row_bytes;
      const char* kept = ghost_adjoints_[reverse++].data();
      if (engine_->precision() == mlff::Precision::kFloat64)
        shift_frame(reinterpret_cast<double*>(ghosts), reinterpret_cast<const double*>(kept),
                    n_ghost, request->row_bytes / sizeof(double), &ghost_offsets_[a]);
      else
        shift_frame(reinterpret_cast<float*>(ghosts), reinterpret_cast<const float*>(kept), n_ghost,
                    request->row_bytes / sizeof(float), &ghost_offsets_[a]);
    }
  }
}
