"""The bonds of a structure by covalent radii, and the molecules that they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list

from mlff_distiller.data.structure import Structure

#: Atoms are bonded if they are nearer than this times the sum of their covalent radii.
BOND_FACTOR = 1.15


class Bonds(NamedTuple):
    """Bonds, each from both of its atoms."""

    first: np.ndarray
    """(m,) int64, ascending."""
    second: np.ndarray
    """(m,) int64."""
    shifts: np.ndarray
    """(m, 3) int64: the image of the second atom, in vectors of the cell."""
    lengths: np.ndarray
    """(m,), Å."""


class Molecules(NamedTuple):
    """Atoms that bonds connect."""

    labels: np.ndarray
    """(n,) int64, the molecule of each atom, numbered by their first atoms."""
    images: np.ndarray
    """(n, 3) int64: adding these vectors of the cell makes every molecule whole."""
    finite: bool
    """No molecule is bonded to an image of its own."""

    @property
    def number(self) -> int:
        """Of molecules."""
        return int(self.labels.max()) + 1


def find_bonds(structure: Structure, factor: float = BOND_FACTOR) -> Bonds:
    """Pairs of atoms that are nearer than ``factor`` times the sum of their covalent radii."""
    atoms = structure.to_atoms(labels=False)
    i, j, d, shifts = neighbor_list("ijdS", atoms, natural_cutoffs(atoms, mult=factor))
    return Bonds(i, j, shifts, d)


def find_molecules(structure: Structure, bonds: Bonds | None = None) -> Molecules:
    """The molecules (or lone atoms, or networks) that a structure consists of."""
    bonds = find_bonds(structure) if bonds is None else bonds
    n = len(structure)
    begin = np.searchsorted(bonds.first, np.arange(n + 1))
    labels = np.full(n, -1, dtype=np.int64)
    images = np.zeros((n, 3), dtype=np.int64)
    finite = True
    number = 0
    for root in range(n):
        if labels[root] >= 0:
            continue
        labels[root] = number
        reached = [root]
        while reached:
            a = reached.pop()
            for k in range(begin[a], begin[a + 1]):
                b, there = int(bonds.second[k]), images[a] + bonds.shifts[k]
                if labels[b] < 0:
                    labels[b], images[b] = number, there
                    reached.append(b)
                elif not np.array_equal(images[b], there):
                    # A second path leads to another image.
                    finite = False
        number += 1
    return Molecules(labels, images, finite)
