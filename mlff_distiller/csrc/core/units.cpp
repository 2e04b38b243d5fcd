#include "core/units.h"

#include "core/error.h"

namespace mlff {
namespace {

const char* const kSymbols[] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si",
    "P",  "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru",
    "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",
    "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac",
    "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf",
    "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};
static_assert(sizeof(kSymbols) / sizeof(kSymbols[0]) == kNumElements + 1, "one symbol per element");

}  // namespace

UnitStyle lammps_unit_style(const std::string& name) {
  if (name == "metal") return {1.0, 1.0};
  if (name == "real") return {1.0, 1.0 / kKcalPerMolInEv};
  if (name == "si") return {kMeterPerAngstrom, kJoulePerEv};
  if (name == "electron") return {1.0 / kBohrInAngstrom, 1.0 / kHartreeInEv};
  throw InputError("unit style must be metal, real, si or electron, got " + name +
                   "; the model's energies have a physical scale, choose one of these");
}

std::string element_symbol(int atomic_number) {
  if (atomic_number >= 1 && atomic_number <= kNumElements) return kSymbols[atomic_number];
  return "Z" + std::to_string(atomic_number);
}

int atomic_number_of(const std::string& symbol) {
  for (int z = 1; z <= kNumElements; ++z) {
    if (symbol == kSymbols[z]) return z;
  }
  return 0;
}

}  // namespace mlff
