"""Bonds of molecules by covalent radii, and fragments on both sides of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list

#: Bonds are shorter than this share of the sum of covalent radii.
_REACH = 1.2


@dataclass(frozen=True)
class Bond:
    """One bond."""

    i: int
    j: int
    fragment: tuple[int, ...]
    """Atoms on the side of ``j``; empty in a ring."""
    neighbours: tuple[int, int]
    """Bonded atoms of ``i`` and of ``j``."""

    @property
    def in_ring(self) -> bool:
        """Whether its two sides hang together elsewhere."""
        return not self.fragment

    @property
    def turns(self) -> bool:
        """Whether there is something to turn on both sides."""
        return not self.in_ring and min(self.neighbours) > 1

    def turned(self, atoms: Atoms, angle: float) -> Atoms:
        """The fragment turned about the bond, degrees."""
        copy = atoms.copy()
        axis = atoms.positions[self.j] - atoms.positions[self.i]
        part = copy[list(self.fragment)]
        part.rotate(angle, axis, center=atoms.positions[self.j])
        copy.positions[list(self.fragment)] = part.positions
        return copy

    def stretched(self, atoms: Atoms, distance: float) -> Atoms:
        """The fragment moved away along the bond, Å."""
        copy = atoms.copy()
        axis = atoms.positions[self.j] - atoms.positions[self.i]
        copy.positions[list(self.fragment)] += distance * axis / np.linalg.norm(axis)
        return copy


def bonds_of(atoms: Atoms) -> list[Bond]:
    """All bonds of a molecule without cell."""
    partners = neighbours_of(atoms)
    found = []
    for i, own in enumerate(partners):
        for j in sorted(own):
            if j > i:
                fragment = _side(partners, i, j)
                small = fragment if 2 * len(fragment) <= len(atoms) else ()
                if fragment and not small:  # move the smaller side
                    a, b, small = j, i, _side(partners, j, i)
                else:
                    a, b = i, j
                found.append(Bond(a, b, small, (len(partners[a]), len(partners[b]))))
    return found


def neighbours_of(atoms: Atoms) -> list[set[int]]:
    """Bonded atoms of each atom, images included."""
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=_REACH))
    partners: list[set[int]] = [set() for _ in range(len(atoms))]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        partners[a].add(b)
    return partners


def _side(partners: list[set[int]], i: int, j: int) -> tuple[int, ...]:
    """What hangs on ``j`` without the bond to ``i``; empty if ``i`` is reached."""
    reached, todo = {j}, [j]
    while todo:
        here = todo.pop()
        for there in partners[here]:
            if here == j and there == i:
                continue
            if there == i:
                return ()
            if there not in reached:
                reached.add(there)
                todo.append(there)
    return tuple(sorted(reached))
