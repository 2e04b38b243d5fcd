"""Which systems are measured, how large, and where everything is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import random_student
from benchmarks.lammps.launch import Case
from mlff_distiller.lammps import lammps_command
from mlff_distiller.sampling.builtin import water_box

Result = dict[str, Any]


class NotMeasuredError(Exception):
    """Something that this measurement needs is missing; the message says what."""


@dataclass(frozen=True)
class Size:
    """How much work a run of the benchmark is."""

    water: int  # molecules along an edge of the box that is timed
    crystal: int  # cubic cells along an edge
    steps: int
    rounds: int
    drift_cells: int
    drift_steps: int
    drift_seeds: int
    large_water: int
    large_steps: int
    flat_steps: int


FULL = Size(8, 4, 30, 7, 3, 10_000, 5, 33, 20, 10_000)
QUICK = Size(3, 2, 4, 2, 2, 40, 2, 5, 2, 60)


@dataclass(frozen=True)
class Setup:
    """Where things are and how large they shall be."""

    size: Size
    folder: Path  # for students, inputs and outputs of lmp
    trained: Path  # a trained student of silicon
    peers: Path  # cache of benchmarks/peers
    install: bool  # whether a missing peer may be installed
    rounds: int  # of what is timed

    def student(self, *elements: int, zbl: bool = False) -> Path:
        """A student of the default network with random weights."""
        name = "-".join(map(str, elements))
        path = self.folder / f"student-{name}{'-zbl' if zbl else ''}.pt"
        if not path.exists():
            random_student(path, elements, zbl=zbl)
        return path

    def water(self, per_side: int, *, zbl: bool = False, style: str = "", **options: Any) -> Case:
        """Water with our pair style."""
        pair = f"pair_style painn {style}\npair_coeff * * {self.student(1, 8, zbl=zbl)} {{names}}"
        atoms = water_box(per_side).to_atoms()
        return Case(f"water-{len(atoms)}", atoms, pair, tuple(lammps_command()), **options)


def on_ranks(case: Case, ranks: int) -> Case:
    """The same case on several MPI ranks."""
    name = f"{case.name}-np{ranks}"
    return replace(case, name=name, command=tuple(lammps_command(ranks)))
