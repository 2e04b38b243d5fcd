"""[6] Best checkpoint -> ``student.pt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlff_distiller.config import ExportConfig
from mlff_distiller.pipeline.stage import Hashed, Say, Station
from mlff_distiller.students.export import export_run

STUDENT = "student.pt"


@dataclass(frozen=True)
class Inputs:
    """What the file depends on."""

    checkpoint: Hashed[Path]
    data: Hashed[Path]
    """What it was trained on, for the uncertainties of atoms."""
    settings: ExportConfig


@dataclass(frozen=True)
class Result:
    """Nothing but the file."""


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Write the student for LAMMPS, OpenMM and ASE."""
    export_run(
        inputs.checkpoint.value,
        output / STUDENT,
        uncertainty=inputs.settings.uncertainty,
        data=inputs.data.value,
        say=lambda line: say(f"note: {line}"),
    )
    return Result()


STATION = Station("export", work, Result, [STUDENT])
