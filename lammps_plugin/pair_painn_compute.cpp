// One step: rows, edges, the network with its exchanges, and adding up the results.
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "core/error.h"
#include "core/lattice.h"
#include "error.h"
#include "neigh_list.h"
#include "pair_painn.h"
#include "text.h"
#include "update.h"

using namespace LAMMPS_NS;
using mlff::format;

namespace {

// Edges up to here are kept; those at or beyond the cutoff contribute exactly nothing. The margin
// keeps the graph symmetric where both directions of an edge are rounded on different ranks.
constexpr double kCutoffMargin = 1.0 + 1e-9;

}  // namespace

void PairPaiNN::compute(int eflag, int vflag) {
  const double start = MPI_Wtime();
  ev_init(eflag, vflag);
  if (!neighbor_settings_checked_) check_neighbor_settings();
  evaluator_->compute();
  compute_seconds_ += MPI_Wtime() - start;
  if (!banner_printed_) print_banner();
}

class PairPaiNN::Cpu : public PairPaiNN::Evaluator {
 public:
  explicit Cpu(PairPaiNN& pair) : pair_(pair) {}
  std::string device() const override {
    return format("cpu (%s)", mlff::isa_name(pair_.engine_->isa()));
  }
  size_t max_exchange_bytes() const override { return pair_.engine_->max_exchange_bytes(); }
  bool needs_list() const override { return true; }
  void compute() override { pair_.compute_on_cpu(); }

 private:
  PairPaiNN& pair_;
};

std::unique_ptr<PairPaiNN::Evaluator> PairPaiNN::make_evaluator() {
  if (on_gpu_) return make_gpu();
  return std::make_unique<Cpu>(*this);
}

void PairPaiNN::compute_on_cpu() {
  ghost_rows_ = cvflag_atom != 0;
  find_rows();
  std::string problem = build_edges();

  mlff::Graph graph;
  graph.n_local = n_local_;
  graph.n_rows = n_rows_;
  graph.species = row_species_.data();
  graph.offsets = offsets_.data();
  graph.senders = senders_.data();
  graph.edge_vectors = edge_vectors_.data();
  graph.names = row_tags_.data();
  mlff::Outputs outputs;
  outputs.atomic_energies = atomic_energies_.data();
  outputs.pair_gradients = pair_gradients_.data();
  has_uncertainties_ = wants_uncertainties();
  if (has_uncertainties_) {
    uncertainties_.resize(atomic_energies_.size());
    outputs.uncertainties = uncertainties_.data();
  }
  if (problem.empty()) {
    try {
      engine_->begin(graph, outputs);
    } catch (const mlff::InputError& caught) {
      problem = caught.what();
    }
  }

  std::string warning;
  const bool close = problem.empty() && closest_.distance < model_.min_distance;
  const double distance = close ? closest_.distance : 0.0;
  if (close && extrapolation_ == Extrapolation::kStop)
    problem = describe(closest_);
  else if (close && extrapolation_ == Extrapolation::kWarn && !closeness_reported_)
    warning = describe(closest_);
  // The last point at which a rank may stop: exchanges follow.
  if (agree(problem, warning, distance)) closeness_reported_ = true;

  while (const mlff::ExchangeRequest* request = engine_->advance()) exchange(*request);
  if (cvflag_atom) find_barycentre_gradients(graph);

  add_results();
}

// A problem or "".
std::string PairPaiNN::find_not_finite(int n_all) const {
  const double* const* x = atom->x;
  for (int i = 0; i < n_all; ++i)
    if (!std::isfinite(x[i][0]) || !std::isfinite(x[i][1]) || !std::isfinite(x[i][2]))
      return format(
          "the position of atom %lld is not finite at step %lld; the simulation is "
          "unstable (timestep, start structure, or model outside its training)",
          tag_of(i), static_cast<long long>(update->ntimestep));
  return "";
}

