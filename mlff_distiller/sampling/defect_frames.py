"""Rattled defects, surfaces and stacking faults of the crystals among the starting structures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.data.structure import Structure, elements_of
from mlff_distiller.errors import InputError
from mlff_distiller.purpose import DEFECTS
from mlff_distiller.sampling import defects
from mlff_distiller.sampling.geometry import roomy_cell, smallest_repeat
from mlff_distiller.sampling.rattle import rattled
from mlff_distiller.sampling.task import ATTEMPTS, Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 6
TOO_LARGE = "a defect needs more atoms than sampling.defects.max_atoms"


@dataclass(frozen=True)
class DefectsConfig(Settings, path="sampling.defects"):
    """Rattled crystals with vacancies, interstitials, antisites, surfaces or stacking faults."""

    number: int = setting(0, "Frames; the kinds take turns.", least=0)
    kinds: list[str] = setting(
        list(DEFECTS), "Which; an antisite needs two elements.", choices=DEFECTS
    )
    max_atoms: int = setting(
        128, "Supercells and slabs have at most these.", least=2, advice="set it to e.g. 64"
    )
    max_miller: int = setting(
        1,
        "Largest Miller index of surfaces and faults, of the cell that was given.",
        least=1,
        most=3,
    )
    thickness: float = setting(
        8.0, "Of slabs, and of the crystal between two faults, at least.", unit="Å", above=0
    )
    vacuum: float = setting(12.0, "Between the images of a slab.", unit="Å", above=0)
    rattle_stdev: float = setting(
        0.06, "Largest standard deviation of a displacement.", unit="Å", least=0
    )
    max_strain: float = setting(
        0.02, "Largest component of the strain of what has no vacuum.", least=0, below=0.5
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number and not self.kinds:
            raise InputError(
                "kinds must hold at least one kind, got []; set sampling.defects.kinds, e.g. to "
                "[vacancy]"
            )


def defect_frames(task: Task, config: DefectsConfig) -> list[Structure]:
    """``config.number`` frames, fewer where every try was rejected; ``info`` holds ``kind``.

    Raises:
        InputError: no starting structure is a crystal, or none of the kinds suits it.
    """
    if not config.number:
        return []
    jobs = suiting(config.kinds, task.base)
    if not jobs:
        raise InputError(
            f"sampling.defects needs a crystal that can have one of {', '.join(config.kinds)} (an "
            "antisite takes two elements, surfaces and faults no held atoms), got none among the "
            "starting structures; set sampling.defects.number to 0"
        )
    frames = []
    for k in range(config.number):
        kind, parent = jobs[k % len(jobs)]
        rng = task.rng(config.seed, _STREAM, k)
        for _ in range(ATTEMPTS):
            made = _make(task, config, kind, parent, rng)
            if made is None:
                task.rejected[f"{TOO_LARGE} ({kind})"] += 1
                continue
            stdev = float(rng.uniform(0.3, 1.0)) * config.rattle_stdev
            frame = rattled(made, rng, stdev, 0.0 if kind == "surface" else config.max_strain)
            if task.accept(frame):
                info = {"kind": kind, "rattle_stdev": round(stdev, 4)}
                frames.append(task.frame(frame, "defect", parent, k, **info))
                break
    return frames


def suiting(kinds: Sequence[str], structures: Sequence[Structure]) -> list[tuple[str, int]]:
    """Every kind of defect with the index of each structure that can have it."""
    return [
        (kind, parent)
        for parent, s in enumerate(structures)
        if is_crystal(s)
        for kind in kinds
        if (kind != "antisite" or len(elements_of([s])) > 1)
        and (kind not in ("surface", "stacking") or s.fixed is None)
    ]


def is_crystal(structure: Structure) -> bool:
    """Periodic in three directions and not made of molecules; noble gases count."""
    if not structure.pbc.all():
        return False
    molecules = find_molecules(structure)
    return not molecules.finite or molecules.number == len(structure)


def _make(
    task: Task, config: DefectsConfig, kind: str, parent: int, rng: np.random.Generator
) -> Structure | None:
    base = task.base[parent]
    if kind in ("surface", "stacking"):
        return _plane(task, config, kind, base, rng)
    room = 1 if kind == "interstitial" else 0
    unit, _ = smallest_repeat(base)
    cell = roomy_cell(unit, config.max_atoms - room)
    if len(cell) > config.max_atoms - room or len(cell) < 2:
        return None
    free = np.flatnonzero(
        np.ones(len(cell), dtype=bool) if cell.fixed is None else ~cell.fixed.any(axis=1)
    )
    if not len(free):
        return None
    atom = int(rng.choice(free))
    numbers = cell.atomic_numbers
    if kind == "vacancy":
        return defects.make_vacancy(cell, atom)
    if kind == "antisite":
        others = free[numbers[free] != numbers[atom]]
        return defects.make_antisite(cell, atom, int(rng.choice(others))) if len(others) else None
    element = int(rng.choice(elements_of([base])))
    sites = defects.interstitial_sites(cell)
    choice = int(rng.integers(len(sites) + 1))
    if choice == len(sites):
        direction = rng.permutation([[1, 0, 0], [1, 1, 0], [1, 1, 1]])[0]
        return defects.make_dumbbell(
            cell, atom, rng.permutation(direction).tolist(), element=element
        )
    return defects.make_interstitial(cell, sites[choice].position, element)


def _plane(
    task: Task, config: DefectsConfig, kind: str, base: Structure, rng: np.random.Generator
) -> Structure | None:
    """A slab or a fault on a random plane of low indices, as wide as ``max_atoms`` allows."""
    most = config.max_miller
    planes = [
        m for m in itertools.product(range(-most, most + 1), repeat=3)
        if any(m) and np.gcd.reduce(m) == 1 and next(x for x in m if x) > 0
    ]  # fmt: skip
    miller = planes[rng.integers(len(planes))]
    gaps = defects.plane_gaps(base, miller)
    # A narrow gap is as likely to be cut as it is wide.
    termination = int(rng.choice(len(gaps), p=np.array(gaps) / np.sum(gaps)))
    if kind == "surface":
        made = defects.make_surface(
            base,
            miller,
            thickness=config.thickness,
            vacuum=config.vacuum,
            periodic=task.periodic_only,
            termination=termination,
        )
    else:
        # Every other fault is on the way from one stacking to the next.
        shift = rng.uniform(size=2).tolist() if rng.integers(2) else None
        made = defects.make_stacking_fault(
            base, miller, shift=shift, thickness=config.thickness, termination=termination
        )
    if len(made) > config.max_atoms:
        return None
    return roomy_cell(made, config.max_atoms, axes=(0, 1))
