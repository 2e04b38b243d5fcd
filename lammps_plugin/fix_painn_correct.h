// fix painn/correct: dynamics on a teacher's surface, with a call of the teacher every N steps.
//
//   fix ID all painn/correct SOCKET every N [timeout SECONDS]
//
// SOCKET belongs to a server in Python that owns the teacher and the same student as pair_style
// painn (`mlff-distiller correct-server`); rank 0 talks to it, so it runs on the machine of rank 0.
//
// The impulse form of r-RESPA (Tuckerman, Berne, Martyna 1992, doi:10.1063/1.463137) under velocity
// Verlet. With F of the student, D = teacher - student and k(F) the half kick v += dt/2 F/m,
// LAMMPS' step is k(f) drift k(f'), and f' of one step is f of the next. At every N-th step this
// fix adds N D to F, at the others nothing. So between two of them
//
//     k(F + N D)  drift k(F) k(F) drift ... k(F) drift  k(F + N D)
//   = K(D) [ k(F) drift k(F) ] N times K(D)        with K(D): v += (N dt)/2 D/m,
//
// because k(F + N D) = k(F) K(D): both change v alone. That is the reversible outer step of length
// N dt. Positions and velocities after the N-th step are those between two outer steps: energies
// and temperatures count there, and only there. The fix adds to f in post_force(), and does not
// care who integrates: nve, Nose-Hoover and Langevin alike, each with its own part in every inner
// step.
//
// Energy: D's energy, not N times (fix_modify energy no takes it out). Pressure: a barostat of
// Nose and Hoover kicks the volume as well, and needs N times D's virial in the two half kicks of
// an outer step, as the atoms do; what is reported afterwards is the teacher's pressure, with D's
// virial once. So `virial` is N W from post_force() to the end of final_integrate() and in the
// first half of the next step, and W in between, when thermo, dumps and fixes of the end of a step
// look at it. Between outer steps energy and pressure hold D of the last one.
//
// Reduction order: rank 0 sorts the atoms by id, so what the teacher sees does not depend on ranks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/units.h"
#include "fix.h"
#include "teacher_client.h"

namespace LAMMPS_NS {

class PairPaiNN;

class FixPaiNNCorrect : public Fix {
 public:
  FixPaiNNCorrect(LAMMPS* lmp, int narg, char** arg);
  ~FixPaiNNCorrect() override;

  int setmask() override;
  void init() override;
  void setup(int vflag) override;
  void initial_integrate(int vflag) override;
  void post_force(int vflag) override;
  void end_of_step() override;
  void reset_dt() override;

  // f_ID: teacher minus student, energy. f_ID[1..6]: the same of the pressure, xx yy zz xy xz yz.
  // Per atom, three columns: the same of the force. All at outer steps.
  double compute_scalar() override;
  double compute_vector(int n) override;
  double memory_usage() override;

  void write_restart(FILE* file) override;
  void restart(char* state) override;

 private:
  bool is_outer(bigint step) const { return step % every_ == 0; }
  void parse(int narg, char** arg);
  void check_order() const;
  void check_barostats();
  void check_start();
  void advance();
  void add_impulse();
  void show_virial(double factor);
  void gather();
  std::string ask(mlff::Answer& answer);
  void wait_for_rank_0();
  void compare_students(double student_energy);
  void lack_stress();
  void agree(const std::string& problem);

  mlff::UnitStyle units_{1.0, 1.0};
  std::string path_;
  int every_ = 0;
  double timeout_ = 3600.0;
  std::unique_ptr<mlff::TeacherClient> client_;  // on rank 0
  PairPaiNN* pair_ = nullptr;
  bool barostat_ = false;
  bool warned_ = false;  // of output between outer steps

  // state of the run
  bigint last_step_ = -1;  // whose forces were computed last
  double timestep_ = 0.0;  // at that step
  bool impulse_ = false;   // whether these hold N D
  double energy_ = 0.0;    // energy units of the run
  double virial_[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  int nmax_ = 0;

  // on their way; kept, so that a step allocates nothing
  std::vector<double> mine_;             // [nlocal][5]: id, atomic number, position in Angstrom
  std::vector<double> all_;              // [natoms][5], rank 0
  std::vector<int> counts_, starts_;     // of doubles
  std::vector<int64_t> order_;           // [natoms], by id
  std::vector<int32_t> atomic_numbers_;  // [natoms], by id
  std::vector<double> positions_;        // [natoms][3], by id
  std::vector<double> forces_;           // [natoms][3], by id, eV/Angstrom
  std::vector<double> outgoing_;         // [natoms][3], by rank
  std::vector<double> incoming_;         // [nlocal][3]
};

}  // namespace LAMMPS_NS