// One line on all ranks if the energy of this rank's atoms or a force on them is not finite, where
// the positions were, or more uncertain than it may be. Collective.
void PairPaiNN::check_results(double energy) {
  const long long step = update->ntimestep;
  std::string problem;
  if (!std::isfinite(energy))
    problem = format("the model gave an energy that is not finite at step %lld", step);
  for (int i = 0; problem.empty() && i < n_local_; ++i) {
    const double* force = &totals_[i * totals_width_];
    if (!std::isfinite(force[0]) || !std::isfinite(force[1]) || !std::isfinite(force[2]))
      problem = format("the model gave a force on atom %lld that is not finite at step %lld",
                       tag_of(i), step);
  }
  if (!problem.empty()) problem += "; check the structure, the time step and the model";
  std::string uncertain, warning;
  double largest = 0.0;
  const double frame = frame_uncertainty();
  if (problem.empty()) largest = find_uncertain(frame, uncertain);
  if (uncertain_ == Extrapolation::kStop) {
    if (problem.empty()) problem = uncertain;
  } else if (!uncertainty_reported_) {
    warning = uncertain;
  }
  if (agree(problem, warning, -largest)) uncertainty_reported_ = true;
}

// Edges from LAMMPS' full neighbour list. Returns a problem or "".
std::string PairPaiNN::build_edges() {
  const double* const* x = atom->x;
  const int n_all = n_local_ + atom->nghost;
  const double to_angstrom = 1.0 / units_.length;
  const double reach = engine_->cutoff() * kCutoffMargin;
  const double reach_squared = reach * reach;

  offsets_.assign(static_cast<size_t>(n_local_) + 1, 0);
  list_index_.assign(static_cast<size_t>(std::max(1, n_local_)), -1);
  atomic_energies_.resize(static_cast<size_t>(std::max(1, n_local_)));
  closest_ = ClosestPair();
  kept_adjoints_ = 0;

  std::string problem = find_not_finite(n_all);

  // Atoms without a place in the list (NULL under hybrid) and those that the model does not see
  // keep no edges.
  for (int ii = 0; ii < list->inum; ++ii)
    if (species_[list->ilist[ii]] >= 0) list_index_[list->ilist[ii]] = ii;

  const int threads = engine_->num_threads();
  (void)threads;
  // Twice the same loop, first to count and then to fill: both run in parallel and every edge has
  // its place independent of the number of threads.
  auto visit = [&](int i, auto&& keep) {
    if (list_index_[i] < 0) return;
    const int* neighbors = list->firstneigh[i];
    for (int k = 0; k < list->numneigh[i]; ++k) {
      const int j = neighbors[k] & NEIGHMASK;
      if (species_[j] < 0) continue;
      const double dx = (x[j][0] - x[i][0]) * to_angstrom;
      const double dy = (x[j][1] - x[i][1]) * to_angstrom;
      const double dz = (x[j][2] - x[i][2]) * to_angstrom;
      const double squared = dx * dx + dy * dy + dz * dz;
      if (squared < reach_squared) keep(j, dx, dy, dz, squared);
    }
  };

#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#endif
  {
    ClosestPair mine;
    double smallest = 1e300;
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int i = 0; i < n_local_; ++i) {
      int64_t count = 0;
      visit(i, [&](int j, double, double, double, double squared) {
        ++count;
        if (squared < smallest) {
          smallest = squared;
          mine.first = i;
          mine.second = j;
        }
      });
      offsets_[i + 1] = count;
    }
    mine.distance = std::sqrt(smallest);
#if defined(_OPENMP)
#pragma omp critical(painn_closest)
#endif
    if (mine.distance < closest_.distance) closest_ = mine;
  }

  for (int i = 0; i < n_local_; ++i) offsets_[i + 1] += offsets_[i];
  const size_t n_edges = static_cast<size_t>(offsets_[n_local_]);
  senders_.resize(std::max<size_t>(1, n_edges));
  edge_vectors_.resize(std::max<size_t>(3, 3 * n_edges));
  pair_gradients_.resize(std::max<size_t>(3, 3 * n_edges));

#if defined(_OPENMP)
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (int i = 0; i < n_local_; ++i) {
    int64_t e = offsets_[i];
    visit(i, [&](int j, double dx, double dy, double dz, double) {
      senders_[e] = rows_[j];
      edge_vectors_[3 * e] = dx;
      edge_vectors_[3 * e + 1] = dy;
      edge_vectors_[3 * e + 2] = dz;
      ++e;
    });
  }

  if (problem.empty() && closest_.distance <= mlff::kSamePoint) problem = describe(closest_);
  return problem;
}

