"""[8] The student against the teacher on frames that its own dynamics visited, before it learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.evaluation import predict
from mlff_distiller.pipeline.choose import VISITED
from mlff_distiller.pipeline.stage import Hashed, Say, Station
from mlff_distiller.students import StudentForceField

_RANGES = 3


@dataclass(frozen=True)
class Inputs:
    """What the errors depend on."""

    student: Hashed[Path]
    labels: Hashed[Path]


@dataclass(frozen=True)
class Result:
    """Errors on the frames that were drawn at random."""

    visited: list[dict[str, Any]]
    """See :func:`errors_by_temperature`; empty if no run stayed alive."""


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Compare forces."""
    frames = [f for f in HDF5Dataset(inputs.labels.value) if f.info.get("why") == VISITED]
    if not frames:
        return Result([])
    found = predict(StudentForceField.load(inputs.student.value), frames)
    errors = [np.abs(_forces(p) - _forces(f)) for p, f in zip(found, frames, strict=True)]
    rows = errors_by_temperature(frames, errors)
    text = ", ".join(
        f"{row['temperature']:.0f} K {row['force_mae_mev_per_ang']:.0f}" for row in rows
    )
    say(f"force MAE on frames that the student visited, meV/Å: {text}")
    return Result(rows)


def errors_by_temperature(
    frames: Sequence[Structure], errors: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Force errors in up to three equal ranges of the thermostats' temperature, ascending.

    Args:
        frames: with the teacher's forces and ``info["temperature"]``.
        errors: (n_i, 3) absolute differences, eV/Å.

    Returns:
        ``temperature`` (K, mean of the range), ``frames``, ``force_mae_mev_per_ang`` (of the
        components), ``mean_force_ev_per_ang`` (mean magnitude of the teacher's forces) and
        ``mean_component_mev_per_ang`` (of their components).
    """
    if not frames:
        return []
    temperatures = np.array([float(f.info["temperature"]) for f in frames])
    edges = np.linspace(temperatures.min(), temperatures.max(), _RANGES + 1)
    ranges = np.clip(np.searchsorted(edges, temperatures, side="right") - 1, 0, _RANGES - 1)
    rows = []
    for k in np.unique(ranges):
        some = np.flatnonzero(ranges == k).tolist()
        sizes = [np.linalg.norm(_forces(frames[i]), axis=1) for i in some]
        rows.append(
            {
                "temperature": float(temperatures[some].mean()),
                "frames": len(some),
                "force_mae_mev_per_ang": 1e3
                * float(np.concatenate([errors[i].ravel() for i in some]).mean()),
                "mean_force_ev_per_ang": float(np.concatenate(sizes).mean()),
                "mean_component_mev_per_ang": 1e3
                * float(np.abs(np.concatenate([_forces(frames[i]) for i in some])).mean()),
            }
        )
    return rows


def _forces(frame: Structure) -> np.ndarray:
    assert frame.forces is not None
    return frame.forces


STATION = Station("measure", work, Result, [])
