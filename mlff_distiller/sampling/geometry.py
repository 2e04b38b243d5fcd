"""Geometry that every kind of sampling needs: close contacts, supercells, strain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from scipy.spatial import cKDTree

from mlff_distiller.data.structure import Structure, complete_cell


def closest_ratio(structure: Structure) -> float:
    """Smallest distance of a pair, as a fraction of the sum of its covalent radii.

    Pairs further apart than that sum do not count: the result is then 1.
    """
    radii = covalent_radii[structure.atomic_numbers]
    atoms = structure.to_atoms(labels=False)
    i, j, d = neighbor_list("ijd", atoms, 2.0 * float(radii.max()))
    return float(min(np.min(d / (radii[i] + radii[j]), initial=1.0), 1.0))


def supercell(
    structure: Structure, repeats: Sequence[int], cutoff: float | None = None
) -> Structure:
    """``repeats`` copies along the periodic vectors of the cell; labels and momenta are dropped.

    Args:
        structure: left as it is.
        repeats: three numbers; 0 for as many as make the cell wider than two cutoffs.
        cutoff: Å; None for none, where 0 means 1.
    """
    enough = np.ones(3)
    if cutoff is not None and structure.pbc.any():
        enough = np.ceil(2.0 * cutoff / _widths(structure))
    times = [
        int(n or least) if periodic else 1
        for n, least, periodic in zip(repeats, enough, structure.pbc, strict=True)
    ]
    if times == [1, 1, 1]:
        return structure
    shifts = np.indices(times).reshape(3, -1).T @ structure.cell  # (copies, 3)
    copies = len(shifts)
    fixed = structure.fixed
    return replace(
        structure,
        atomic_numbers=np.tile(structure.atomic_numbers, copies),
        positions=(shifts[:, None] + structure.positions).reshape(-1, 3),
        cell=structure.cell * np.array(times)[:, None],
        fixed=None if fixed is None else np.tile(fixed, (copies, 1)),
        energy=None,
        forces=None,
        stress=None,
        momenta=None,
    )


def unlabelled(structure: Structure, **changes: Any) -> Structure:
    """A copy with other fields, without labels and momenta."""
    bare = {"energy": None, "forces": None, "stress": None, "momenta": None}
    return replace(structure, **{**bare, **changes})


def smallest_repeat(structure: Structure, tolerance: float = 1e-3) -> tuple[Structure, list[int]]:
    """The cell of which a periodic structure is a supercell along its own vectors, and how often.

    A 2 x 2 x 2 supercell of a cubic cell gives that cubic cell, so that Miller indices keep the
    meaning that they have for it. With held atoms it is the structure itself.

    Args:
        structure: periodic in three directions.
        tolerance: Å, by which copies of an atom may differ.

    Returns:
        the cell, and the repeats along each vector.
    """
    if structure.fixed is not None:
        return structure, [1, 1, 1]
    repeats = []
    counts = np.unique(structure.atomic_numbers, return_counts=True)[1]
    for axis in range(3):
        most = int(np.gcd.reduce(counts))
        fits = (
            n for n in range(most, 1, -1)
            if most % n == 0 and is_translation(structure, structure.cell[axis] / n, tolerance)
        )  # fmt: skip
        repeats.append(next(fits, 1))
    if repeats == [1, 1, 1]:
        return structure, repeats
    cell = structure.cell / np.array(repeats)[:, None]
    # The corner must not lie on atoms: rounding would put copies of one on both sides of it.
    fractional = np.linalg.solve(cell.T, structure.positions.T).T
    origin = fractional.min(axis=0) - 1e-2
    inside = np.all((fractional - origin) % np.array(repeats) < 1.0, axis=1)
    whole = unlabelled(
        structure,
        atomic_numbers=structure.atomic_numbers[inside],
        positions=structure.positions[inside],
        cell=cell,
    )
    if len(whole) * int(np.prod(repeats)) != len(structure):
        return structure, [1, 1, 1]
    return whole, repeats


def is_translation(structure: Structure, vector: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Whether a periodic structure is the same after all atoms are moved by ``vector``, Å."""
    inverse = np.linalg.inv(structure.cell)
    sites = _wrapped(structure.positions @ inverse)
    moved = _wrapped((structure.positions + vector) @ inverse)
    _, nearest = cKDTree(sites, boxsize=1.0).query(moved)
    if np.any(structure.atomic_numbers[nearest] != structure.atomic_numbers):
        return False
    apart = moved - sites[nearest]
    apart = (apart - np.round(apart)) @ structure.cell
    return float(np.linalg.norm(apart, axis=1).max()) <= tolerance


def _wrapped(fractional: np.ndarray) -> np.ndarray:
    inside = fractional % 1.0
    inside[inside >= 1.0] = 0.0  # the rest of a tiny negative number is rounded to 1
    return inside


def roomy_cell(structure: Structure, max_atoms: int, axes: Sequence[int] = (0, 1, 2)) -> Structure:
    """The supercell of at most ``max_atoms`` atoms that is widest where it is narrowest.

    Of several, that with the fewest atoms; ``structure`` itself if it has more atoms already.

    Args:
        structure: repeated along its periodic directions.
        max_atoms: at most.
        axes: vectors that may be repeated; the widths along others do not count.
    """
    inverse = np.linalg.inv(complete_cell(structure.cell))
    free = structure.pbc & np.isin(np.arange(3), axes)
    widths = np.where(free, 1.0 / np.linalg.norm(inverse, axis=0), np.inf)
    most = max(1, max_atoms // len(structure))
    fitting = [
        (a, b, c)
        for a in (range(1, most + 1) if free[0] else [1])
        for b in (range(1, most // a + 1) if free[1] else [1])
        for c in (range(1, most // (a * b) + 1) if free[2] else [1])
    ]
    best = max(fitting, key=lambda r: (round(float((widths * r).min()), 6), -math.prod(r)))
    return supercell(structure, best)


def narrow_cell(structure: Structure, cutoff: float) -> float | None:
    """The least width of the cell along a periodic direction, Å, if it is below two cutoffs.

    In such a cell an atom meets several images of one neighbour, which move together: the labels
    do not tell what it does when one of them moves alone.
    """
    if not structure.pbc.any():
        return None
    width = float(_widths(structure)[structure.pbc].min())
    return width if width < 2.0 * cutoff else None


def _widths(structure: Structure) -> np.ndarray:
    """Distance of the planes through the ends of each vector, Å: columns of the inverse are normals."""
    widths: np.ndarray = 1.0 / np.linalg.norm(np.linalg.inv(complete_cell(structure.cell)), axis=0)
    return widths


def random_strain(rng: np.random.Generator, largest: float) -> np.ndarray:
    """Symmetric strain with components drawn evenly from [-largest, largest], (3, 3)."""
    strain = rng.uniform(-largest, largest, (3, 3))
    return np.triu(strain) + np.triu(strain, 1).T


def strained(structure: Structure, strain: np.ndarray) -> Structure:
    """Cell and positions deformed by I + strain; labels are dropped."""
    deformation = np.eye(3) + strain
    return replace(
        structure,
        positions=structure.positions @ deformation,
        cell=structure.cell @ deformation,
        energy=None,
        forces=None,
        stress=None,
        momenta=None,
    )
