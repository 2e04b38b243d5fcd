#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "cuda/potential.h"
#include "cuda/sorted_atoms.h"

namespace mlff {
namespace gpu {

struct Potential::State {
  State(ModelFile file, const SystemOptions& options)
      : model(std::move(file)), system(model, options), skin(options.skin) {}

  ModelFile model;
  System system;
  double skin;
  bool known = false;  // atoms are those of the system
  SortedAtoms atoms;
  std::vector<double> sorted;
};

Potential::Potential(const std::string& path, const SystemOptions& options)
    : state_(std::make_unique<State>(read_model_file(path), options)) {}
Potential::~Potential() = default;
const ModelFile& Potential::model() const { return state_->model; }
const System& Potential::system() const { return state_->system; }
double Potential::skin() const { return state_->skin; }
const TableReport& Potential::table_report() const { return system().table_report(); }
int64_t Potential::num_builds() const { return system().num_builds(); }
int64_t Potential::num_edges() const { return system().num_edges(); }
size_t Potential::memory_bytes() const { return system().memory_bytes(); }

void Potential::compute(int64_t n, const int64_t* atomic_numbers, const double* positions,
                        const double* cell, const std::array<bool, 3>& pbc, PotentialResult& result,
                        unsigned outputs) {
  State& s = *state_;
  const bool uncertain = (outputs & kUncertainties) != 0;
  if (uncertain && !s.model.has_uncertainty) throw InputError(kNoUncertainty);
  const std::vector<int64_t>&numbers = s.atoms.numbers, &order = s.atoms.order();
  const bool same = s.known && static_cast<int64_t>(numbers.size()) == n &&
                    std::equal(atomic_numbers, atomic_numbers + n, numbers.begin());
  if (!same) {
    s.known = false;
    s.atoms.set(s.model, n, atomic_numbers, positions, cell, pbc, s.model.cutoff + s.skin);
  }
  s.sorted.resize(static_cast<size_t>(3 * n));
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(&s.sorted[static_cast<size_t>(3 * i)],
                positions + 3 * order[static_cast<size_t>(i)], 3 * sizeof(double));
  }
  StepInput input;
  input.n_local = input.n_rows = n;
  input.species = s.atoms.species.data();
  input.positions = s.sorted.data();
  input.cell = cell;
  input.pbc = pbc;
  input.new_atoms = !same;
  input.names = order.data();
  input.atom_virials = (outputs & kAtomVirials) != 0;
  input.forces = input.atom_virials || (outputs & kForces) != 0;
  const StepResult* step = nullptr;
  try {
    step = &s.system.compute(input);
  } catch (const InputError&) {
    check_atoms(s.model, n, atomic_numbers, positions);  // the caller's numbering, where it applies
    throw;
  }
  s.known = true;
  const double* uncertainties = uncertain ? s.system.uncertainties() : nullptr;

  result.energy = step->energy;
  result.virial = step->virial;
  result.energies.resize(static_cast<size_t>(n));
  result.forces.resize(static_cast<size_t>(input.forces ? 3 * n : 0));
  result.atom_virials.resize(static_cast<size_t>(input.atom_virials ? 9 * n : 0));
  result.uncertainties.resize(static_cast<size_t>(uncertain ? n : 0));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t to = order[static_cast<size_t>(i)];
    if (uncertain) result.uncertainties[static_cast<size_t>(to)] = uncertainties[i];
    result.energies[static_cast<size_t>(to)] = step->energies[i];
    if (input.forces) {
      std::memcpy(&result.forces[static_cast<size_t>(3 * to)], step->forces + 3 * i,
                  3 * sizeof(double));
    }
    if (input.atom_virials) {
      std::memcpy(&result.atom_virials[static_cast<size_t>(9 * to)], step->atom_virials + 9 * i,
                  9 * sizeof(double));
    }
  }
}

}  // namespace gpu
}  // namespace mlff
