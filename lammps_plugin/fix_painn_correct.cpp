// Settings, checks and what LAMMPS asks; the work of an outer step is in fix_painn_correct_ask.cpp.
#include "fix_painn_correct.h"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "core/error.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "modify.h"
#include "output.h"
#include "pair_painn.h"
#include "text.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;
using mlff::format;

// In plugin.cpp.
std::string mlff_other_update();

namespace {

constexpr int kGroupAll = 0;

// In restart files.
struct SavedState {
  double every, step, timestep, energy, virial[6];
};

bool any_of(const char* style, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const char* name) { return std::strcmp(style, name) == 0; });
}

bool is_nose_hoover_barostat(const char* style) {
  return std::strncmp(style, "nph", 3) == 0 || std::strncmp(style, "npt", 3) == 0;
}

}  // namespace

FixPaiNNCorrect::FixPaiNNCorrect(LAMMPS* lmp, int narg, char** arg) : Fix(lmp, narg, arg) {
  // As in pair_painn.cpp: what Fix's constructor has set must be where our headers have it.
  const bool same_layout = nevery == 1 && respa_level == -1 && peratom_freq == -1 &&
                           comm_border == 0 && restart_reset == 0 &&
                           centroidstressflag == CENTROID_SAME && datamask_read == 0xffffffffu;
  if (!same_layout) error->all(FLERR, mlff_other_update());

  parse(narg, arg);
  scalar_flag = vector_flag = peratom_flag = 1;
  size_vector = 6;
  size_peratom_cols = 3;
  extscalar = 1;
  extvector = 0;
  global_freq = peratom_freq = every_;
  energy_global_flag = virial_global_flag = 1;
  thermo_energy = thermo_virial = 1;
  restart_global = 1;
  memory->create(array_atom, nmax_ = std::max(1, atom->nmax), 3, "painn/correct:difference");
  std::memset(&array_atom[0][0], 0, sizeof(double) * 3 * nmax_);

  std::string problem;
  if (comm->me == 0) try {
      client_ = std::make_unique<mlff::TeacherClient>(path_, timeout_);
    } catch (const std::exception& caught) {
      problem = caught.what();
    }
  agree(problem);
}

FixPaiNNCorrect::~FixPaiNNCorrect() { memory->destroy(array_atom); }

void FixPaiNNCorrect::parse(int narg, char** arg) {
  try {
    units_ = mlff::lammps_unit_style(update->unit_style);
  } catch (const mlff::InputError& problem) {
    error->all(FLERR, std::string("fix painn/correct: ") + problem.what());
  }
  if (narg < 6)
    error->all(FLERR,
               "fix painn/correct: expected 'fix ID all painn/correct SOCKET every N "
               "[timeout SECONDS]'");
  if (igroup != kGroupAll)
    error->all(FLERR,
               "fix painn/correct: a teacher sees all atoms, so the group must be all; hold atoms "
               "by not integrating them, or by fix setforce");
  path_ = arg[3];
  for (int i = 4; i < narg; i += 2) {
    if (i + 1 >= narg)
      error->all(FLERR, format("fix painn/correct: keyword '%s' lacks its value", arg[i]));
    if (std::strcmp(arg[i], "every") == 0) {
      every_ = utils::inumeric(FLERR, arg[i + 1], false, lmp);
    } else if (std::strcmp(arg[i], "timeout") == 0) {
      timeout_ = utils::numeric(FLERR, arg[i + 1], false, lmp);
      if (!(timeout_ >= 0.0) || !std::isfinite(timeout_))
        error->all(FLERR, format("fix painn/correct: timeout must be >= 0 s (0: wait for ever), "
                                 "got '%s'",
                                 arg[i + 1]));
    } else {
      error->all(FLERR, format("fix painn/correct: unknown keyword '%s'; known are every, timeout",
                               arg[i]));
    }
  }
  if (every_ < 1)
    error->all(FLERR, format("fix painn/correct: 'every N' must be given with N >= 1 steps between "
                             "two calls of the teacher, got %d",
                             every_));
}

