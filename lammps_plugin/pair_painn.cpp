// Settings, model, checks and the banner; the work of a step is in pair_painn_compute.cpp.
#include "pair_painn.h"

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>

#include "atom.h"
#include "comm.h"
#include "core/error.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "text.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;
using mlff::format;

namespace {
#if defined(MLFF_CUDA)
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif
}  // namespace

// In plugin.cpp.
std::string mlff_other_update();

PairPaiNN::PairPaiNN(LAMMPS* lmp) : Pair(lmp) {
  // Updates of one version move members of Pair, and lammps_version() does not tell them apart:
  // what Pair's constructor has set must be where our headers have it.
  const bool same_layout = single_enable == 1 && restartinfo == 1 && reinitflag == 1 &&
                           ncoultablebits == 12 && ndisptablebits == 12 && compute_flag == 1 &&
                           datamask_read == 0xffffffffu;
  if (!same_layout) error->all(FLERR, mlff_other_update());

  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  // The virial is summed from edges: exact for every boundary and independent of ghost forces.
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  comm_forward = 1;
  comm_reverse = comm_reverse_off = 3 + 6 + 9;
}

PairPaiNN::~PairPaiNN() {
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairPaiNN::settings(int narg, char** arg) {
  try {
    units_ = mlff::lammps_unit_style(update->unit_style);
  } catch (const mlff::InputError& problem) {
    error->all(FLERR, std::string("pair_style painn: ") + problem.what());
  }

  for (int i = 0; i < narg; i += 2) {
    const auto* keyword =
        std::find_if(std::begin(kKeywords), std::end(kKeywords),
                     [&](const Keyword& k) { return std::strcmp(k.name, arg[i]) == 0; });
    if (keyword == std::end(kKeywords)) {
      std::string known;
      for (const Keyword& k : kKeywords) known += (known.empty() ? "" : ", ") + std::string(k.name);
      error->all(FLERR, format("pair_style painn: unknown keyword '%s'; known are %s (the model "
                               "belongs into pair_coeff)",
                               arg[i], known.c_str()));
    }
    if (i + 1 >= narg)
      error->all(FLERR, format("pair_style painn: keyword '%s' lacks its value", arg[i]));
    (this->*keyword->set)(arg[i + 1]);
    if (!keyword->two_values) continue;
    if (i + 2 >= narg)
      error->all(FLERR,
                 format("pair_style painn: keyword '%s %s' lacks its limit, a number or auto",
                        arg[i], arg[i + 1]));
    set_uncertainty_limit(arg[i + 2]);
    ++i;
  }
  // What would do nothing in silence.
  const bool for_gpu = math_ != "float32" || gpu_aware_ == GpuAware::kOn;
  if (for_gpu && !on_gpu_)
    error->all(FLERR, format("pair_style painn: %s is for device gpu; use device gpu, or leave it "
                             "out",
                             math_ != "float32" ? ("math " + math_).c_str() : "gpu_aware on"));
  // An atom that is too close is one of the things that make it uncertain.
  if (uncertain_ != Extrapolation::kIgnore && !extrapolation_given_)
    extrapolation_ = Extrapolation::kIgnore;
}

const PairPaiNN::Keyword PairPaiNN::kKeywords[8] = {
    {"device", &PairPaiNN::set_device, false},
    {"precision", &PairPaiNN::set_precision, false},
    {"threads", &PairPaiNN::set_threads, false},
    {"tabulate", &PairPaiNN::set_tabulate, false},
    {"extrapolation", &PairPaiNN::set_extrapolation, false},
    {"math", &PairPaiNN::set_math, false},
    {"gpu_aware", &PairPaiNN::set_gpu_aware, false},
    {"uncertainty", &PairPaiNN::set_uncertainty, true},
};

// The place of `value` among the choices.
int PairPaiNN::choose(const char* keyword, const char* value,
                      const std::vector<const char*>& choices) {
  std::string known;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (std::strcmp(value, choices[i]) == 0) return static_cast<int>(i);
    known += (i ? " or " : "") + std::string(choices[i]);
  }
  error->all(FLERR,
             format("pair_style painn: %s must be %s, got '%s'", keyword, known.c_str(), value));
}

void PairPaiNN::set_device(const char* value) {
  // auto is the CPU: a GPU is used by those who ask for it.
  on_gpu_ = choose("device", value, {"auto", "cpu", "gpu"}) == 2;
  if (on_gpu_ && !kBuiltWithCuda)
    error->all(FLERR,
               "pair_style painn: this plugin was built without CUDA and cannot run with device "
               "gpu; use device cpu");
}

