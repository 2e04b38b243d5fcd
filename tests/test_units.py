"""Units against CODATA numbers typed in again, and against ASE's."""

from __future__ import annotations

import pytest
from ase import units as ase_units

from mlff_distiller.errors import InputError
from mlff_distiller.units import (
    ANGSTROM_IN_NM,
    EV_IN_KCAL_PER_MOL,
    EV_IN_KJ_PER_MOL,
    EV_PER_ANGSTROM3_IN_GPA,
    energy_in_ev,
    length_in_angstrom,
)


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("eV", 1.0),
        ("meV", 0.001),
        ("kcal/mol", 0.0433641042418),
        ("kJ/mol", 0.0103642696563),
        ("Hartree", 27.211386246),
        ("Ha", 27.211386246),
        ("Rydberg", 13.605693123),
        ("Ry", 13.605693123),
    ],
)
def test_energies(unit: str, size: float) -> None:
    assert energy_in_ev(unit) == pytest.approx(size, rel=1e-9)
    assert energy_in_ev(f" {unit.upper()} ") == energy_in_ev(unit)


@pytest.mark.parametrize(
    ("unit", "size"),
    [("Ang", 1.0), ("Angstrom", 1.0), ("Å", 1.0), ("Bohr", 0.529177210903), ("nm", 10.0)],
)
def test_lengths(unit: str, size: float) -> None:
    assert length_in_angstrom(unit) == pytest.approx(size, rel=1e-12)


def test_factors_agree_with_ase() -> None:
    # ASE keeps CODATA 2014; the definitions of 2019 moved the last digits.
    assert pytest.approx(ase_units.mol / ase_units.kJ, rel=1e-7) == EV_IN_KJ_PER_MOL
    assert pytest.approx(ase_units.mol / ase_units.kcal, rel=1e-7) == EV_IN_KCAL_PER_MOL
    assert pytest.approx(1 / ase_units.GPa, rel=1e-7) == EV_PER_ANGSTROM3_IN_GPA
    assert ANGSTROM_IN_NM * ase_units.nm == pytest.approx(ase_units.Ang)


def test_unknown_units_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown energy unit 'K'; use one of: ev, mev"):
        energy_in_ev("K")
    with pytest.raises(InputError, match="unknown length unit 'm'"):
        length_in_angstrom("m")
