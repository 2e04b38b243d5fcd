// One outer step of fix painn/correct: positions to rank 0, the question, the impulse back.
//
// Every rank makes every call of MPI, also without atoms, and a failure on rank 0 is told to all
// before anybody goes on: all ranks stop with one line, none hangs.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "fix_painn_correct.h"
#include "memory.h"
#include "pair_painn.h"
#include "text.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;
using mlff::format;

namespace {

// Of an atom on its way: id (exact up to 2^53), atomic number, position.
constexpr int kWidth = 5;
// Students agree within this, or they are not the same: rounding in single precision and the
// tables of filters make about 1e-6 eV per atom.
constexpr double kSameEnergy = 1e-4, kSameEnergyPerAtom = 2e-5;
constexpr int kTagGo = 7301;

}  // namespace

// Adds N D to the forces, and keeps D.
void FixPaiNNCorrect::add_impulse() {
  gather();
  double numbers[9] = {0.0};  // energy, energy of the student, virial, whether there is one
  std::string problem;
  if (comm->me == 0) {
    mlff::Answer answer{};
    problem = ask(answer);
    numbers[0] = answer.energy;
    numbers[1] = answer.student_energy;
    std::copy(answer.virial, answer.virial + 6, numbers + 2);
    numbers[8] = answer.has_virial ? 1.0 : 0.0;
  }
  wait_for_rank_0();
  agree(problem);
  MPI_Bcast(numbers, 9, MPI_DOUBLE, 0, world);
  compare_students(numbers[1]);

  energy_ = numbers[0] * units_.energy;
  for (int k = 0; k < 6; ++k) virial_[k] = numbers[2 + k] * units_.energy;
  if (numbers[8] == 0.0) lack_stress();

  const int nlocal = atom->nlocal;
  incoming_.resize(static_cast<size_t>(3) * nlocal);
  std::vector<int>& counts = counts_;
  for (int& count : counts) count = count / kWidth * 3;
  for (int& start : starts_) start = start / kWidth * 3;
  MPI_Scatterv(outgoing_.data(), counts.data(), starts_.data(), MPI_DOUBLE, incoming_.data(),
               3 * nlocal, MPI_DOUBLE, 0, world);
  if (atom->nmax > nmax_) {
    nmax_ = atom->nmax;
    memory->grow(array_atom, nmax_, 3, "painn/correct:difference");
  }
  const double unit = units_.energy / units_.length;
  double** f = atom->f;
  for (int i = 0; i < nlocal; ++i)
    for (int d = 0; d < 3; ++d) {
      array_atom[i][d] = incoming_[3 * static_cast<size_t>(i) + d] * unit;
      f[i][d] += every_ * array_atom[i][d];
    }
}

// All atoms to rank 0, with positions as if they had never crossed a boundary: the teacher sees a
// trajectory without jumps.
void FixPaiNNCorrect::gather() {
  const int nlocal = atom->nlocal;
  mine_.resize(static_cast<size_t>(kWidth) * nlocal);
  for (int i = 0; i < nlocal; ++i) {
    double* row = &mine_[static_cast<size_t>(kWidth) * i];
    row[0] = static_cast<double>(atom->tag[i]);
    row[1] = pair_->atomic_number(atom->type[i]);
    domain->unmap(atom->x[i], atom->image[i], row + 2);
    for (int d = 2; d < kWidth; ++d) row[d] /= units_.length;
  }
  const bool first = comm->me == 0;
  int count = kWidth * nlocal;
  counts_.assign(first ? comm->nprocs : 1, 0);
  starts_.assign(counts_.size(), 0);
  MPI_Gather(&count, 1, MPI_INT, counts_.data(), 1, MPI_INT, 0, world);
  if (first) {
    for (size_t rank = 1; rank < counts_.size(); ++rank)
      starts_[rank] = starts_[rank - 1] + counts_[rank - 1];
    all_.resize(static_cast<size_t>(starts_.back()) + counts_.back());
  }
  MPI_Gatherv(mine_.data(), count, MPI_DOUBLE, all_.data(), counts_.data(), starts_.data(),
              MPI_DOUBLE, 0, world);
}

