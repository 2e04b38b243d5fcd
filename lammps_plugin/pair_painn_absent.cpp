// Which of LAMMPS' atoms the model sees.
//
// A pair potential gives an atom without pairs no energy. A student does: the reference energy of
// its element and the readout of its embedding. So atoms that LAMMPS takes out of all pairs must be
// left out by name. fix gcmc and its like rely on it: the atom of a trial deletion is put into a
// group that is excluded from group all, and the energy taken must be that of the others alone.
//
// What counts are the settings, not which pairs happen to exist: a rigid framework whose own pairs
// are excluded must not vanish while no gas atom is there.
#include <algorithm>

#include "atom.h"
#include "group.h"
#include "neighbor.h"
#include "pair_painn.h"

using namespace LAMMPS_NS;

namespace {
constexpr int kGroupAll = 0;
}  // namespace

bool PairPaiNN::excluded_from_all_types(int type) const {
  if (!neighbor->nex_type) return false;
  for (int other = 1; other <= atom->ntypes; ++other)
    if (!neighbor->ex_type[type][other]) return false;
  return true;
}

// Whether neigh_modify exclude hides pairs of atoms that keep others, so that what is computed is
// not the model's energy of any set of atoms.
bool PairPaiNN::some_pairs_are_hidden() const {
  if (neighbor->nex_mol) return true;
  for (int k = 0; k < neighbor->nex_group; ++k)
    if (neighbor->ex1_group[k] != kGroupAll && neighbor->ex2_group[k] != kGroupAll) return true;
  auto seen = [&](int type) { return type_species_[type] >= 0 && !excluded_from_all_types(type); };
  for (int k = 0; k < neighbor->nex_type; ++k)
    if (seen(neighbor->ex1_type[k]) && seen(neighbor->ex2_type[k])) return true;
  return false;
}

// Atoms that are excluded from group all or from every type, or are outside the group of
// neigh_modify include. Ghosts as well: borders() brings their group masks.
void PairPaiNN::find_absent() {
  const int n_all = atom->nlocal + atom->nghost;
  absent_.assign(static_cast<size_t>(std::max(1, n_all)), 0);

  int absent_bits = 0;
  for (int k = 0; k < neighbor->nex_group; ++k) {
    if (neighbor->ex1_group[k] == kGroupAll) absent_bits |= neighbor->ex2_bit[k];
    if (neighbor->ex2_group[k] == kGroupAll) absent_bits |= neighbor->ex1_bit[k];
  }
  if (absent_bits)
    for (int i = 0; i < n_all; ++i)
      if (atom->mask[i] & absent_bits) absent_[i] = 1;

  if (neighbor->nex_type)
    for (int i = 0; i < n_all; ++i)
      if (excluded_from_all_types(atom->type[i])) absent_[i] = 1;

  if (neighbor->includegroup) {
    const int included = group->bitmask[neighbor->includegroup];
    for (int i = 0; i < n_all; ++i)
      if (!(atom->mask[i] & included)) absent_[i] = 1;
  }
}

// Sets species_ and returns whether any changed. Types are read in each step (they may be
// set between two builds of lists), groups and exclusions where LAMMPS reads them: at a build.
bool PairPaiNN::find_species(bool new_list) {
  if (new_list) find_absent();
  const int n_all = atom->nlocal + atom->nghost;
  species_.resize(static_cast<size_t>(std::max(1, n_all)));
  bool changed = false;
  for (int i = 0; i < n_all; ++i) {
    const int32_t species = absent_[i] ? -1 : type_species_[atom->type[i]];
    changed = changed || species != species_[i];
    species_[i] = species;
  }
  return changed;
}
