"""Elastic constants by finite strains of the relaxed crystal, its ions relaxed in each."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.relax import relax, with_calculator
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

KIND = "elastic"
_STRAIN = 0.01
#: Constants of one class can be equal by symmetry: C11 C22 C33, C12 C13 C23, C44 C55 C66.
_CLASSES = (((0, 0), (1, 1), (2, 2)), ((0, 1), (0, 2), (1, 2)), ((3, 3), (4, 4), (5, 5)))


def elastic_constants(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """C_ij in Voigt's notation (xx, yy, zz, yz, xz, xy), GPa.

    Central differences of the stress over six strains of ±1 %, symmetrised.

    Args:
        calculator: teacher or student.
        atoms: the crystal, relaxed by the same calculator.

    Returns:
        ``constants``: (6, 6).
    """
    columns = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        # Engineering strain: a shear of 1 % is 0.5 % in both places.
        strain[i, j] = strain[j, i] = _STRAIN if i == j else 0.5 * _STRAIN
        plus, minus = (_stress(calculator, atoms, sign * strain) for sign in (1, -1))
        columns.append((plus - minus) / (2.0 * _STRAIN))
    constants = np.array(columns).T * EV_PER_ANGSTROM3_IN_GPA
    return {"constants": (0.5 * (constants + constants.T)).tolist()}


def gates(student: dict[str, Any], teacher: dict[str, Any], limits: AcceptanceConfig) -> list[Gate]:
    """One line for each constant that is not equal to another by symmetry.

    Those that the teacher gives as equal (0.5 % of its largest) are averaged; those outside of the
    three classes (C14, C16 ...) stand for themselves where the teacher's or the student's is more
    than 5 % of the largest.
    """
    own, other = (np.array(side["constants"]) for side in (student, teacher))
    largest = float(np.abs(np.diag(other)).max())
    rows = []
    for group in _independent(own, other, largest):
        s, t = (float(np.mean([c[place] for place in group])) for c in (own, other))
        i, j = group[0]
        scale = max(abs(t), 0.1 * largest)
        rows.append(
            Gate(
                f"elastic C{i + 1}{j + 1}",
                KIND,
                100.0 * abs(s - t) / scale,
                limits.elastic,
                "%",
                s,
                t,
                "GPa",
                advice="label strained cells, sheared ones too, with their stress",
            )
        )
    return rows


def _independent(own: np.ndarray, other: np.ndarray, largest: float) -> list[list[tuple[int, int]]]:
    groups: list[list[tuple[int, int]]] = []
    for places in _CLASSES:
        ours: list[list[tuple[int, int]]] = []
        for place in places:
            same = [g for g in ours if abs(other[g[0]] - other[place]) < 0.005 * largest]
            if same:
                same[0].append(place)
            else:
                ours.append([place])
        groups += ours
    known = {pair for places in _CLASSES for pair in places}
    for i, j in itertools.combinations_with_replacement(range(6), 2):
        size = max(abs(other[i, j]), abs(own[i, j]))
        if (i, j) not in known and size > 0.05 * largest:
            groups.append([(i, j)])
    return groups


def _stress(calculator: Calculator, atoms: Atoms, strain: np.ndarray) -> np.ndarray:
    copy = atoms.copy()
    copy.set_cell(copy.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    if len(copy) > 1:
        copy = relax(calculator, copy, fmax=0.002)
    else:
        copy = with_calculator(copy, calculator)
    return np.asarray(copy.get_stress())
