// device gpu: positions of owned and ghost atoms go up, forces come down; the device builds its own
// neighbour list whenever LAMMPS renews the ghosts, so none is asked of LAMMPS.
//
// Every ghost has a row of its own. On one rank all of them are images of owned atoms, which the
// device copies itself: a step is one CUDA graph and one wait. On several ranks rows travel through
// page-locked memory of the host and comm->forward_comm().
#include <mpi.h>

#include <algorithm>
#include <cmath>

#include "atom.h"
#include "comm.h"
#include "core/error.h"
#include "error.h"
#include "neighbor.h"
#include "pair_painn.h"
#include "text.h"
#include "update.h"

#if defined(MLFF_CUDA)
#include "cuda/system.h"
#endif

using namespace LAMMPS_NS;
using mlff::format;

#if defined(MLFF_CUDA)

struct LAMMPS_NS::PainnGpu {
  std::unique_ptr<mlff::gpu::System> system;
  std::string name;
  std::vector<double> positions;
  std::vector<int32_t> ghost_owners;
};

// Ranks of one node share its GPUs in turn.
void PairPaiNN::open_gpu() {
  int rank = 0, ranks = 1;
#if MLFF_LAMMPS_MPI
  MPI_Comm node;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
#endif

  const int gpus = mlff::gpu::device_count();
  if (gpus == 0)
    throw mlff::InputError("device gpu: this machine has no GPU that CUDA can use; use device cpu");
  if (!options_.tabulate)
    throw mlff::InputError("tabulate off is for device cpu; use tabulate on with device gpu");
  if (ranks > gpus && comm->me == 0)
    error->warning(FLERR, format("pair_style painn: %d ranks of a node share %d GPU%s; one rank "
                                 "per GPU is usually faster",
                                 ranks, gpus, gpus == 1 ? "" : "s"));
  mlff::gpu::SystemOptions options;
  options.precision = options_.precision;
  options.math = mlff::gpu::math_from_name(math_);
  options.device = rank % gpus;
  options.warn_distance = extrapolation_ == Extrapolation::kIgnore ? 0.0 : model_.min_distance;
  gpu_ = std::make_shared<PainnGpu>();
  gpu_->system = std::make_unique<mlff::gpu::System>(model_, options);
  gpu_->name = mlff::gpu::device_name(options.device);
}

std::string PairPaiNN::gpu_name() const {
  return gpu_ ? gpu_->name + ", products " + (gpu_->system->uses_cublas() ? "cuBLAS " : "") + math_
              : "";
}

size_t PairPaiNN::gpu_exchange_bytes() const { return gpu_->system->max_exchange_bytes(); }