int FixPaiNNCorrect::setmask() {
  return FixConst::INITIAL_INTEGRATE | FixConst::POST_FORCE | FixConst::END_OF_STEP;
}

// Before each run: everything that would make its dynamics another than this fix says.
void FixPaiNNCorrect::init() {
  if (update->whichflag == 2)
    error->all(FLERR,
               "fix painn/correct: minimize would see the student alone; minimize before this fix "
               "is defined, or after unfix");
  if (std::strcmp(update->integrate_style, "verlet") != 0)
    error->all(FLERR, format("fix painn/correct: needs run_style verlet, got %s; this fix is the "
                             "outer level of r-RESPA itself",
                             update->integrate_style));
  pair_ = dynamic_cast<PairPaiNN*>(force->pair_match("painn", 1));
  if (!pair_)
    error->all(FLERR,
               "fix painn/correct: needs one pair_style painn, whose student is what the server "
               "subtracts from the teacher");
  if (!atom->tag_enable)
    error->all(FLERR, "fix painn/correct: needs atoms with ids; leave 'atom_modify id no' out");
  check_order();
  check_barostats();
  check_start();
}

// Our force has to be in f before others look at it or change it, and our part of the virial in
// place before a barostat looks at it: LAMMPS calls fixes in the order of their definition.
void FixPaiNNCorrect::check_order() const {
  for (int i = 0; i < modify->nfix && modify->fix[i] != this; ++i) {
    const int when = FixConst::INITIAL_INTEGRATE | FixConst::POST_FORCE;
    const Fix* other = modify->fix[i];
    if (!(modify->fmask[i] & when) || any_of(other->style, {"store/force", "pair"})) continue;
    error->all(FLERR, format("fix painn/correct: must be defined before fix %s (%s), which moves "
                             "atoms or changes forces; put it above that line",
                             other->id, other->style));
  }
}

void FixPaiNNCorrect::check_barostats() {
  barostat_ = false;
  const int any_box = BOX_CHANGE_ANY | BOX_CHANGE_SIZE | BOX_CHANGE_SHAPE;
  for (int i = 0; i < modify->nfix; ++i) {
    const Fix* other = modify->fix[i];
    if (!(other->box_change & any_box) || std::strcmp(other->style, "deform") == 0) continue;
    if (!is_nose_hoover_barostat(other->style))
      error->all(FLERR, format("fix painn/correct: fix %s (%s) would take the student's pressure "
                               "between two calls of the teacher; use fix nph or npt",
                               other->id, other->style));
    barostat_ = true;
  }
  if (barostat_ && !thermo_virial)
    error->all(FLERR,
               "fix painn/correct: a barostat needs the teacher's pressure; leave "
               "'fix_modify virial no' out");
}

// Outer steps are the multiples of N of LAMMPS' own count, so that thermo and dumps every N steps
// show them. A run may begin between two of them only where the one before, or the one that wrote
// the restart file, ended.
void FixPaiNNCorrect::check_start() {
  const bool goes_on = last_step_ == update->ntimestep;
  const long long step = update->ntimestep, until = update->laststep;
  if (!is_outer(update->ntimestep) && !goes_on)
    error->all(FLERR, format("fix painn/correct: a run must begin at a multiple of %d steps, got "
                             "step %lld; use 'reset_timestep 0'",
                             every_, step));
  if (comm->me != 0) return;
  if (last_step_ >= 0 && !goes_on && !is_outer(last_step_))
    error->warning(FLERR, format("fix painn/correct: the run before ended between two outer steps, "
                                 "at step %lld; its last half kick is lost",
                                 static_cast<long long>(last_step_)));
  if (warned_) return;
  if (!is_outer(update->laststep)) {
    error->warning(FLERR, format("fix painn/correct: the run ends at step %lld, between two outer "
                                 "steps; energies and temperatures count at multiples of %d",
                                 until, every_));
    warned_ = true;
  } else if (output->thermo_every % every_ != 0) {
    error->warning(FLERR,
                   format("fix painn/correct: thermo %d prints steps between two outer ones; "
                          "energies, pressures and temperatures count at multiples of %d",
                          output->thermo_every, every_));
    warned_ = true;
  }
}

