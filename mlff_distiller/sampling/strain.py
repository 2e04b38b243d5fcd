"""Strained copies: volumes from compression to expansion, and tensors with shear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlff_distiller.data.bonds import Molecules, find_molecules
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import strained, unlabelled
from mlff_distiller.sampling.rattle import rattled
from mlff_distiller.sampling.task import ATTEMPTS, Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 4


@dataclass(frozen=True)
class StrainConfig(Settings, path="sampling.strain"):
    """Strained copies of periodic structures: equation of state and elastic constants."""

    number: int = setting(
        0, "Frames; every other one is a step of a ladder of volumes, the rest have shear.", least=0
    )
    linear: list[float] = setting(
        [-0.12, 0.12],
        "First and last linear strain of the ladder; the volume goes with (1 + strain)^3.",
        above=-0.5,
        below=1,
        length=2,
    )
    shear: float = setting(
        0.08, "Largest component of the tensors, shear and normal.", least=0, below=0.5
    )
    rattle_stdev: float = setting(
        0.03, "Standard deviation of a displacement on top.", unit="Å", least=0
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.linear
        if low >= high:
            raise InputError(
                f"linear must go from compression to expansion, got {self.linear}; set "
                "sampling.strain.linear to e.g. [-0.12, 0.12]"
            )


def strain_frames(task: Task, config: StrainConfig) -> list[Structure]:
    """``config.number`` strained and rattled copies; ``info`` holds ``kind`` and ``strain``.

    Molecules of a liquid or of a molecular crystal move as rigid bodies: a strain of their bonds
    would say nothing about pressure.

    Raises:
        InputError: no starting structure that is periodic in three directions and without held
            atoms.
    """
    if not config.number:
        return []
    parents = [i for i, s in enumerate(task.base) if s.pbc.all() and s.fixed is None]
    if not parents:
        raise InputError(
            "sampling.strain needs a starting structure with three periodic directions and without "
            "held atoms, got none; set sampling.strain.number to 0"
        )
    molecules = {i: find_molecules(task.base[i]) for i in parents}
    ladder = -(-config.number // 2)
    steps = -(-ladder // len(parents))
    frames = []
    for k in range(config.number):
        parent = parents[(k // 2) % len(parents)]
        step = k // 2 // len(parents)
        kind = "shear" if k % 2 else "volume"
        rng = task.rng(config.seed, _STREAM, k)
        for _ in range(ATTEMPTS):
            if kind == "volume":
                low, high = config.linear
                linear = low + (high - low) * (step / (steps - 1) if steps > 1 else 0.5)
                strain = linear * np.eye(3)
            else:
                strain = rng.uniform(-config.shear, config.shear, (3, 3))
                strain = np.triu(strain) + np.triu(strain, 1).T
            frame = strained_molecules(task.base[parent], strain, molecules[parent])
            frame = rattled(frame, rng, config.rattle_stdev)
            if task.accept(frame):
                info = {"kind": kind, "strain": np.round(strain, 6).tolist()}
                frames.append(task.frame(frame, "strain", parent, k, **info))
                break
    return frames


def strained_molecules(structure: Structure, strain: np.ndarray, molecules: Molecules) -> Structure:
    """Cell and centres of molecules deformed by I + strain; networks are deformed as a whole."""
    if not molecules.finite:
        return strained(structure, strain)
    whole = structure.positions + molecules.images @ structure.cell
    sizes = np.bincount(molecules.labels)
    centres = np.stack(
        [np.bincount(molecules.labels, whole[:, axis]) / sizes for axis in range(3)], axis=1
    )
    moved = centres @ strain
    return unlabelled(
        structure,
        positions=whole + moved[molecules.labels],
        cell=structure.cell @ (np.eye(3) + strain),
    )