void PairPaiNN::set_precision(const char* value) {
  precision_given_ = true;
  options_.precision = choose("precision", value, {"single", "double"}) == 0
                           ? mlff::Precision::kFloat32
                           : mlff::Precision::kFloat64;
}

void PairPaiNN::set_threads(const char* value) {
  threads_ = utils::inumeric(FLERR, value, false, lmp);
  if (threads_ < 1)
    error->all(FLERR, format("pair_style painn: threads must be >= 1, got %d", threads_));
}

void PairPaiNN::set_tabulate(const char* value) {
  tabulate_given_ = true;
  options_.tabulate = choose("tabulate", value, {"off", "on"}) == 1;
}

void PairPaiNN::set_extrapolation(const char* value) {
  extrapolation_given_ = true;
  extrapolation_ =
      static_cast<Extrapolation>(choose("extrapolation", value, {"ignore", "warn", "stop"}));
}

void PairPaiNN::set_math(const char* value) {
  const std::vector<const char*> names = {"float32", "half", "tf32"};
  math_ = names[static_cast<size_t>(choose("math", value, names))];
}

void PairPaiNN::set_gpu_aware(const char* value) {
  gpu_aware_ = static_cast<GpuAware>(choose("gpu_aware", value, {"auto", "on", "off"}));
}

void PairPaiNN::allocate() {
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
}

void PairPaiNN::coeff(int narg, char** arg) {
  const int ntypes = atom->ntypes;
  if (narg < 3 || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "pair_style painn: expected 'pair_coeff * * MODEL.pt ELEMENT ...' with one element "
               "(or NULL) per atom type");
  if (narg - 3 != ntypes)
    error->all(FLERR, format("pair_style painn: expected %d element name%s after the model, one "
                             "per atom type (NULL leaves a type out), got %d",
                             ntypes, ntypes == 1 ? "" : "s", narg - 3));
  if (!allocated) allocate();

  // Each rank reads the file; a file that only some ranks can read must stop all of them.
  model_path_ = arg[2];
  std::string problem;
  try {
    model_ = mlff::read_model_file(model_path_);
    if (!precision_given_)
      options_.precision =
          model_.dtype == "float64" ? mlff::Precision::kFloat64 : mlff::Precision::kFloat32;
    // Whoever asks for double precision wants every digit, as in the other engines.
    if (!tabulate_given_)
      options_.tabulate = on_gpu_ || options_.precision == mlff::Precision::kFloat32;
    options_.num_threads = threads_ > 0 ? threads_ : comm->nthreads;
    engine_ = std::make_unique<mlff::Engine>(model_, options_);
    evaluator_.reset();
    evaluator_ = make_evaluator();
    if (uncertain_ != Extrapolation::kIgnore && !model_.has_uncertainty)
      problem = model_path_ + ": " + mlff::kNoUncertainty;
  } catch (const mlff::Error& caught) {
    problem = caught.what();
  }
  agree(problem, "");

  type_species_.assign(ntypes + 1, -1);
  has_null_ = false;
  bool any = false;
  for (int type = 1; type <= ntypes; ++type) {
    const char* name = arg[2 + type];
    if (std::strcmp(name, "NULL") == 0) {
      has_null_ = true;
      continue;
    }
    type_species_[type] = model_.species_of(mlff::atomic_number_of(name));
    if (type_species_[type] < 0)
      error->all(FLERR, format("pair_style painn: atom type %d is '%s', but %s knows only %s; "
                               "use a model that was trained with it, or NULL",
                               type, name, model_path_.c_str(), model_.element_list().c_str()));
    any = true;
  }
  if (!any)
    error->all(FLERR, "pair_style painn: every atom type is NULL; name at least one element");

  // Under hybrid, types that are left out belong to other styles. Alone, LAMMPS wants all pairs
  // to be set; find_rows() and build_edges() then pass over the atoms.
  const bool hybrid = utils::strmatch(force->pair_style, "^hybrid");
  for (int i = 1; i <= ntypes; ++i)
    for (int j = i; j <= ntypes; ++j)
      setflag[i][j] = !hybrid || (type_species_[i] >= 0 && type_species_[j] >= 0);

  cutoff_ = engine_->cutoff() * units_.length;
  min_distance_ = model_.min_distance * units_.length;
  forward_doubles_ =
      std::max<int>(3, static_cast<int>(evaluator_->max_exchange_bytes() / sizeof(double)));
  comm_forward = forward_doubles_;
  banner_printed_ = false;
}

