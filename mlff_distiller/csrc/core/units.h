// Unit conversions and element symbols; the engine itself knows eV and Angstrom only.
#pragma once

#include <string>

namespace mlff {

// CODATA 2018.
constexpr double kHartreeInEv = 27.211386245988;
constexpr double kBohrInAngstrom = 0.529177210903;
constexpr double kKcalPerMolInEv = 4184.0 / (6.02214076e23 * 1.602176634e-19);
constexpr double kKjPerMolInEv = kKcalPerMolInEv / 4.184;
constexpr double kAngstromPerNm = 10.0;
constexpr double kJoulePerEv = 1.602176634e-19;
constexpr double kMeterPerAngstrom = 1e-10;
// Coulomb constant e^2/(4 pi eps0), as used by ZBL.
constexpr double kCoulombEvAngstrom = 14.399645;

// The heaviest element, Og.
constexpr int kNumElements = 118;

// Factors that turn our units into those of a LAMMPS unit style:
// x_lammps = x_ours * length, E_lammps = E_ours * energy.
struct UnitStyle {
  double length;
  double energy;
};

// Conversion of the LAMMPS unit style `name`: metal, real, si, electron. Throws InputError for
// styles without a physical scale (lj) or unknown ones.
UnitStyle lammps_unit_style(const std::string& name);

// "H" for 1 ... "Og" for 118; "Z<n>" outside.
std::string element_symbol(int atomic_number);
// 1 for "H" ...; 0 if there is no such element.
int atomic_number_of(const std::string& symbol);

}  // namespace mlff
