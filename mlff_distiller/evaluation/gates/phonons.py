"""Phonon frequencies by finite displacements in a supercell.

Force constants are those of the supercell, images folded onto each other, so frequencies are
compared where they are exact: at the wave vectors whose waves fit into the supercell.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from mlff_distiller.evaluation.gates.cells import supercell
from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.relax import with_calculator
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig

KIND = "phonons"
#: sqrt(eV/Å^2/amu) in THz
_ROOT_IN_THZ = units.s * 1e-12 / (2.0 * np.pi)
_STEP = 0.02  # Å


def frequencies(calculator: Calculator, small: Atoms, matrix: list[list[int]]) -> dict[str, Any]:
    """Frequencies at all wave vectors that fit into the supercell.

    Every atom of the smallest cell is moved by ±0.02 Å along x, y and z; the sum rule of
    translations is imposed.

    Args:
        calculator: teacher or student.
        small: the smallest cell, n atoms, relaxed by the same calculator.
        matrix: (3, 3) integers, from it to the supercell.

    Returns:
        ``frequencies``: (q, 3 n), THz, ascending at each wave vector, imaginary ones negative.
    """
    cell = small.cell.array
    large = supercell(small, np.array(matrix))
    sites, steps = _sites(large, small)
    first = [int(np.flatnonzero(sites == s)[0]) for s in range(len(small))]
    constants = np.array([_row(calculator, large, i) for i in first])  # (n, 3, N, 3)
    for s, i in enumerate(first):
        constants[s, :, i] -= constants[s].sum(axis=1)
    masses = np.sqrt(np.outer(small.get_masses(), small.get_masses()))
    found = []
    for q in _wave_vectors(large.cell.array @ np.linalg.inv(cell)):
        dynamical = np.zeros((len(small), 3, len(small), 3), dtype=complex)
        for s, i in enumerate(first):
            phases = np.exp(2j * np.pi * (steps - steps[i]) @ q)
            for t in range(len(small)):
                own = sites == t
                dynamical[s, :, t] = np.einsum("ajb,j->ab", constants[s][:, own], phases[own])
        dynamical /= masses[:, None, :, None]
        square = dynamical.reshape(3 * len(small), 3 * len(small))
        values = np.linalg.eigvalsh(0.5 * (square + square.conj().T))
        found.append(np.sign(values) * np.sqrt(np.abs(values)) * _ROOT_IN_THZ)
    return {"frequencies": np.round(found, 5).tolist()}


def gates(student: dict[str, Any], teacher: dict[str, Any], limits: AcceptanceConfig) -> list[Gate]:
    """The mean difference, band by band, and imaginary frequencies that the teacher has not."""
    own, other = (np.array(side["frequencies"]) for side in (student, teacher))
    advice = "label rattled crystals of small displacements (sampling.rattle_stdev)"
    lowest, allowed = float(own.min()), min(0.0, float(other.min()))
    return [
        Gate(
            "phonon frequencies",
            KIND,
            float(np.abs(own - other).mean()),
            limits.phonon_mae,
            "THz",
            advice=advice,
            details={"figure": "phonons", "student": student, "teacher": teacher},
        ),
        Gate(
            "lowest phonon",
            KIND,
            max(0.0, allowed - lowest),
            limits.phonon_imaginary,
            "THz",
            lowest,
            float(other.min()),
            "THz",
            reason="imaginary where the teacher's is not" if lowest < allowed - 0.01 else "",
            advice=advice,
        ),
    ]


def _row(calculator: Calculator, large: Atoms, index: int) -> np.ndarray:
    """(3, N, 3) force constants of one atom, eV/Å^2."""
    rows = []
    for axis in range(3):
        forces = []
        for sign in (1, -1):
            moved = with_calculator(large, calculator)
            moved.positions[index, axis] += sign * _STEP
            forces.append(np.array(moved.get_forces()))
        rows.append((forces[1] - forces[0]) / (2.0 * _STEP))
    return np.array(rows)


def _sites(large: Atoms, small: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Of each atom of the supercell: its atom in the smallest cell, and the lattice steps to it."""
    fractions = large.positions @ np.linalg.inv(small.cell.array)
    apart = fractions[:, None] - small.get_scaled_positions(wrap=False)
    steps = np.round(apart)
    error = np.abs(apart - steps).max(axis=2)
    error[large.numbers[:, None] != small.numbers] = np.inf
    sites = error.argmin(axis=1)
    return sites, steps[np.arange(len(large)), sites]


def _wave_vectors(matrix: np.ndarray) -> np.ndarray:
    """Wave vectors, in the reciprocal of the smallest cell, that the supercell holds; (q, 3)."""
    matrix = np.round(matrix)
    number = abs(round(np.linalg.det(matrix)))
    inverse = np.linalg.inv(matrix)
    reach = int(np.abs(matrix).sum(axis=1).max())
    found: dict[tuple[float, ...], np.ndarray] = {}
    for k in itertools.product(range(reach + 1), repeat=3):
        q = inverse @ k
        q -= np.floor(q + 1e-9)
        found.setdefault(tuple(np.round(q, 6)), q)
        if len(found) == number:
            break
    return np.array(list(found.values()))