void FixPaiNNCorrect::setup(int) {
  if (update->ntimestep != update->firststep)
    error->all(FLERR,
               "fix painn/correct: rerun is not available; `mlff-distiller label` evaluates a "
               "teacher on frames");
  advance();
  end_of_step();
}

void FixPaiNNCorrect::post_force(int) {
  if (update->ntimestep == last_step_)
    error->all(FLERR,
               "fix painn/correct: another fix asks for energies within a step (Monte Carlo), "
               "which would be the student's; use one without the other");
  advance();
}

// Forces of a new step.
void FixPaiNNCorrect::advance() {
  last_step_ = update->ntimestep;
  timestep_ = update->dt;
  impulse_ = is_outer(last_step_);
  if (impulse_) add_impulse();
  show_virial(impulse_ ? every_ : 0.0);
}

void FixPaiNNCorrect::initial_integrate(int) { show_virial(impulse_ ? every_ : 0.0); }

void FixPaiNNCorrect::end_of_step() { show_virial(1.0); }

// One rank has it: LAMMPS sums over ranks.
void FixPaiNNCorrect::show_virial(double factor) {
  for (int k = 0; k < 6; ++k)
    virial[k] = comm->me == 0 && factor != 0.0 ? factor * virial_[k] : 0.0;
}

// From `timestep` and fix dt/reset: the two half kicks of an outer step need the same length.
void FixPaiNNCorrect::reset_dt() {
  if (last_step_ == update->ntimestep && !is_outer(last_step_) && update->dt != timestep_)
    error->all(FLERR, format("fix painn/correct: the time step may change at multiples of %d steps "
                             "only, got step %lld",
                             every_, static_cast<long long>(last_step_)));
}

double FixPaiNNCorrect::compute_scalar() { return energy_; }

double FixPaiNNCorrect::compute_vector(int n) {
  return virial_[n] / (domain->xprd * domain->yprd * domain->zprd) * force->nktv2p;
}

double FixPaiNNCorrect::memory_usage() {
  double bytes = 3.0 * sizeof(double) * nmax_;
  auto add = [&](const auto& values) {
    bytes += static_cast<double>(values.capacity() * sizeof(values[0]));
  };
  add(mine_), add(all_), add(counts_), add(starts_), add(order_), add(atomic_numbers_);
  add(positions_), add(forces_), add(outgoing_), add(incoming_);
  return bytes;
}

void FixPaiNNCorrect::write_restart(FILE* file) {
  if (comm->me != 0) return;
  SavedState state = {
      static_cast<double>(every_), static_cast<double>(last_step_), timestep_, energy_, {}};
  std::copy(virial_, virial_ + 6, state.virial);
  const int bytes = sizeof(state);
  std::fwrite(&bytes, sizeof(int), 1, file);
  std::fwrite(&state, bytes, 1, file);
}

void FixPaiNNCorrect::restart(char* bytes) {
  SavedState state;
  std::memcpy(&state, bytes, sizeof(state));
  last_step_ = static_cast<bigint>(state.step);
  const int before = static_cast<int>(state.every);
  if (before != every_ && last_step_ % before != 0)
    error->all(FLERR, format("fix painn/correct: the restart file was written between two outer "
                             "steps of 'every %d', got 'every %d'; go on with the same",
                             before, every_));
  timestep_ = state.timestep;
  energy_ = state.energy;
  std::copy(state.virial, state.virial + 6, virial_);
}

// The one function that plugin.cpp calls.
void* mlff_create_fix_painn_correct(void* lmp, int narg, char** arg) {
  Fix* fix = new FixPaiNNCorrect(static_cast<LAMMPS*>(lmp), narg, arg);
  return fix;
}