void PairPaiNN::compute_gpu() {
  PainnGpu& gpu = *gpu_;
  n_local_ = atom->nlocal;
  n_rows_ = atom->nlocal + atom->nghost;
  ghost_rows_ = true;
  const bool new_list = !plan_valid_ || neighbor->ago == 0;
  const size_t rows = static_cast<size_t>(std::max(1, n_rows_));
  if (new_list) {
    plan_valid_ = true;
    n_remote_ = comm->nprocs > 1 ? atom->nghost : 0;
    species_.resize(rows);
    row_tags_.resize(rows);
    for (int i = 0; i < n_rows_; ++i) {
      species_[i] = type_species_[atom->type[i]];
      row_tags_[i] = tag_of(i);
    }
    if (comm->nprocs == 1) {
      owners_.resize(2 * rows);
      for (int i = 0; i < n_local_; ++i) {
        owners_[2 * i] = 0;
        owners_[2 * i + 1] = i;
      }
      forward_rows(owners_.data(), 2);
      gpu.ghost_owners.resize(rows);
      for (int i = n_local_; i < n_rows_; ++i)
        gpu.ghost_owners[i - n_local_] = static_cast<int32_t>(owners_[2 * i + 1]);
    }
  }

  gpu.positions.resize(3 * rows);
  const double* const* x = atom->x;
  for (int i = 0; i < n_rows_; ++i)
    for (int a = 0; a < 3; ++a) gpu.positions[3 * i + a] = x[i][a] / units_.length;
  std::string problem;
  for (int i = 0; i < n_rows_ && problem.empty(); ++i)
    if (!std::isfinite(x[i][0]) || !std::isfinite(x[i][1]) || !std::isfinite(x[i][2]))
      problem = format(
          "the position of atom %lld is not finite at step %lld; the simulation is "
          "unstable (timestep, start structure, or model outside its training)",
          tag_of(i), static_cast<long long>(update->ntimestep));

  mlff::gpu::StepInput input;
  input.n_local = n_local_;
  input.n_rows = n_rows_;
  input.species = species_.data();
  input.positions = gpu.positions.data();
  input.names = row_tags_.data();
  input.new_atoms = input.new_list = new_list;
  input.keep_list = true;
  input.skin = neighbor->skin / units_.length;
  input.ghost_owners = comm->nprocs == 1 ? gpu.ghost_owners.data() : nullptr;
  input.atom_virials = vflag_atom != 0;
  const bool alone = comm->nprocs == 1;
  const mlff::gpu::StepResult* result = nullptr;
  if (problem.empty()) {
    try {
      if (alone) {
        result = &gpu.system->compute(input);
      } else {
        gpu.system->begin(input);
      }
    } catch (const mlff::Error& caught) {
      problem = caught.what();
    }
  }

  std::string warning;
  closest_ = ClosestPair();
  if (problem.empty() &&
      gpu.system->close_pair(closest_.first, closest_.second, closest_.distance)) {
    if (extrapolation_ == Extrapolation::kStop)
      problem = describe(closest_);
    else if (!closeness_reported_)
      warning = describe(closest_);
  }
  agree(problem, warning);

  if (!alone) {
    try {
      while (const mlff::ExchangeRequest* request = gpu.system->advance()) exchange(*request);
      result = &gpu.system->finish();
    } catch (const mlff::Error& caught) {  // the device failed: others may be waiting
      error->one(FLERR, std::string("pair_style painn: ") + caught.what());
    }
  }
  add_gpu_results(*result);
}

void PairPaiNN::add_gpu_results(const mlff::gpu::StepResult& result) {
  const double to_energy = units_.energy;
  const double to_force = units_.energy / units_.length;
  constexpr int kPlace[6][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2}, {1, 2}};
  if (eflag_global) eng_vdwl += result.energy * to_energy;
  if (eflag_atom)
    for (int i = 0; i < n_local_; ++i) eatom[i] += result.energies[i] * to_energy;
  if (vflag_global)
    for (int k = 0; k < 6; ++k)
      virial[k] += result.virial[static_cast<size_t>(3 * kPlace[k][0] + kPlace[k][1])] * to_energy;

  totals_width_ = vflag_atom ? 9 : 3;
  const size_t width = totals_width_;
  totals_.resize(std::max<size_t>(1, n_rows_ * width));
  for (int i = 0; i < n_rows_; ++i) {
    double* total = &totals_[i * width];
    for (int a = 0; a < 3; ++a) total[a] = result.forces[3 * i + a];
    if (!vflag_atom) continue;
    const double* w = result.atom_virials + 9 * i;
    for (int k = 0; k < 6; ++k)
      total[3 + k] =
          0.5 * (w[3 * kPlace[k][0] + kPlace[k][1]] + w[3 * kPlace[k][1] + kPlace[k][0]]);
  }
  return_totals();
  double** f = atom->f;
  for (int i = 0; i < n_local_; ++i) {
    const double* total = &totals_[i * width];
    for (int a = 0; a < 3; ++a) f[i][a] += total[a] * to_force;
    if (vflag_atom)
      for (int k = 0; k < 6; ++k) vatom[i][k] += total[3 + k] * to_energy;
  }
}

#else

struct LAMMPS_NS::PainnGpu {};

void PairPaiNN::open_gpu() {
  throw mlff::InputError(
      "this plugin was built without CUDA and cannot run with device gpu; use device cpu");
}
std::string PairPaiNN::gpu_name() const { return ""; }
size_t PairPaiNN::gpu_exchange_bytes() const { return 0; }
void PairPaiNN::compute_gpu() {}

#endif
