"""Moves of molecules as plain functions: torsions, bonds, and two of them brought together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from mlff_distiller.data.bonds import find_bonds
from mlff_distiller.data.structure import Structure
from mlff_distiller.sampling.geometry import unlabelled


class Bond(NamedTuple):
    """A bond, and what moves with its second atom when it turns or breaks."""

    first: int
    second: int
    side: np.ndarray
    """Atoms of the second side, itself among them; empty in a ring."""
    turns: bool
    """Both atoms have more neighbours, and it is in no ring."""


def bonds_of(structure: Structure) -> list[Bond]:
    """Bonds of an open structure by covalent radii, in the order of their atoms.

    The side that moves is the smaller one.
    """
    found = find_bonds(structure)
    neighbours: list[list[int]] = [[] for _ in range(len(structure))]
    for a, b in zip(found.first, found.second, strict=True):
        neighbours[a].append(int(b))
    bonds = []
    for a, several in enumerate(neighbours):
        for b in sorted(x for x in several if x > a):
            side = _side(neighbours, a, b)
            if side is None:
                bonds.append(Bond(a, b, np.empty(0, dtype=np.int64), False))
                continue
            other = _side(neighbours, b, a)
            turns = len(several) > 1 and len(neighbours[b]) > 1
            if other is not None and len(other) < len(side):
                bonds.append(Bond(b, a, other, turns))
            else:
                bonds.append(Bond(a, b, side, turns))
    return bonds


def turn_bond(structure: Structure, bond: Bond, degrees: float) -> Structure:
    """Rotate one side about the bond. All bond lengths and angles stay."""
    origin = structure.positions[bond.first]
    axis = structure.positions[bond.second] - origin
    axis = axis / np.linalg.norm(axis)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    arms = structure.positions[bond.side] - origin
    turned = (
        arms * cosine + np.cross(axis, arms) * sine + np.outer(arms @ axis, axis) * (1.0 - cosine)
    )
    positions = structure.positions.copy()
    positions[bond.side] = origin + turned
    return unlabelled(structure, positions=positions)


def stretch_bond(structure: Structure, bond: Bond, length: float) -> Structure:
    """Give a bond another length (Å): one side moves along it, in a ring its two atoms alone."""
    axis = structure.positions[bond.second] - structure.positions[bond.first]
    now = float(np.linalg.norm(axis))
    step = (length - now) / now * axis
    positions = structure.positions.copy()
    if len(bond.side):
        positions[bond.side] += step
    else:
        positions[bond.first] -= 0.5 * step
        positions[bond.second] += 0.5 * step
    return unlabelled(structure, positions=positions)


def bring_together(
    one: Structure, other: Structure, rng: np.random.Generator, ratio: float
) -> Structure:
    """Two open structures in contact, ``other`` turned at random and coming from anywhere.

    Args:
        one: stays.
        other: moves as a rigid body.
        rng: source of randomness.
        ratio: of the distance of the nearest pair to the sum of its covalent radii; no pair has a
            smaller one.

    Returns:
        both, the atoms of ``one`` first.
    """
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    # Towards an atom of the first: large molecules are not always met at their centre.
    target = one.positions[rng.integers(len(one))]
    arms = (other.positions - other.positions.mean(axis=0)) @ turn + target
    between = arms[None] - one.positions[:, None]
    radii = covalent_radii
    contact = ratio * (radii[one.atomic_numbers][:, None] + radii[other.atomic_numbers][None])
    # |between + s direction| = contact: beyond the largest root of all pairs none is nearer.
    along = between @ direction
    inside = np.square(along) - np.square(between).sum(axis=2) + np.square(contact)
    roots = np.where(inside >= 0, -along + np.sqrt(np.maximum(inside, 0.0)), -np.inf)
    step = float(roots.max())
    return unlabelled(
        one,
        atomic_numbers=np.concatenate([one.atomic_numbers, other.atomic_numbers]),
        positions=np.concatenate([one.positions, arms + step * direction]),
    )


def clashes(structure: Structure, bonds: Sequence[Bond], least: float) -> bool:
    """Whether two atoms without a bond are nearer than ``least`` times their covalent radii."""
    i, j = np.triu_indices(len(structure), 1)
    bonded = {(min(b.first, b.second), max(b.first, b.second)) for b in bonds}
    free = np.array([(int(a), int(b)) not in bonded for a, b in zip(i, j, strict=True)], dtype=bool)
    apart = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    radii = covalent_radii[structure.atomic_numbers]
    return bool(np.any((apart < least * (radii[i] + radii[j])) & free))


def _side(neighbours: list[list[int]], a: int, b: int) -> np.ndarray | None:
    """Atoms that hang on ``b`` when its bond to ``a`` is cut; None in a ring."""
    side, reached = {b}, [b]
    while reached:
        c = reached.pop()
        for d in neighbours[c]:
            if (c, d) == (b, a) or d in side:
                continue
            if d == a:
                return None
            side.add(d)
            reached.append(d)
    return np.array(sorted(side), dtype=np.int64)