void PairPaiNN::init_style() {
  if (evaluator_->needs_list()) neighbor->add_request(this, NeighConst::REQ_FULL);
  // hybrid took its sub-styles' sizes in settings(), before the model was known; LAMMPS sizes its
  // buffers by the top-level style, after this call.
  if (force->pair && force->pair != this) {
    force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
    force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
    force->pair->comm_reverse_off = std::max(force->pair->comm_reverse_off, comm_reverse_off);
  }
  neighbor_settings_checked_ = false;
  plan_valid_ = false;
  closeness_reported_ = false;
  uncertainty_reported_ = false;
}

double PairPaiNN::init_one(int i, int j) {
  if (setflag[i][j] == 0) error->all(FLERR, "All pair coeffs are not set");
  setflag[j][i] = setflag[i][j];
  return cutoff_;
}

// Everything that would take pairs out of the neighbour list without a word. Known only once
// neighbour lists exist; the same on all ranks.
void PairPaiNN::check_neighbor_settings() {
  neighbor_settings_checked_ = true;

  const char* kind[] = {"", "1-2", "1-3", "1-4"};
  if (atom->molecular != Atom::ATOMIC && (atom->nbonds > 0 || atom->molecular == Atom::TEMPLATE))
    for (int k = 1; k <= 3; ++k)
      if (neighbor->special_flag[k] == 0)
        error->all(FLERR,
                   format("pair_style painn needs every pair within the cutoff, but special_bonds "
                          "removes %s neighbors; add 'special_bonds lj/coul 1 1 1' (beside a "
                          "classical force field: 1e-100 in place of 0)",
                          kind[k]));

  for (int i = 1; list && list->ijskip && i <= atom->ntypes; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      if (type_species_[i] >= 0 && type_species_[j] >= 0 && list->ijskip[i][j])
        error->all(FLERR,
                   format("pair_style painn needs every pair of its atom types, but pair_coeff %d "
                          "%d gives one to another sub-style; use hybrid/overlay, or NULL in "
                          "painn's pair_coeff",
                          i, j));

  if (some_pairs_are_hidden()) {
    // The device has a neighbour list of its own, without LAMMPS' exclusions.
    if (on_gpu_)
      error->all(FLERR,
                 "pair_style painn: neigh_modify exclude that hides some pairs of an atom is not "
                 "available with device gpu; use device cpu, or exclude the atoms from group all");
    if (comm->me == 0)
      error->warning(FLERR,
                     "neigh_modify exclude hides pairs from pair_style painn: energies are not "
                     "those of the model where excluded atoms are within the cutoff");
  }
  if (neighbor->includegroup && comm->me == 0)
    error->warning(FLERR,
                   "neigh_modify include: atoms outside its group contribute nothing to pair_style "
                   "painn");
}

// Stops all ranks with one line if any rank has a problem, and has rank 0 print one rank's
// warning; true if it did. Of several ranks that speaks whose `distance` is the smallest: of the
// pair that it names, minus the uncertainty that it reports, or 0 for a problem that comes before
// all pairs. Collective.
bool PairPaiNN::agree(const std::string& problem, const std::string& warning, double distance) {
  const double silent = std::numeric_limits<double>::infinity();
  struct {
    double distance;
    int rank;
  } mine[2] = {{problem.empty() ? silent : distance, comm->me},
               {warning.empty() ? silent : distance, comm->me}},
    first[2];
  MPI_Allreduce(mine, first, 2, MPI_DOUBLE_INT, MPI_MINLOC, world);
  const bool stop = first[0].distance < silent;
  if (!stop && !(first[1].distance < silent)) return false;
  const int speaker = stop ? first[0].rank : first[1].rank;

  std::string text = stop ? problem : warning;
  int length = static_cast<int>(text.size());
  MPI_Bcast(&length, 1, MPI_INT, speaker, world);
  text.resize(length);
  MPI_Bcast(&text[0], length, MPI_CHAR, speaker, world);
  text = "pair_style painn: " + text;
  if (stop) error->all(FLERR, text);
  if (comm->me == 0) error->warning(FLERR, text);
  return true;
}

// Once, after the first step, when the traffic is known. Collective.
void PairPaiNN::print_banner() {
  banner_printed_ = true;
  int64_t mine = n_remote_, remote = 0;
  MPI_Allreduce(&mine, &remote, 1, MPI_INT64_T, MPI_SUM, world);
  if (comm->me != 0) return;

  std::string types;
  for (int type = 1; type <= atom->ntypes; ++type) {
    const int species = type_species_[type];
    types += format("%s%d=%s", type == 1 ? "" : " ", type,
                    species < 0 ? "NULL" : mlff::element_symbol(model_.elements[species]).c_str());
  }
  const mlff::TableReport& table = engine_->table_report();
  std::string text = format(
      "pair_style painn: %s, elements %s, %d channels, %d interactions, cutoff %g Angstrom%s\n",
      model_path_.c_str(), model_.element_list().c_str(), static_cast<int>(model_.hidden_dim),
      static_cast<int>(model_.num_interactions), model_.cutoff,
      model_.repulsion == mlff::RepulsionKind::kNone ? "" : ", ZBL");
  if (!model_.caveat().empty()) text += format("  %s\n", model_.caveat().c_str());
  text +=
      format("  types %s; units %s; device %s, precision %s, filters %s\n", types.c_str(),
             update->unit_style, evaluator_->device().c_str(),
             engine_->precision() == mlff::Precision::kFloat64 ? "double" : "single",
             table.tabulated ? format("from a table of %lld intervals (error %.0e)",
                                      static_cast<long long>(table.intervals), table.value_error)
                                   .c_str()
                             : "evaluated exactly");
  if (uncertain_ != Extrapolation::kIgnore)
    text += format(
        "  %s at uncertainties above %.3g %s%s\n",
        uncertain_ == Extrapolation::kStop ? "stops" : "warns", uncertainty_limit(), force_unit(),
        given_limit_ != kAuto
            ? ""
            : format(", of all atoms together above %.3g", frame_uncertainty_limit()).c_str());
  text += format("  %d MPI rank%s x %d thread%s", comm->nprocs, comm->nprocs == 1 ? "" : "s",
                 engine_->num_threads(), engine_->num_threads() == 1 ? "" : "s");
  if (comm->nprocs > 1) {
    const double per_atom = atom->natoms > 0 ? static_cast<double>(remote) / atom->natoms : 0.0;
    text += format(
        ", features of other ranks' atoms exchanged %d times a step: %.0f bytes per "
        "atom and step",
        exchanges_, per_atom * static_cast<double>(exchanged_bytes_per_row_));
  }
  utils::logmesg(lmp, text + "\n");
}

void PairPaiNN::finish() {
  double mine[2] = {compute_seconds_, exchange_seconds_}, sums[2];
  compute_seconds_ = exchange_seconds_ = 0.0;
  MPI_Allreduce(mine, sums, 2, MPI_DOUBLE, MPI_SUM, world);
  if (comm->me == 0 && comm->nprocs > 1 && sums[0] > 0.0)
    utils::logmesg(lmp, format("pair_style painn: %.1f%% of its time exchanging features, waiting "
                               "for other ranks included\n",
                               100.0 * sums[1] / sums[0]));
}

void* PairPaiNN::extract(const char* name, int& dim) {
  dim = 0;
  if (std::strcmp(name, "cutoff") == 0) return &cutoff_;
  if (std::strcmp(name, "min_distance") == 0) return &min_distance_;
  if (std::strcmp(name, "uncertainty_flag") == 0) {
    if (engine_ && !model_.has_uncertainty)
      error->all(FLERR, "pair_style painn: " + model_path_ + ": " + mlff::kNoUncertainty);
    return &uncertainty_flag_;
  }
  return nullptr;
}

double PairPaiNN::memory_usage() {
  double bytes = Pair::memory_usage();
  if (engine_) bytes += static_cast<double>(engine_->memory_bytes());
  auto add = [&](const auto& values) {
    bytes += static_cast<double>(values.capacity() * sizeof(values[0]));
  };
  add(absent_), add(species_), add(rows_), add(row_species_), add(row_tags_), add(owners_),
      add(planned_rows_);
  add(send_indices_), add(send_buffer_), add(list_index_), add(offsets_), add(senders_),
      add(edge_vectors_);
  add(atomic_energies_), add(pair_gradients_), add(totals_), add(uncertainties_);
  add(relative_), add(ghost_offsets_), add(weights_);
  for (const auto& gradients : barycentre_gradients_) add(gradients);
  for (const auto& rows : ghost_adjoints_) add(rows);
  return bytes;
}

// The one function that plugin.cpp calls.
void* mlff_create_pair_painn(void* lmp) {
  Pair* pair = new PairPaiNN(static_cast<LAMMPS*>(lmp));
  return pair;
}
