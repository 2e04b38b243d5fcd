"""What the training frames cover, for the metadata of a student: running it elsewhere is a guess.

``closest_pairs``  Å per pair of elements, ``Na-Cl``; pairs beyond the cutoff are missing
``volume_per_atom``  [smallest, largest], Å^3, of frames that are periodic in three directions
``energy_per_atom``  [lowest, highest], eV, per composition: ``NaCl``, ``C2H6O``
``temperature``  K, the hottest dynamics that frames were taken from, if they say so
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlff_distiller.data.batch import neighbors_of
from mlff_distiller.data.structure import Structure
from mlff_distiller.elements import pair_name, reduced_formula

#: Training frames are a sample: what is this near to their edge is no news. A share of the shortest
#: distance, and what a volume may lie beyond the smallest and the largest.
FRINGE = 0.97
VOLUME_SLACK = 0.02
#: ``info["source"]`` of frames from dynamics of a teacher and of a student.
_DYNAMICS = ("md", "student-md")
#: Frames whose cell is a box around one or two atoms: no volume or energy of a phase.
_VACUUM = ("isolated-atom", "dimer")


def coverage(structures: Sequence[Structure], cutoff: float) -> dict[str, Any]:
    """The table above as plain JSON; what is unknown is missing.

    Args:
        structures: training frames.
        cutoff: Å, of the student.
    """
    volumes, temperatures = [], []
    energies: dict[str, list[float]] = {}
    for s in structures:
        if s.info.get("source") in _VACUUM:
            continue
        if s.pbc.all():
            volumes.append(abs(float(np.linalg.det(s.cell))) / len(s))
        if s.energy is not None:
            energies.setdefault(reduced_formula(s.atomic_numbers), []).append(s.energy / len(s))
        temperature = s.info.get("temperature")
        if isinstance(temperature, (int, float)) and s.info.get("source") in _DYNAMICS:
            temperatures.append(float(temperature))
    result: dict[str, Any] = {"closest_pairs": closest_pairs(structures, cutoff)}
    if volumes:
        result["volume_per_atom"] = [min(volumes), max(volumes)]
    if energies:
        result["energy_per_atom"] = {k: [min(e), max(e)] for k, e in energies.items()}
    if temperatures:
        result["temperature"] = max(temperatures)
    return result


@dataclass
class Outside:
    """What of some frames lies outside of what training saw."""

    frames: list[int] = field(default_factory=list)
    """Their indices."""
    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Kind -> number of frames and the worst of them in words."""


def outside(metadata: Mapping[str, Any], structures: Sequence[Structure]) -> Outside | None:
    """The frames that a student was not trained for; errors there are those of a guess.

    Args:
        metadata: of the student.
        structures: frames to look at.

    Returns:
        None if the student does not say what it was trained on (files of older versions).
    """
    covered = metadata.get("coverage")
    if not covered:
        return None
    result = Outside()
    worst: dict[str, tuple[float, int, str]] = {}  # kind -> by how much, number of frames, words
    for i, s in enumerate(structures):
        found = _excesses(covered, s, float(metadata["cutoff"]))
        if found:
            result.frames.append(i)
        for kind, (excess, words) in found.items():
            most, count, text = worst.get(kind, (0.0, 0, ""))
            if excess > most:
                most, text = excess, f"{words} in frame {i}"
            worst[kind] = (most, count + 1, text)
    result.reasons = {kind: (count, text) for kind, (_, count, text) in worst.items()}
    return result


def _excesses(
    covered: Mapping[str, Any], structure: Structure, cutoff: float
) -> dict[str, tuple[float, str]]:
    """Kind -> by how much it is outside, and words."""
    result: dict[str, tuple[float, str]] = {}
    known = covered["closest_pairs"]
    for pair, distance in closest_pairs([structure], cutoff).items():
        if pair not in known:
            words = f"{pair} {distance:.3f} Å apart, training saw none within {cutoff:g} Å"
            result[pair] = (2.0 - distance / cutoff, words)
        elif distance < FRINGE * known[pair]:
            words = f"{pair} {distance:.3f} Å apart, training saw none below {known[pair]:.3f} Å"
            result[pair] = (1.0 - distance / known[pair], words)
    if "volume_per_atom" in covered and structure.pbc.all():
        low, high = covered["volume_per_atom"]
        volume, excess = volume_excess(structure, low, high)
        if excess > VOLUME_SLACK:
            words = f"{volume:.2f} Å³ per atom, training saw {low:.2f} to {high:.2f}"
            result["volume"] = (excess, words)
    return result


def volume_excess(structure: Structure, low: float, high: float) -> tuple[float, float]:
    """Volume per atom, Å^3, and the share by which it lies beyond ``low`` or ``high``."""
    volume = abs(float(np.linalg.det(structure.cell))) / len(structure)
    return volume, max(1.0 - volume / low, volume / high - 1.0)


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
