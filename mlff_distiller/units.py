"""Units: eV, Å and amu inside; every conversion lives in this file.

Values are those of CODATA 2018 with the 2019 SI (exact charge, Boltzmann and Avogadro numbers).
The C++ engines take their factors from ``csrc/core/units.h``, which a test compares with these.
"""

from __future__ import annotations

from types import MappingProxyType

from mlff_distiller.errors import InputError

ELEMENTARY_CHARGE = 1.602176634e-19  # C
AVOGADRO = 6.02214076e23  # 1/mol
HARTREE_IN_EV = 27.211386245988
BOHR_IN_ANGSTROM = 0.529177210903
EV_IN_KJ_PER_MOL = ELEMENTARY_CHARGE * AVOGADRO / 1000.0  # 96.48533212...
EV_IN_KCAL_PER_MOL = EV_IN_KJ_PER_MOL / 4.184
EV_PER_ANGSTROM3_IN_GPA = ELEMENTARY_CHARGE * 1e21  # 160.2176634
ANGSTROM_IN_NM = 0.1
GPA_IN_BAR = 1e4

#: 1 unit in eV
ENERGY_UNITS = MappingProxyType(
    {
        "ev": 1.0,
        "mev": 1e-3,
        "kcal/mol": 1.0 / EV_IN_KCAL_PER_MOL,
        "kj/mol": 1.0 / EV_IN_KJ_PER_MOL,
        "hartree": HARTREE_IN_EV,
        "ha": HARTREE_IN_EV,
        "rydberg": HARTREE_IN_EV / 2.0,
        "ry": HARTREE_IN_EV / 2.0,
    }
)

#: 1 unit in Å
LENGTH_UNITS = MappingProxyType(
    {
        "ang": 1.0,
        "angstrom": 1.0,
        "å": 1.0,
        "bohr": BOHR_IN_ANGSTROM,
        "nm": 10.0,
    }
)


def energy_in_ev(unit: str) -> float:
    """Size of one ``unit`` of energy in eV. Raises InputError for an unknown name."""
    return _lookup(ENERGY_UNITS, unit, "energy")


def length_in_angstrom(unit: str) -> float:
    """Size of one ``unit`` of length in Å. Raises InputError for an unknown name."""
    return _lookup(LENGTH_UNITS, unit, "length")


def _lookup(table: MappingProxyType[str, float], unit: str, quantity: str) -> float:
    try:
        return table[unit.strip().lower()]
    except KeyError:
        known = ", ".join(table)
        raise InputError(f"unknown {quantity} unit {unit!r}; use one of: {known}") from None
