"""Geometry that both kinds of sampling need: close contacts and strain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from mlff_distiller.data.structure import Structure


def closest_ratio(structure: Structure) -> float:
    """Smallest distance of a pair, as a fraction of the sum of its covalent radii.

    Pairs further apart than that sum do not count: the result is then 1.
    """
    radii = covalent_radii[structure.atomic_numbers]
    atoms = structure.to_atoms(labels=False)
    i, j, d = neighbor_list("ijd", atoms, 2.0 * float(radii.max()))
    return float(min(np.min(d / (radii[i] + radii[j]), initial=1.0), 1.0))


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
