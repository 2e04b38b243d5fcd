"""Crystals by the smallest cell that makes them, and supercells of it."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.geometry import get_distances

#: Å. Atoms so near to their place under a translation count as there.
_TOLERANCE = 0.05


def primitive(atoms: Atoms) -> Atoms:
    """The same crystal by its smallest cell, in the same orientation; atoms as they lie there.

    Args:
        atoms: periodic in three directions. A rattled crystal is its own smallest cell.
    """
    atoms = atoms.copy()
    atoms.wrap()
    shifts = _translations(atoms)
    cell = atoms.cell.array
    if len(shifts) == 1:
        return Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True)
    small = _shortest_basis(shifts, cell, len(shifts))
    fractions = atoms.positions @ np.linalg.inv(small)
    kept: list[int] = []
    for i in range(len(atoms)):
        apart = fractions[kept] - fractions[i]
        apart = (apart - np.round(apart)) @ small
        same = atoms.numbers[kept] == atoms.numbers[i]
        if not (same & (np.linalg.norm(apart, axis=1) < 2 * _TOLERANCE)).any():
            kept.append(i)
    result = Atoms(atoms.numbers[kept], atoms.positions[kept], cell=small, pbc=True)
    result.wrap()
    return result


def conventional(atoms: Atoms, small: Atoms) -> np.ndarray:
    """Integer matrix from the smallest cell to the cell that was given, repeats taken off.

    Returns:
        (3, 3); its rows times ``small.cell`` are those of ``atoms.cell``, each divided by the
        largest number that leaves a vector of the lattice.
    """
    inverse = np.linalg.inv(small.cell.array)
    rows = []
    for row in atoms.cell.array:
        for n in range(64, 0, -1):
            steps = row / n @ inverse
            if np.abs((steps - np.round(steps)) @ small.cell.array).max() < _TOLERANCE:
                rows.append(np.round(steps).astype(int))
                break
    return np.array(rows)


def wide(small: Atoms, usual: np.ndarray, width: float) -> np.ndarray:
    """Integer matrix of the supercell with the fewest atoms that is ``width`` Å wide everywhere.

    Args:
        small: smallest cell.
        usual: (3, 3), of :func:`conventional`; multiples of both cells are tried.
        width: Å.
    """
    found = []
    for base in (np.eye(3, dtype=int), usual):
        cell = base @ small.cell.array
        heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        times = np.maximum(1, np.ceil(width / heights - 1e-3)).astype(int)
        matrix = times[:, None] * base
        found.append((abs(round(np.linalg.det(matrix))), matrix))
    return min(found, key=lambda pair: pair[0])[1]


def supercell(small: Atoms, matrix: np.ndarray) -> Atoms:
    """The supercell; atoms of one site of ``small`` follow each other."""
    result = make_supercell(small, matrix, order="atom-major")
    if np.linalg.det(result.cell.array) < 0:  # left-handed cells are refused by engines
        result.set_cell(-result.cell.array)
        result.wrap()
    return result


def _translations(atoms: Atoms) -> np.ndarray:
    """Fractions of the cell by which the crystal can be moved onto itself, zero first."""
    fractions = atoms.get_scaled_positions()
    kinds, counts = np.unique(atoms.numbers, return_counts=True)
    rare = np.flatnonzero(atoms.numbers == kinds[np.argmin(counts)])
    shifts = [np.zeros(3)]
    for k in rare[1:]:
        shift = fractions[k] - fractions[rare[0]]
        if _maps_onto_itself(atoms, shift @ atoms.cell.array):
            shifts.append(shift - np.round(shift))
    return np.array(shifts)


def _maps_onto_itself(atoms: Atoms, shift: np.ndarray) -> bool:
    for z in np.unique(atoms.numbers):
        own = atoms.positions[atoms.numbers == z]
        _, distances = get_distances(own + shift, own, cell=atoms.cell, pbc=True)
        if (distances.min(axis=1) > _TOLERANCE).any():
            return False
    return True


def _shortest_basis(shifts: np.ndarray, cell: np.ndarray, number: int) -> np.ndarray:
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    vectors = ((shifts[:, None] + images).reshape(-1, 3)) @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    vectors = vectors[np.argsort(lengths, kind="stable")]
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 2 * _TOLERANCE][:60]
    volume = abs(np.linalg.det(cell)) / number
    for a, b, c in itertools.combinations(range(len(vectors)), 3):
        basis = vectors[[a, b, c]]
        found = np.linalg.det(basis)
        if abs(abs(found) / volume - 1) < 0.02:
            return basis if found > 0 else -basis
    return cell
