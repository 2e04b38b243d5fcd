"""Energies of vacancies and surfaces of a crystal, relaxed."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates.gate import Gate, absolute, relative
from mlff_distiller.evaluation.gates.relax import relax, with_calculator
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.sampling.defects import make_surface

#: 1 eV/Å^2 in J/m^2
_J_PER_M2 = 16.02176634
_THICKNESS, _VACUUM = 10.0, 12.0  # Å


def vacancy_energy(calculator: Calculator, bulk: Atoms) -> dict[str, Any]:
    """Formation energy of relaxed vacancies at constant volume.

    One atom of each element is taken out of a supercell of its own. Together, in the proportions of
    the formula, these cells have lost one formula unit (Schottky's defect, its parts far apart),
    which the crystal takes up: no chemical potential is needed. Of an element this is the usual
    energy of a vacancy.

    Args:
        calculator: teacher or student.
        bulk: a relaxed supercell.

    Returns:
        ``energy``, eV per vacancy.
    """
    whole = with_calculator(bulk, calculator)
    energy = float(whole.get_potential_energy())
    elements, counts = np.unique(bulk.numbers, return_counts=True)
    units = gcd(*(int(c) for c in counts))
    formula = [int(c) // units for c in counts]
    total = energy / units
    for z, times in zip(elements, formula, strict=True):
        hole = bulk.copy()
        del hole[int(np.flatnonzero(bulk.numbers == z)[0])]
        # Off the symmetric saddle point that forces alone cannot leave.
        hole.rattle(0.01, seed=1)
        relaxed = relax(calculator, hole, fmax=0.02, steps=100)
        total += times * (float(relaxed.get_potential_energy()) - energy)
    return {"energy": total / sum(formula)}


def surface_energy(calculator: Calculator, cell: Atoms, miller: str) -> dict[str, Any]:
    """Energy to cleave the crystal, and after relaxation of the ions.

    The slab is cut through the widest gap between its layers. It has the smallest cell, so that
    reconstructions which need a larger one are not found.

    Args:
        calculator: teacher or student.
        cell: the relaxed crystal, by the cell that ``miller`` refers to.
        miller: of the surface.

    Returns:
        ``unrelaxed`` and ``relaxed``, J/m^2, the mean of both sides.
    """
    # Some teachers know cells that are periodic in all directions alone.
    crystal = Structure.from_atoms(Atoms(cell.numbers, cell.positions, cell=cell.cell, pbc=True))
    slab = make_surface(
        crystal, [int(d) for d in miller], thickness=_THICKNESS, vacuum=_VACUUM, periodic=True
    ).to_atoms()
    inside = float(with_calculator(cell, calculator).get_potential_energy())
    inside *= len(slab) / len(cell)
    cross = np.cross(slab.cell.array[0], slab.cell.array[1])
    area = 2.0 * float(np.linalg.norm(cross))
    cut = float(with_calculator(slab, calculator).get_potential_energy())
    rattled = slab.copy()
    rattled.rattle(0.005, seed=1)
    relaxed = float(relax(calculator, rattled, fmax=0.02, steps=100).get_potential_energy())
    return {
        "unrelaxed": (cut - inside) / area * _J_PER_M2,
        "relaxed": (relaxed - inside) / area * _J_PER_M2,
    }


def vacancy_gates(
    student: dict[str, Any], teacher: dict[str, Any], limits: AcceptanceConfig
) -> list[Gate]:
    """One line; arguments as :func:`vacancy_energy` returns them."""
    return [
        absolute(
            "vacancy",
            "vacancy",
            student["energy"],
            teacher["energy"],
            limits.vacancy,
            "eV",
            advice="label more such cells (purpose.defects, sampling.defects.number)",
        )
    ]


def surface_gates(
    student: dict[str, Any], teacher: dict[str, Any], miller: str, limits: AcceptanceConfig
) -> list[Gate]:
    """Two lines; arguments as :func:`surface_energy` returns them."""
    return [
        relative(
            f"surface ({miller}), {state}",
            "surface",
            student[state],
            teacher[state],
            limits.surface,
            "J/m²",
            advice="label more slabs (purpose.defects, sampling.defects.number)",
        )
        for state in ("unrelaxed", "relaxed")
    ]
