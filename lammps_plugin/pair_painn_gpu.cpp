// device gpu: positions of owned and ghost atoms go up, forces come down; the device builds its own
// neighbour list whenever LAMMPS renews the ghosts, so none is asked of LAMMPS.
//
// Every ghost has a row of its own. On one rank all of them are images of owned atoms, which the
// device copies itself: a step is one CUDA graph and one wait. On several ranks the device packs
// the rows that others need, each atom once however many images it has, and MPI carries them:
// between the devices if it takes their addresses, else through page-locked memory.
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
#include <dlfcn.h>

#include "cuda/system.h"
#endif

using namespace LAMMPS_NS;
using mlff::format;

#if defined(MLFF_CUDA)

namespace {

// Whether MPI says that it takes addresses of device memory. Looked up at run time: the library may
// be another of the header's family, and not each has the function.
bool mpi_takes_device_memory() {
#if MLFF_LAMMPS_MPI
  typedef int (*Query)();
  // Of Open MPI, and of MPICH since 4.0.
  const auto query = reinterpret_cast<Query>(dlsym(RTLD_DEFAULT, "MPIX_Query_cuda_support"));
  return query && query() == 1;
#else
  return false;
#endif
}

}  // namespace

class PairPaiNN::Gpu : public PairPaiNN::Evaluator {
 public:
  Gpu(PairPaiNN& pair, const mlff::gpu::SystemOptions& options)
      : pair_(pair), system_(pair.model_, options), name_(mlff::gpu::device_name(options.device)) {
    single_ = options.precision == mlff::Precision::kFloat32;
    device_exchange_ = options.device_exchange;
    rounds_ = mlff::gpu::rounds_products(options.math);
    if (rounds_ && !system_.uses_cublas() && pair_.comm->me == 0)
      pair_.error->warning(FLERR, format("pair_style painn: math %s %s", pair_.math_.c_str(),
                                         mlff::gpu::kNoFasterMath));
  }

  std::string device() const override {
    return "gpu " + name_ + ", products " +
           (single_ ? "in " + (rounds_ ? pair_.math_ : "float32") + " " : "") + "by " +
           system_.products() + (pair_.math_ == "float32" ? "" : ", filters in float16") +
           (pair_.comm->nprocs == 1 ? ""
            : device_exchange_      ? ", rows of other ranks by MPI between devices"
                                    : ", rows of other ranks through page-locked memory");
  }
  size_t max_exchange_bytes() const override { return 0; }
  bool needs_list() const override { return false; }
  void compute() override;

 private:
  void renew_ghosts();
  mlff::gpu::StepInput step_input(bool new_list);
  void add_results(const mlff::gpu::StepResult& result);
  void add_uncertainties();

  PairPaiNN& pair_;
  mlff::gpu::System system_;
  std::string name_;
  bool single_ = true, rounds_ = false, device_exchange_ = false;
  std::vector<double> positions_;
};

// Ranks of one node share its GPUs in turn.
std::unique_ptr<PairPaiNN::Evaluator> PairPaiNN::make_gpu() {
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
  options.device_exchange =
      gpu_aware_ == GpuAware::kAuto ? mpi_takes_device_memory() : gpu_aware_ == GpuAware::kOn;
  options.warn_distance = extrapolation_ == Extrapolation::kIgnore ? 0.0 : model_.min_distance;
  return std::make_unique<Gpu>(*this, options);
}

void PairPaiNN::Gpu::compute() {
  PairPaiNN& p = pair_;
  if (p.cvflag_atom)
    p.error->all(FLERR,
                 "pair_style painn: centroid/stress/atom is not available with device gpu; use "
                 "device cpu");
  p.n_local_ = p.atom->nlocal;
  p.n_rows_ = p.atom->nlocal + p.atom->nghost;
  p.ghost_rows_ = true;
  const bool alone = p.comm->nprocs == 1;
  const bool new_ghosts = !p.plan_valid_ || p.neighbor->ago == 0;  // the same on all ranks
  // Types may be set between two builds of LAMMPS' lists.
  const bool new_list = p.find_species(new_ghosts) || new_ghosts;
  if (new_ghosts) renew_ghosts();
  const mlff::gpu::StepInput input = step_input(new_list);
  std::string problem = p.find_not_finite(p.n_rows_);
  const mlff::gpu::StepResult* result = nullptr;
  if (problem.empty()) {
    try {
      if (alone) {
        result = &system_.compute(input);
      } else {
        system_.begin(input);
      }
    } catch (const mlff::Error& caught) {
      problem = caught.what();
    }
  }

  std::string warning;
  double distance = 0.0;
  ClosestPair& closest = p.closest_;
  closest = ClosestPair();
  if (problem.empty() && system_.close_pair(closest.first, closest.second, closest.distance)) {
    distance = closest.distance;
    if (p.extrapolation_ == Extrapolation::kStop)
      problem = p.describe(closest);
    else if (!p.closeness_reported_)
      warning = p.describe(closest);
  }
  if (p.agree(problem, warning, distance)) p.closeness_reported_ = true;

  if (!alone) {
    try {
      while (const mlff::gpu::RowExchange* rows = system_.advance()) {
        const double start = MPI_Wtime();
        p.count_exchange(rows->row_bytes);
        p.swap_rows(rows->sent, rows->received, rows->row_bytes);
        p.exchange_seconds_ += MPI_Wtime() - start;
      }
      result = &system_.finish();
    } catch (const mlff::Error& caught) {  // the device failed: others may be waiting
      p.error->one(FLERR, std::string("pair_style painn: ") + caught.what());
    }
  }
  p.has_uncertainties_ = p.wants_uncertainties();
  if (p.has_uncertainties_) add_uncertainties();
  add_results(*result);
}

