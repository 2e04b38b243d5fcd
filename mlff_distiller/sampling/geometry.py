"""Geometry that both kinds of sampling need: close contacts and strain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

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
