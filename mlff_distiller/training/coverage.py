"""What the training frames cover, for the metadata of a student: running it elsewhere is a guess.

``closest_pairs``  Å per pair of elements, ``Na-Cl``; pairs beyond the cutoff are missing
``volume_per_atom``  [smallest, largest], Å^3, of frames that are periodic in three directions
``energy_per_atom``  [lowest, highest], eV, per composition: ``NaCl``, ``C2H6O``
``temperature``  K, the hottest dynamics that frames were taken from, if they say so
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlff_distiller.data import Structure, neighbors_of
from mlff_distiller.elements import pair_name, reduced_formula


def coverage(structures: Sequence[Structure], cutoff: float) -> dict[str, Any]:
    """The table above as plain JSON; what is unknown is missing.

    Args:
        structures: training frames.
        cutoff: Å, of the student.
    """
    volumes, temperatures = [], []
    energies: dict[str, list[float]] = {}
    for s in structures:
        if s.pbc.all():
            volumes.append(abs(float(np.linalg.det(s.cell))) / len(s))
        if s.energy is not None:
            energies.setdefault(reduced_formula(s.atomic_numbers), []).append(s.energy / len(s))
        temperature = s.info.get("temperature")
        if isinstance(temperature, (int, float)) and s.info.get("source") == "md":
            temperatures.append(float(temperature))
    result: dict[str, Any] = {"closest_pairs": closest_pairs(structures, cutoff)}
    if volumes:
        result["volume_per_atom"] = [min(volumes), max(volumes)]
    if energies:
        result["energy_per_atom"] = {k: [min(e), max(e)] for k, e in energies.items()}
    if temperatures:
        result["temperature"] = max(temperatures)
    return result


def closest_pair(structures: Sequence[Structure], cutoff: float) -> float:
    """Shortest distance of all pairs (images included), Å; infinite if none is within the cutoff."""
    return min(closest_pairs(structures, cutoff).values(), default=math.inf)


def closest_pairs(structures: Sequence[Structure], cutoff: float) -> dict[str, float]:
    """Shortest distance (images included) of each pair of elements within the cutoff, Å."""
    shortest = np.full((len(chemical_symbols),) * 2, np.inf)
    for s in structures:
        edge_index, shifts = (t.numpy() for t in neighbors_of(s, cutoff))
        vectors = s.positions[edge_index[0]] - s.positions[edge_index[1]] + shifts @ s.cell
        z = np.sort(s.atomic_numbers[edge_index], axis=0)
        np.minimum.at(shortest, (z[0], z[1]), np.linalg.norm(vectors, axis=1))
    return {
        pair_name(int(a), int(b)): float(shortest[a, b])
        for a, b in np.argwhere(np.isfinite(shortest))
    }
