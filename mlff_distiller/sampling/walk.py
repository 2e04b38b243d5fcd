"""Rattle-relax-repeat: family trees of structures that grow away from a start.

Gardner et al. 2025 (arXiv:2506.10956). A walk with the teacher leaves the basin of the start
without the long correlation times of molecular dynamics, and its frames lie off the minima.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import units

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import closest_ratio, strained, unlabelled
from mlff_distiller.sampling.rattle import CLOSE_CONTACT
from mlff_distiller.sampling.task import Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 7
_STOP = 0.25  # largest chance per step that a relaxation ends early
LARGE_FORCE = "force above max_force in a walk"
SIMILAR = "too similar to a relative in a walk"


@dataclass(frozen=True)
class WalkConfig(Settings, path="sampling.walk"):
    """Rattle-relax-repeat with the teacher (Gardner et al. 2025, arXiv:2506.10956)."""

    number: int = setting(0, "Frames, shared out over family trees.", least=0)
    tree_size: int = setting(
        20, "Frames of one tree: relatives, which a split keeps together.", least=1
    )
    temperature: float = setting(
        1000.0,
        "Of the choice of parents and of the end of relaxations, for energies per atom.",
        unit="K",
        above=0,
    )
    beta: float = setting(
        0.5,
        "1 chooses parents by Boltzmann's weight of their energy (dense around minima), 0 by their "
        "generation (far away).",
        least=0,
        most=1,
    )
    sigma: list[float] = setting(
        [0.06, 0.3],
        "Smallest and largest standard deviation of a rattle; drawn evenly on a logarithmic scale.",
        unit="Å",
        above=0,
        length=2,
    )
    cell_sigma: float = setting(
        0.02,
        "Standard deviation of the strain of periodic structures, always from the first cell.",
        least=0,
        below=0.5,
    )
    relax_steps: int = setting(20, "Steps of a relaxation at most.", least=0)
    max_force: float = setting(
        15.0, "Frames with a larger force are relaxed further, or rejected.", unit="eV/Å", above=0
    )
    min_difference: float = setting(
        0.05, "Mean displacement from every relative at least.", unit="Å", least=0
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma[0] > self.sigma[1]:
            raise InputError(
                f"sigma must be the smallest and the largest, got {self.sigma}; set "
                f"sampling.walk.sigma to {self.sigma[::-1]}"
            )


@dataclass(frozen=True)
class _Member:
    structure: Structure
    sites: np.ndarray
    """Positions carried back to the first cell."""
    energy: float
    """eV/atom."""
    generation: int


def walk_frames(task: Task, config: WalkConfig) -> list[Structure]:
    """``config.number`` frames, fewer where trees stop growing; the teacher drives.

    ``info`` holds the lineage: ``node`` (0 is the start), ``mother``, ``generation``, ``sigma`` (Å)
    and ``relax_steps``.
    """
    frames = []
    trees = -(-config.number // config.tree_size)
    for t in range(trees):
        size = config.number // trees + (t < config.number % trees)
        parent = t % len(task.base)

        def grow(
            rejected: Counter[str], t: int = t, size: int = size, parent: int = parent
        ) -> Iterator[Structure]:
            rng = task.rng(config.seed, _STREAM, t)
            for frame in grow_tree(task, config, task.base[parent], size, rng, rejected):
                yield task.frame(frame, "walk", parent, t)

        frames += task.kept("walk", t, grow)
    return frames


def grow_tree(
    task: Task,
    config: WalkConfig,
    start: Structure,
    size: int,
    rng: np.random.Generator,
    rejected: Counter[str],
) -> Iterator[Structure]:
    """Children of ``start``, their children and so on, ``size`` at most.

    A parent is chosen with the probability ``beta B_i / sum B + (1 - beta) g_i / sum g``: B is the
    Boltzmann weight of its energy per atom, g its generation, 1 for the start. The child is strained
    from the first cell, rattled by a random sigma and relaxed; see :func:`_relax`.
    """
    found = task.compute(start, rejected)
    if found is None:
        return
    tree = [_Member(start, start.positions, found[0] / len(start), 1)]
    kt = units.kB * config.temperature
    failures = 0
    while len(tree) <= size and failures < 2 * size + 20:
        energies = np.array([m.energy for m in tree])
        weights = np.exp(-(energies - energies.min()) / kt)
        generations = np.array([m.generation for m in tree], dtype=np.float64)
        chances = config.beta * weights / weights.sum()
        chances += (1.0 - config.beta) * generations / generations.sum()
        mother = int(rng.choice(len(tree), p=chances))
        sigma = float(np.exp(rng.uniform(*np.log(config.sigma))))
        child = _rattled(tree[mother], start, config, sigma, rng)
        done = _relax(task, config, child, start, tree, tree[mother].energy, sigma, rng, rejected)
        if done is None:
            failures += 1
            continue
        frame, energy, steps = done
        generation = tree[mother].generation + 1
        tree.append(_Member(frame, _sites(frame, start), energy, generation))
        info = {
            "node": len(tree) - 1,
            "mother": mother,
            "generation": generation - 1,
            "sigma": round(sigma, 4),
            "relax_steps": steps,
        }
        yield unlabelled(frame, info={**start.info, **info})


def _rattled(
    mother: _Member, start: Structure, config: WalkConfig, sigma: float, rng: np.random.Generator
) -> Structure:
    child = unlabelled(start, positions=mother.sites)
    if start.pbc.all() and start.fixed is None and config.cell_sigma > 0:
        strain = rng.normal(scale=config.cell_sigma, size=(3, 3))
        child = strained(child, 0.5 * (strain + strain.T))
    noise = rng.normal(scale=sigma, size=child.positions.shape)
    if start.fixed is None:
        noise -= noise.mean(axis=0)
    else:
        noise[start.fixed] = 0.0
    return unlabelled(child, positions=child.positions + noise)


def _relax(
    task: Task,
    config: WalkConfig,
    child: Structure,
    start: Structure,
    tree: list[_Member],
    energy_of_mother: float,
    sigma: float,
    rng: np.random.Generator,
    rejected: Counter[str],
) -> tuple[Structure, float, int] | None:
    """Move each atom by sigma / x along its force in step x (Robbins and Monro 1951).

    It ends after ``relax_steps``, before it falls back to a relative, or by chance: with
    ``min(1/4, exp(-dE / kT))`` for each step at which forces and distances are within their limits.

    Returns:
        frame, energy (eV/atom) and steps; None where it is rejected, which is counted.
    """
    last: tuple[Structure, float, int] | None = None
    reason = SIMILAR
    for x in range(config.relax_steps + 1):
        if _similar(child, start, tree, config.min_difference):
            break
        reason = CLOSE_CONTACT
        apart = closest_ratio(child) >= task.min_distance
        found = task.compute(child, rejected)
        if found is None:
            return None
        energy, forces = found[0] / len(child), found[1]
        gentle = np.linalg.norm(forces, axis=1).max() <= config.max_force
        last = (child, energy, x) if apart and gentle else None
        reason = LARGE_FORCE if apart else CLOSE_CONTACT
        chance = np.exp(min(0.0, energy_of_mother - energy) / (units.kB * config.temperature))
        if x == config.relax_steps or (last is not None and rng.uniform() < min(_STOP, chance)):
            break
        if start.fixed is not None:
            forces = np.where(start.fixed, 0.0, forces)
        norms = np.maximum(np.linalg.norm(forces, axis=1, keepdims=True), 1e-6)
        child = unlabelled(child, positions=child.positions + sigma / (x + 1) * forces / norms)
    if last is None:
        rejected[reason] += 1
    return last


def _sites(structure: Structure, start: Structure) -> np.ndarray:
    if np.array_equal(structure.cell, start.cell):
        return structure.positions
    return np.linalg.solve(structure.cell.T, structure.positions.T).T @ start.cell


def _similar(structure: Structure, start: Structure, tree: list[_Member], least: float) -> bool:
    sites = _sites(structure, start)
    return any(np.linalg.norm(sites - m.sites, axis=1).mean() < least for m in tree)
