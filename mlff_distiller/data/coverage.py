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
# Lists of atomic numbers whose formula is remembered.
_MOST_FORMULAS = 1024


def coverage(structures: Sequence[Structure], cutoff: float) -> dict[str, Any]:
    """The table above as plain JSON; what is unknown is missing.

    Args:
        structures: training frames.
        cutoff: Å, of the student.
    """
    sums = CoverageSums()
    for s in structures:
        sums.add(s)
        sums.pairs.add(*_distances(s, cutoff))
    return sums.result()


class CoverageSums:
    """What :func:`coverage` tells, of frames that are taken in one by one.

    Attributes:
        pairs: shortest distances; whoever adds a frame adds its distances here.
    """

    def __init__(self) -> None:
        self.pairs = ShortestPairs()
        self._volumes: list[float] = []  # smallest, largest; empty before the first
        self._energies: dict[str, list[float]] = {}
        self._temperatures: list[float] = []
        self._formulas: dict[bytes, str] = {}  # frames of one trajectory have the same

    def add(self, s: Structure) -> None:
        """Take in one frame, without its distances."""
        if s.info.get("source") in _VACUUM:
            return
        if s.pbc.all():
            volume = abs(float(np.linalg.det(s.cell))) / len(s)
            self._volumes = _range([*self._volumes, volume])
        if s.energy is not None:
            numbers = s.atomic_numbers.tobytes()
            if numbers not in self._formulas:
                if len(self._formulas) >= _MOST_FORMULAS:
                    self._formulas.clear()
                self._formulas[numbers] = reduced_formula(s.atomic_numbers)
            formula = self._formulas[numbers]
            found = [*self._energies.get(formula, []), s.energy / len(s)]
            self._energies[formula] = _range(found)
        temperature = s.info.get("temperature")
        if isinstance(temperature, (int, float)) and s.info.get("source") in _DYNAMICS:
            self._temperatures = [max([*self._temperatures, float(temperature)])]

    def state(self) -> dict[str, Any]:
        """As plain JSON, numbers exactly."""
        return {
            "pairs": self.pairs.state(),
            "volumes": self._volumes,
            "energies": self._energies,
            "temperatures": self._temperatures,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> CoverageSums:
        """From :meth:`state`."""
        sums = cls()
        sums.pairs = ShortestPairs(state["pairs"])
        sums._volumes, sums._energies = state["volumes"], state["energies"]
        sums._temperatures = state["temperatures"]
        return sums

    def result(self) -> dict[str, Any]:
        """The table at the top of this file."""
        result: dict[str, Any] = {"closest_pairs": self.pairs.result()}
        if self._volumes:
            result["volume_per_atom"] = self._volumes
        if self._energies:
            result["energy_per_atom"] = self._energies
        if self._temperatures:
            result["temperature"] = self._temperatures[0]
        return result


class ShortestPairs:
    """Shortest distance of each pair of elements."""

    def __init__(self, state: Sequence[Sequence[float]] = ()) -> None:
        self._shortest = np.full((len(chemical_symbols),) * 2, np.inf)
        for a, b, distance in state:
            self._shortest[int(a), int(b)] = distance

    def add(self, numbers: np.ndarray, distances: np.ndarray) -> None:
        """Take in pairs: atomic numbers (2, n_edges) and distances (n_edges,), Å."""
        low, high = np.minimum(*numbers), np.maximum(*numbers)
        np.minimum.at(self._shortest, (low, high), distances)

    def state(self) -> list[list[float]]:
        """Atomic numbers and distance of each pair that occurs."""
        found = np.argwhere(np.isfinite(self._shortest)).tolist()
        return [[a, b, float(self._shortest[a, b])] for a, b in found]

    def result(self) -> dict[str, float]:
        """Å of each pair that occurs, ``Na-Cl``."""
        return {pair_name(int(a), int(b)): distance for a, b, distance in self.state()}


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def _distances(s: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (2, n_edges) and distances (n_edges,) of the pairs within the cutoff."""
    edge_index, shifts = (t.numpy() for t in neighbors_of(s, cutoff))
    vectors = s.positions[edge_index[0]] - s.positions[edge_index[1]] + shifts @ s.cell
    return s.atomic_numbers[edge_index], np.linalg.norm(vectors, axis=1)


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
    pairs = ShortestPairs()
    for s in structures:
        pairs.add(*_distances(s, cutoff))
    return pairs.result()