std::string PairPaiNN::describe(const ClosestPair& pair) const {
  const auto [first, second] = std::minmax({tag_of(pair.first), tag_of(pair.second)});
  const std::string text = format("atoms %lld and %lld are %.3g Angstrom apart at step %lld", first,
                                  second, pair.distance, static_cast<long long>(update->ntimestep));
  if (pair.distance <= mlff::kSamePoint)
    return text + "; no force is defined there, separate them (delete_atoms overlap)";
  return text + format(", closer than any pair in training (%.3g); the model extrapolates there",
                       model_.min_distance);
}

// Energies, forces and virials from atomic energies and pair gradients, in the units of the run.
// Forces and per-atom virials are added: hybrid calls several styles on the same arrays.
void PairPaiNN::add_results() {
  const double to_energy = units_.energy;
  const double to_force = units_.energy / units_.length;

  double sum = 0.0;
  for (int i = 0; i < n_local_; ++i) sum += atomic_energies_[i];
  if (eflag_either)
    for (int i = 0; i < n_local_; ++i) {
      const double energy = atomic_energies_[i] * to_energy;
      if (eflag_global) eng_vdwl += energy;
      if (eflag_atom) eatom[i] += energy;
    }

  const int six = vflag_atom ? 3 : -1;  // columns of totals_, -1: not wanted
  const int nine = cvflag_atom ? (vflag_atom ? 9 : 3) : -1;
  totals_width_ = 3 + (vflag_atom ? 6 : 0) + (cvflag_atom ? 9 : 0);
  const size_t width = totals_width_;
  totals_.assign(std::max<size_t>(1, n_rows_ * width), 0.0);

  double sums[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  for (int i = 0; i < n_local_; ++i) {
    double* centre = &totals_[i * width];
    for (int64_t e = offsets_[i]; e < offsets_[i + 1]; ++e) {
      const double* r = &edge_vectors_[3 * e];
      const double* d = &pair_gradients_[3 * e];
      double* neighbor = &totals_[senders_[e] * width];
      for (int a = 0; a < 3; ++a) {
        centre[a] += d[a];
        neighbor[a] -= d[a];
      }
      if (!vflag_either) continue;
      const double w[6] = {-r[0] * d[0],
                           -r[1] * d[1],
                           -r[2] * d[2],
                           -0.5 * (r[0] * d[1] + r[1] * d[0]),
                           -0.5 * (r[0] * d[2] + r[2] * d[0]),
                           -0.5 * (r[1] * d[2] + r[2] * d[1])};
      for (int k = 0; k < 6; ++k) sums[k] += w[k];
      if (six >= 0)
        for (int k = 0; k < 6; ++k) {
          centre[six + k] += 0.5 * w[k];
          neighbor[six + k] += 0.5 * w[k];
        }
      if (nine >= 0) {
        // See pair_painn_heat.cpp. LAMMPS' order: first the coordinate, then the force.
        constexpr int kPlace[9][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2},
                                      {1, 2}, {1, 0}, {2, 0}, {2, 1}};
        for (int k = 0; k < 9; ++k) {
          const int a = kPlace[k][0], b = kPlace[k][1];
          const double moment = barycentre_gradients_[a][3 * e + b];
          const double x = relative_[3 * i + a];
          centre[nine + k] -= moment - x * d[b];
          neighbor[nine + k] += moment - (x + r[a]) * d[b];
        }
      }
    }
  }

  // The owners' share is returned here, so neither newton on nor off is anything to LAMMPS.
  return_totals();
  if (has_uncertainties_)
    for (int i = 0; i < n_local_; ++i) uncertainties_[i] *= to_force;
  check_results(sum);

  double** f = atom->f;
  for (int i = 0; i < n_local_; ++i) {
    const double* total = &totals_[i * width];
    for (int a = 0; a < 3; ++a) f[i][a] += total[a] * to_force;
    if (six >= 0)
      for (int k = 0; k < 6; ++k) vatom[i][k] += total[six + k] * to_energy;
    if (nine >= 0)
      for (int k = 0; k < 9; ++k) cvatom[i][k] += total[nine + k] * to_energy;
  }
  if (vflag_global)
    for (int k = 0; k < 6; ++k) virial[k] += sums[k] * to_energy;
}
