"""[8] Errors of the student on frames that it has not seen: parity and learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlff_distiller.data import HDF5Dataset
from mlff_distiller.evaluation import accuracy, plots, predict
from mlff_distiller.pipeline.stage import Hashed, Say, Station
from mlff_distiller.students import StudentForceField
from mlff_distiller.training.history import read_history

PARITY, CURVE = "parity.png", "learning_curve.png"


@dataclass(frozen=True)
class Inputs:
    """What errors and figures depend on."""

    student: Hashed[Path]
    data: Hashed[Path]
    history: Hashed[Path]


@dataclass(frozen=True)
class Result:
    """See :func:`mlff_distiller.evaluation.accuracy`."""

    errors: dict[str, Any]


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Evaluate the test split, or the next best where there is none."""
    data = HDF5Dataset(inputs.data.value)
    frames = data.subset("test") or data.subset("valid") or list(data)
    predicted = predict(StudentForceField.load(inputs.student.value), frames)
    plots.save(plots.parity(frames, predicted), output / PARITY)
    plots.save(plots.learning_curve(read_history(inputs.history.value)), output / CURVE)
    return Result(accuracy(frames, predicted))


STATION = Station("evaluate", work, Result, [PARITY, CURVE])