void PairPaiNN::Gpu::add_uncertainties() {
  PairPaiNN& p = pair_;
  const double* found = nullptr;
  try {
    found = system_.uncertainties();
  } catch (const mlff::Error& caught) {  // the device failed: others may be waiting
    p.error->one(FLERR, std::string("pair_style painn: ") + caught.what());
  }
  p.uncertainties_.resize(static_cast<size_t>(std::max(1, p.n_local_)));
  for (int i = 0; i < p.n_local_; ++i)
    p.uncertainties_[i] = found[i] * p.units_.energy / p.units_.length;
}

// Names of the rows, whose atoms ghosts are, and who sends what. Collective.
void PairPaiNN::Gpu::renew_ghosts() {
  PairPaiNN& p = pair_;
  p.row_tags_.resize(static_cast<size_t>(std::max(1, p.n_rows_)));
  for (int i = 0; i < p.n_rows_; ++i) p.row_tags_[i] = p.tag_of(i);
  p.plan_exchange();
}

mlff::gpu::StepInput PairPaiNN::Gpu::step_input(bool new_list) {
  PairPaiNN& p = pair_;
  positions_.resize(3 * static_cast<size_t>(std::max(1, p.n_rows_)));
  const double* const* x = p.atom->x;
  for (int i = 0; i < p.n_rows_; ++i)
    for (int a = 0; a < 3; ++a) positions_[3 * i + a] = x[i][a] / p.units_.length;
  mlff::gpu::StepInput input;
  input.n_local = p.n_local_;
  input.n_rows = p.n_rows_;
  input.species = p.species_.data();
  input.positions = positions_.data();
  input.names = p.row_tags_.data();
  input.new_atoms = input.new_list = new_list;
  input.keep_list = true;
  input.skin = p.neighbor->skin / p.units_.length;
  // The plan has a row for every atom: of its owner, or behind the owned ones.
  input.ghosts.sources = p.planned_rows_.data() + p.n_local_;
  input.ghosts.n_received = p.n_remote_;
  input.ghosts.sent = p.send_indices_.data();
  input.ghosts.n_sent = static_cast<int64_t>(p.send_indices_.size());
  input.atom_virials = p.vflag_atom != 0;
  return input;
}

void PairPaiNN::Gpu::add_results(const mlff::gpu::StepResult& result) {
  PairPaiNN& p = pair_;
  const double to_energy = p.units_.energy;
  const double to_force = p.units_.energy / p.units_.length;
  constexpr int kPlace[6][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2}, {1, 2}};
  if (p.eflag_global) p.eng_vdwl += result.energy * to_energy;
  if (p.eflag_atom)
    for (int i = 0; i < p.n_local_; ++i) p.eatom[i] += result.energies[i] * to_energy;
  if (p.vflag_global)
    for (int k = 0; k < 6; ++k)
      p.virial[k] +=
          result.virial[static_cast<size_t>(3 * kPlace[k][0] + kPlace[k][1])] * to_energy;

  p.totals_width_ = p.vflag_atom ? 9 : 3;
  const size_t width = p.totals_width_;
  p.totals_.resize(std::max<size_t>(1, p.n_rows_ * width));
  for (int i = 0; i < p.n_rows_; ++i) {
    double* total = &p.totals_[i * width];
    for (int a = 0; a < 3; ++a) total[a] = result.forces[3 * i + a];
    if (!p.vflag_atom) continue;
    const double* w = result.atom_virials + 9 * i;
    for (int k = 0; k < 6; ++k)
      total[3 + k] =
          0.5 * (w[3 * kPlace[k][0] + kPlace[k][1]] + w[3 * kPlace[k][1] + kPlace[k][0]]);
  }
  p.return_totals();
  p.check_results(result.energy);
  double** f = p.atom->f;
  for (int i = 0; i < p.n_local_; ++i) {
    const double* total = &p.totals_[i * width];
    for (int a = 0; a < 3; ++a) f[i][a] += total[a] * to_force;
    if (p.vflag_atom)
      for (int k = 0; k < 6; ++k) p.vatom[i][k] += total[3 + k] * to_energy;
  }
}

#else

std::unique_ptr<PairPaiNN::Evaluator> PairPaiNN::make_gpu() {
  throw mlff::InputError(
      "this plugin was built without CUDA and cannot run with device gpu; use device cpu");
}

#endif
