"""Pairs of atoms, from distances at which they repel to beyond the cutoff, and lone atoms."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from mlff_distiller.data.structure import Structure, elements_of
from mlff_distiller.elements import symbol
from mlff_distiller.sampling.geometry import unlabelled
from mlff_distiller.sampling.rattle import CLOSE_CONTACT, rattled
from mlff_distiller.sampling.task import ATTEMPTS, Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 5
FEW = "a pair of elements without a dimer in vacuum (raise sampling.dimers.number)"
_MOST_NEIGHBOURS = 1.25  # times the smallest distance of two elements: still neighbours


@dataclass(frozen=True)
class DimersConfig(Settings, path="sampling.dimers"):
    """Two atoms of every pair of elements, alone and within the starting structures."""

    number: int = setting(0, "Frames, shared out over the pairs of elements.", least=0)
    shortest: float = setting(
        0.55, "Shortest distance, as a fraction of the sum of covalent radii.", above=0, most=1
    )
    reach: float = setting(
        6.5, "Longest distance; it should lie beyond the student's cutoff.", unit="Å", above=0
    )
    condensed: float = setting(
        0.5,
        "Share of the frames in which a pair of the starting structure is pushed together along "
        "its bond.",
        least=0,
        most=1,
    )
    rattle_stdev: float = setting(
        0.03, "Displacement of the atoms around a pushed pair.", unit="Å", least=0
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")


def isolated_atoms(task: Task) -> list[Structure]:
    """One atom of each element of the starting structures, marked ``config_type=IsolatedAtom``."""
    frames = []
    for z in elements_of(task.base):
        atom = task.boxed(Structure(atomic_numbers=np.array([z]), positions=np.zeros((1, 3))))
        info = {"config_type": "IsolatedAtom", "element": symbol(z)}
        frames.append(task.frame(atom, "isolated-atom", None, symbol(z), **info))
    return frames


def dimer_frames(task: Task, config: DimersConfig) -> list[Structure]:
    """``config.number`` frames, fewer where no pair can be pushed without others coming too close.

    Distances of a pair of elements are spread evenly on a logarithmic scale, so that the steep
    part is dense. ``info`` holds ``kind`` (``vacuum`` or ``condensed``), ``pair`` and ``distance``
    (Å).
    """
    pairs = list(itertools.combinations_with_replacement(elements_of(task.base), 2))
    inside = {pair: _neighbours(task, pair) for pair in pairs}
    with_neighbours = [pair for pair in pairs if inside[pair]]
    pushed = round(config.condensed * config.number) if with_neighbours else 0
    if config.number and len(pairs) > config.number - pushed:
        task.rejected[FEW] += len(pairs) - (config.number - pushed)
    frames = []
    for k in range(config.number - pushed):
        frames.append(_alone(task, config, pairs, k, config.number - pushed))
    for k in range(pushed):
        pair = with_neighbours[k % len(with_neighbours)]
        step, steps = k // len(with_neighbours), -(-pushed // len(with_neighbours))
        frame = _within(task, config, pair, inside[pair], k, (step + 0.5) / steps)
        frames += [] if frame is None else [frame]
    return frames


def _alone(
    task: Task, config: DimersConfig, pairs: list[tuple[int, int]], k: int, number: int
) -> Structure:
    pair = pairs[k % len(pairs)]
    # Those pairs that come first in the turn get what is left over.
    steps = number // len(pairs) + (k % len(pairs) < number % len(pairs))
    short = config.shortest * _contact(pair)
    part = _part(k // len(pairs), steps)
    distance = short * (max(config.reach, short) / short) ** part
    direction = task.rng(config.seed, _STREAM, 0, k).normal(size=3)
    direction /= np.linalg.norm(direction)
    half = 0.5 * distance * direction
    lone = Structure(atomic_numbers=np.array(pair), positions=np.array([-half, half]))
    name = "-".join(symbol(z) for z in pair)
    info = {"kind": "vacuum", "pair": name, "distance": round(distance, 4)}
    # A gap as wide as the box keeps the images out of any cutoff.
    return task.frame(task.boxed(lone), "dimer", None, f"{name}-{k}", **info)


def _part(step: int, steps: int) -> float:
    """Where a step of a ladder lies, from 0 to 1; a short one keeps away from its ends."""
    return step / (steps - 1) if steps > 3 else (step + 1) / (steps + 1)


def _within(
    task: Task,
    config: DimersConfig,
    pair: tuple[int, int],
    neighbours: list[tuple[int, int, int, np.ndarray]],
    k: int,
    part: float,
) -> Structure | None:
    """A neighbouring pair of a starting structure pushed together; None if others get too close."""
    rng = task.rng(config.seed, _STREAM, 1, k)
    short = config.shortest * _contact(pair)
    for _ in range(ATTEMPTS):
        parent, a, b, vector = neighbours[rng.integers(len(neighbours))]
        base = task.base[parent]
        length = float(np.linalg.norm(vector))
        distance = short * (max(length, short) / short) ** part
        frame = rattled(base, rng, config.rattle_stdev)
        push = 0.5 * (1.0 - distance / length) * vector
        positions = frame.positions.copy()
        positions[[a, b]] = base.positions[a] + push, base.positions[b] - push
        frame = unlabelled(frame, positions=positions)
        if _others_apart(frame, a, b, task.min_distance):
            name = "-".join(symbol(z) for z in pair)
            info = {"kind": "condensed", "pair": name, "distance": round(distance, 4)}
            return task.frame(frame, "dimer", parent, k, atoms=[a, b], **info)
        task.rejected[CLOSE_CONTACT] += 1
    return None


def _contact(pair: tuple[int, int]) -> float:
    return float(covalent_radii[pair[0]] + covalent_radii[pair[1]])


def _neighbours(task: Task, pair: tuple[int, int]) -> list[tuple[int, int, int, np.ndarray]]:
    """(parent, atom, atom, vector) of the nearest pairs of two elements that are free to move."""
    found = []
    for parent, s in enumerate(task.base):
        free: np.ndarray = np.ones(len(s), dtype=bool)
        if s.fixed is not None:
            free = np.asarray(~s.fixed.any(axis=1))
        i, j, d, vectors = neighbor_list("ijdD", s.to_atoms(labels=False), 2.0 * _contact(pair))
        z = s.atomic_numbers
        mine: np.ndarray = (z[i] == pair[0]) & (z[j] == pair[1]) & free[i] & free[j]
        mine &= i < j if pair[0] == pair[1] else i != j
        if not mine.any() or len(s) < 3:
            continue
        for m in np.flatnonzero(mine & (d < _MOST_NEIGHBOURS * d[mine].min())):
            found.append((parent, int(i[m]), int(j[m]), vectors[m]))
    return found


def _others_apart(frame: Structure, a: int, b: int, least: float) -> bool:
    """Whether no pair but that of ``a`` and ``b`` is too close."""
    radii = covalent_radii[frame.atomic_numbers]
    i, j, d = neighbor_list("ijd", frame.to_atoms(labels=False), 2.0 * float(radii.max()))
    other = (np.minimum(i, j) != min(a, b)) | (np.maximum(i, j) != max(a, b))
    return bool(np.all(d[other] >= least * (radii[i] + radii[j])[other]))
