"""Structures of given elements that the contract is checked on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlff_distiller.data import Structure

_SPACING = 2.3  # Å


def crystal(elements: Sequence[int], seed: int = 0) -> Structure:
    """Twelve atoms on a disordered lattice in a skewed, right-handed cell, elements in turn."""
    rng = np.random.default_rng(seed)
    shape = (3, 2, 2)
    sites = np.indices(shape).reshape(3, -1).T * _SPACING
    skew = np.array([[1, 0, 0], [0.12, 1, 0], [-0.08, 0.1, 1]])
    positions = (sites + rng.uniform(-0.25, 0.25, sites.shape)) @ skew
    return Structure(
        atomic_numbers=_in_turn(elements, len(sites)),
        positions=positions,
        cell=np.diag(np.array(shape) * _SPACING) @ skew,
        pbc=np.ones(3, dtype=bool),
    )


def cluster(elements: Sequence[int], seed: int = 0) -> Structure:
    """Six atoms without a cell."""
    rng = np.random.default_rng(seed)
    sites = np.indices((3, 2, 1)).reshape(3, -1).T * 1.9
    return Structure(
        atomic_numbers=_in_turn(elements, len(sites)),
        positions=sites + rng.uniform(-0.25, 0.25, sites.shape),
    )


def atoms_apart(elements: Sequence[int], distance: float) -> Structure:
    """Two atoms without a cell, ``distance`` Å apart; at 0 only the first."""
    number = 2 if distance > 0 else 1
    return Structure(
        atomic_numbers=_in_turn(elements, number),
        positions=np.array([[0.3, -0.2, 0.1], [0.3 + distance, -0.2, 0.1]])[:number],
    )


def random_rotation(seed: int = 0) -> np.ndarray:
    """A proper rotation, (3, 3), for rows from the right."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return rotation * np.sign(np.linalg.det(rotation))


def _in_turn(elements: Sequence[int], number: int) -> np.ndarray:
    return np.array([elements[i % len(elements)] for i in range(number)])