// On rank 0: fills outgoing_; what went wrong, or nothing.
std::string FixPaiNNCorrect::ask(mlff::Answer& answer) {
  const auto count = static_cast<int64_t>(all_.size() / kWidth);
  auto row = [&](int64_t i) { return &all_[static_cast<size_t>(kWidth * i)]; };
  order_.resize(static_cast<size_t>(count));
  std::iota(order_.begin(), order_.end(), int64_t{0});
  std::sort(order_.begin(), order_.end(),
            [&](int64_t a, int64_t b) { return row(a)[0] < row(b)[0]; });
  atomic_numbers_.resize(order_.size());
  positions_.resize(3 * order_.size());
  for (size_t k = 0; k < order_.size(); ++k) {
    const double* from = row(order_[k]);
    atomic_numbers_[k] = static_cast<int32_t>(from[1]);
    std::copy(from + 2, from + kWidth, &positions_[3 * k]);
    if (atomic_numbers_[k] == 0)
      return format(
          "atom %.0f is of a type that pair_coeff of painn leaves out (NULL); the "
          "teacher sees all atoms, so name an element for each type",
          from[0]);
  }

  mlff::Question question{};
  question.step = update->ntimestep;
  for (int d = 0; d < 3; ++d) question.periodic |= domain->periodicity[d] ? 1u << d : 0u;
  const double cell[3][3] = {{domain->xprd, 0.0, 0.0},
                             {domain->xy, domain->yprd, 0.0},
                             {domain->xz, domain->yz, domain->zprd}};
  for (int i = 0; i < 3; ++i)
    for (int d = 0; d < 3; ++d) question.cell[i][d] = cell[i][d] / units_.length;
  std::string told;
  try {
    answer = client_->ask(question, atomic_numbers_, positions_, forces_, told);
  } catch (const std::exception& caught) {
    return caught.what();
  }
  if (!told.empty()) utils::logmesg(lmp, "fix painn/correct: " + told + "\n");
  const bool finite = std::isfinite(answer.energy) &&
                      std::all_of(forces_.begin(), forces_.end(),
                                  [](double value) { return std::isfinite(value); });
  if (!finite) return "the server sent energies or forces that are not finite";
  outgoing_.resize(forces_.size());
  for (size_t k = 0; k < order_.size(); ++k)
    std::copy(&forces_[3 * k], &forces_[3 * k] + 3, &outgoing_[3 * static_cast<size_t>(order_[k])]);
  return "";
}

// Ranks that wait for a message of MPI do so in a busy loop, and would take the cores away from
// the teacher: here they sleep until rank 0 has its answer.
void FixPaiNNCorrect::wait_for_rank_0() {
#if MLFF_LAMMPS_MPI
  int go = 0;
  if (comm->me == 0) {
    for (int rank = 1; rank < comm->nprocs; ++rank) MPI_Send(&go, 1, MPI_INT, rank, kTagGo, world);
    return;
  }
  MPI_Request request;
  MPI_Irecv(&go, 1, MPI_INT, 0, kTagGo, world, &request);
  int done = 0;
  std::chrono::microseconds pause(20);
  MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  while (!done) {
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::microseconds(1000));
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  }
#endif
}

// The server subtracts its student, the pair style adds its own: they must be one. The energy
// tells, wherever LAMMPS tallied it (always in the first step of a run).
void FixPaiNNCorrect::compare_students(double student_energy) {
  if (update->eflag_global != update->ntimestep) return;
  double mine = pair_->eng_vdwl, sum = 0.0;
  MPI_Allreduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, world);
  sum /= units_.energy;
  const double limit = kSameEnergy + kSameEnergyPerAtom * static_cast<double>(atom->natoms);
  if (std::abs(sum - student_energy) <= limit) return;
  error->all(FLERR,
             format("fix painn/correct: step %lld: the server's student has %.6f eV, pair_style "
                    "painn %.6f eV; start the server with the model of pair_coeff, and keep "
                    "all atoms in both",
                    static_cast<long long>(update->ntimestep), student_energy, sum));
}

// Energies and forces do without; a pressure without the teacher's part must not look like one.
void FixPaiNNCorrect::lack_stress() {
  if (barostat_)
    error->all(FLERR,
               "fix painn/correct: the teacher has no stress for this system, which a "
               "barostat needs; use NVE or NVT");
  std::fill(virial_, virial_ + 6, std::nan(""));
}

// Stops all ranks with one line if rank 0 has a problem. Collective.
void FixPaiNNCorrect::agree(const std::string& problem) {
  int length = static_cast<int>(problem.size());
  MPI_Bcast(&length, 1, MPI_INT, 0, world);
  if (length == 0) return;
  std::string text = problem;
  text.resize(static_cast<size_t>(length));
  MPI_Bcast(&text[0], length, MPI_CHAR, 0, world);
  error->all(FLERR, "fix painn/correct: " + text);
}
