"""[7] [8] The student in LAMMPS, OpenMM and ASE: agreement, drift and speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.config import EnginesConfig, TeacherConfig
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.evaluation import plots
from mlff_distiller.evaluation.engines import run_engines
from mlff_distiller.pipeline.stage import Hashed, Say, Station

DRIFT, NPT, SPEED = "energy_drift.png", "npt.png", "speed.png"


@dataclass(frozen=True)
class Inputs:
    """What the runs depend on."""

    student: Hashed[Path]
    data: Hashed[Path]
    start: Hashed[Structure]
    engines: EnginesConfig
    teacher: str
    options: dict[str, Any]
    device: str
    """Of the teacher, whose speed is measured."""


@dataclass(frozen=True)
class Result:
    """See :func:`mlff_distiller.evaluation.engines.run_engines`."""

    engines: dict[str, Any]


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Run the engines and time the teacher."""
    data = HDF5Dataset(inputs.data.value)
    start = inputs.start.value
    engines, trajectories = run_engines(
        inputs.student.value,
        start,
        inputs.engines,
        TeacherConfig(name=inputs.teacher, device=inputs.device, options=inputs.options),
        agreement_frame=max(data.subset("test") or list(data), key=_roughness),
        threads=inputs.engines.threads,
        say=say,
    )
    plots.save(plots.energy_drift(trajectories), output / DRIFT)
    npt = [t for t in trajectories if t.ensemble == "npt"]
    if npt:
        plots.save(plots.volume_over_time(npt[0]), output / NPT)
    costs = {**engines["seconds_per_step"], "teacher": engines["teacher_seconds"]}
    costs = {k: 1e6 * v / len(start) for k, v in costs.items() if v is not None}
    plots.save(plots.speed_bars(costs, inputs.teacher), output / SPEED)
    return Result(engines)


def _roughness(structure: Structure) -> float:
    return 0.0 if structure.forces is None else float(np.abs(structure.forces).mean())


STATION = Station("engines", work, Result, [DRIFT, SPEED])
