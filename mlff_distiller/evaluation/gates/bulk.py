"""The gates of crystals, both sides by the same functions, each from its own relaxed cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates import defects, phonons
from mlff_distiller.evaluation.gates import elastic as elastics
from mlff_distiller.evaluation.gates import lattice as lattices
from mlff_distiller.evaluation.gates.cache import Side
from mlff_distiller.evaluation.gates.cells import conventional, primitive, supercell, wide
from mlff_distiller.evaluation.gates.choose import Case
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.gate import Gate

#: Å. Supercells are at least as wide: two usual cutoffs.
WIDTH = 10.0


@dataclass(frozen=True)
class Crystal:
    """A crystal by its smallest cell."""

    small: Atoms
    usual: np.ndarray
    """(3, 3), from the smallest cell to the one that was given, repeats taken off."""

    @classmethod
    def of(cls, structure: Structure) -> Crystal:
        """The crystal that a structure is a cell of."""
        atoms = structure.to_atoms(labels=False)
        small = primitive(atoms)
        return cls(small, conventional(atoms, small))

    def relaxed(self, side: Side) -> Atoms:
        """The smallest cell in the minimum of one side."""
        found = side.measure(lattices.relaxed_cell, self.small)
        return Atoms(self.small.numbers, found["positions"], cell=found["cell"], pbc=True)

    def wide(self, side: Side) -> Atoms:
        """A relaxed supercell, the same of both sides."""
        return supercell(self.relaxed(side), wide(self.small, self.usual, WIDTH))

    def shown(self, side: Side) -> Atoms:
        """The relaxed cell as it was given, for surfaces."""
        return supercell(self.relaxed(side), self.usual)


def lattice(context: Context, case: Case) -> list[Gate]:
    """Lattice parameters, at the highest pressure too, and bulk modulus."""
    crystal, limits = _crystal(case), context.limits
    pressures = [0.0]
    if max(map(abs, context.purpose.pressure)) >= 0.1:
        pressures.append(max(context.purpose.pressure, key=abs))
    rows: list[Gate] = []
    for pressure in pressures:
        arguments = (crystal.small, *([pressure] if pressure else []))
        student, teacher = context.both(lattices.relaxed_cell, *arguments)
        where = f" at {pressure:g} GPa" if pressure else ""
        rows += lattices.gates(student, teacher, crystal.usual, limits, where)
    states = context.both(lattices.equation_of_state, crystal.relaxed)
    return rows + lattices.state_gates(*states, limits)


def elastic(context: Context, case: Case) -> list[Gate]:
    """Independent elastic constants."""
    crystal = _crystal(case)
    found = context.both(elastics.elastic_constants, crystal.relaxed)
    return elastics.gates(*found, context.limits)


def vacancy(context: Context, case: Case) -> list[Gate]:
    """Formation energy."""
    crystal = _crystal(case)
    found = context.both(defects.vacancy_energy, crystal.wide)
    return defects.vacancy_gates(*found, context.limits)


def surface(context: Context, case: Case) -> list[Gate]:
    """Surface energies."""
    crystal = _crystal(case)
    rows: list[Gate] = []
    for miller in context.limits.miller:
        student, teacher = context.both(defects.surface_energy, crystal.shown, miller)
        rows += defects.surface_gates(student, teacher, miller, context.limits)
    return rows


def phonon(context: Context, case: Case) -> list[Gate]:
    """Frequencies at the wave vectors of a supercell."""
    crystal = _crystal(case)
    matrix = wide(crystal.small, crystal.usual, WIDTH).tolist()
    found = context.both(phonons.frequencies, crystal.relaxed, matrix)
    return phonons.gates(*found, context.limits)


def _crystal(case: Case) -> Crystal:
    assert case.structure is not None
    return Crystal.of(case.structure)
