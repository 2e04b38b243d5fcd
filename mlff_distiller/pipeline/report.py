"""[8] What all stations found -> ``metrics.json`` and ``report.html``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlff_distiller.config import AcceptanceConfig
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.engines import headline
from mlff_distiller.evaluation.gates.plots import save_figures
from mlff_distiller.evaluation.gates.verdict import validation
from mlff_distiller.evaluation.report import write_report
from mlff_distiller.files import atomic_write_text, jsonable
from mlff_distiller.pipeline import engines, evaluate, export, fit, gates, label, sample
from mlff_distiller.pipeline.rounds import Outcome
from mlff_distiller.purpose import PurposeConfig
from mlff_distiller.students.file import read_metadata

_FIGURES = (evaluate.CURVE, evaluate.PARITY, engines.DRIFT, engines.NPT, engines.SPEED)
_HEADLINES = ("force_mae_mev_per_ang", "energy_mae_mev_per_atom", "stress_mae_gpa")


@dataclass(frozen=True)
class Inputs:
    """The results of the stations."""

    teacher: str
    structures: list[str]
    sampled: sample.Result
    labelled: label.Result
    num_frames: dict[str, int]
    """Split -> frames of all rounds."""
    rounds: Outcome
    fitted: fit.Result
    test: evaluate.Result
    engines: engines.Result
    gates: gates.Result | None
    purpose: PurposeConfig
    acceptance: AcceptanceConfig
    given: list[Structure]
    """Starting structures."""
    seconds: dict[str, float]
    """Station -> seconds, of those after and before the rounds."""
    total_seconds: float
    """Of all stations, those of the rounds too."""


def write(inputs: Inputs, output: Path) -> dict[str, Any]:
    """Write both files; the content of ``metrics.json``."""
    measured = [] if inputs.gates is None else gates.gates_of(inputs.gates)
    verdict = None
    if inputs.gates is not None:
        verdict = validation(
            measured, inputs.purpose, inputs.acceptance, inputs.given, teacher=inputs.teacher
        )
    pictures, captions = save_figures(measured, output)
    metrics: dict[str, Any] = jsonable(
        {
            **{key: inputs.test.errors[key] for key in _HEADLINES},
            **headline(inputs.engines.engines),
            "teacher": inputs.teacher,
            "structures": ", ".join(inputs.structures),
            "sources": inputs.sampled.sources,
            "num_frames": inputs.num_frames,
            "teacher_calls": inputs.rounds.teacher_calls or inputs.labelled.num_labelled,
            "rounds": inputs.rounds.rounds,
            "rounds_stopped": inputs.rounds.stopped,
            "not_sampled": inputs.sampled.rejected,
            "rejected": inputs.labelled.rejected,
            "training": inputs.fitted.training,
            "test": inputs.test.errors,
            "engines": inputs.engines.engines,
            "validation": None if verdict is None else {**verdict, "captions": captions},
            "stage_seconds": inputs.seconds,
            "total_seconds": inputs.total_seconds,
        }
    )
    atomic_write_text(output / "metrics.json", json.dumps(metrics, indent=1))
    files = [output / name for name in _FIGURES]
    names = [Path(source.removeprefix("builtin:")).name for source in inputs.structures]
    system = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"
    write_report(
        output / "report.html",
        title=f"{inputs.teacher} distilled on {system}",
        metrics=metrics,
        card=read_metadata(output / export.STUDENT),
        figures={**pictures, **{f.stem: f.read_bytes() for f in files if f.exists()}},
        model_path=str(output / export.STUDENT),
    )
    return metrics
