"""Relaxation by forces alone: energies of float32 networks are too noisy for line searches."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA


def with_calculator(atoms: Atoms, calculator: Calculator) -> Atoms:
    """A copy without constraints that asks ``calculator``."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.calc = calculator
    return copy


def relax(
    calculator: Calculator,
    atoms: Atoms,
    *,
    cell: bool = False,
    pressure: float = 0.0,
    fmax: float = 0.01,
    steps: int = 80,
) -> Atoms:
    """The nearest minimum.

    Args:
        calculator: of forces and, for cells, stress.
        atoms: where to start; left as it is.
        cell: relax all of the cell, too.
        pressure: GPa, of cells.
        fmax: eV/Å, largest force at which it ends.
        steps: most of them.

    Raises:
        InputError: forces ten times as large are left at the end, or two atoms fused on the way.
    """
    moved = with_calculator(atoms, calculator)
    pulled: Any = (
        FrechetCellFilter(moved, scalar_pressure=pressure / EV_PER_ANGSTROM3_IN_GPA)
        if cell
        else moved
    )
    volume = moved.get_volume() if cell else 0.0
    minimiser = BFGS(pulled, logfile=None, maxstep=0.1)
    for _ in minimiser.irun(fmax=fmax, steps=steps):
        if cell and not 0.3 * volume < moved.get_volume() < 3.0 * volume:
            raise InputError(
                f"{atoms.get_chemical_formula()} collapses or evaporates on relaxation"
            )
    left = float(np.linalg.norm(pulled.get_forces(), axis=1).max())
    if not left <= 10.0 * fmax:
        raise InputError(
            f"{atoms.get_chemical_formula()} does not relax: a force of {left:.2g} eV/Å is left "
            f"after {steps} steps"
        )
    return moved
