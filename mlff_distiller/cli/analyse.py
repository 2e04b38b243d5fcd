"""``evaluate`` and ``info``: looking at students and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    check_device,
    emit,
    example,
    user_errors,
    wrote,
)
from mlff_distiller.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Errors of a student on labelled frames, with parity plots.",
            "evaluate student.pt --data data.h5 -o evaluation",
        )
    )(evaluate)
    app.command(
        **example(
            "What is in a file: exported student, HDF5 data, checkpoint, run directory.",
            "info student.pt",
            "info --teachers",
        )
    )(info)


def evaluate(
    model: Path = typer.Argument(help="Exported student, run directory or checkpoint."),
    data: Path = typer.Option(..., "--data", help="Labelled HDF5 or structure file."),
    split: str | None = typer.Option(
        None, help="train, valid, test or all; test where the file has splits."
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Directory for metrics.json and parity.png."
    ),
    batch_size: int = typer.Option(8, min=1, help="Structures evaluated together."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    as_json: bool = JSON,
) -> None:
    """Errors of a student on labelled frames."""
    with user_errors("nothing was written"):
        import dataclasses

        from mlff_distiller.data.coverage import outside
        from mlff_distiller.evaluation import accuracy, predict
        from mlff_distiller.students import StudentForceField
        from mlff_distiller.students.load import read_training_metadata

        student = StudentForceField.load(model).to(check_device(device))
        frames, used = labelled_frames(data, split)
        predicted = predict(student, frames, batch_size=batch_size)
        result: dict[str, Any] = {"model": model, "data": data, "split": used}
        result.update(accuracy(frames, predicted))
        lines = [f"{len(frames)} frames ({used}) of {data}", *_error_lines(result)]
        found = outside(read_training_metadata(model), frames)
        if found is not None:
            result["outside_of_training"] = dataclasses.asdict(found)
            lines += _outside_lines(found, len(frames))
        if output is not None:
            import json

            from mlff_distiller.evaluation import plots
            from mlff_distiller.files import atomic_write_text, jsonable

            output.mkdir(parents=True, exist_ok=True)
            plots.save(plots.parity(frames, predicted), output / "parity.png")
            atomic_write_text(output / "metrics.json", json.dumps(jsonable(result), indent=1))
            lines += [wrote(output / "metrics.json"), wrote(output / "parity.png")]
        emit(result, as_json, "\n".join(lines))


def labelled_frames(data: Path, split: str | None) -> tuple[list[Any], str]:
    """Frames of a labelled file, and the split they are. Raises InputError."""
    from mlff_distiller.data import HDF5Dataset
    from mlff_distiller.data.io import read_structures

    if data.suffix in (".h5", ".hdf5"):
        dataset = HDF5Dataset(data)
        if split is None:
            split = "test" if len(dataset.splits.get("test", [])) else "all"
        frames = list(dataset) if split == "all" else dataset.subset(split)
    else:
        if split not in (None, "all"):
            raise InputError(f"{data} has no splits, got --split {split}; leave --split out")
        frames, split = read_structures(data), "all"
    if not any(s.energy is not None or s.forces is not None for s in frames):
        raise InputError(
            f"{data} must hold labels, got none; make them with "
            f"`mlff-distiller label {data} --teacher NAME -o labelled.h5`"
        )
    return frames, split


def _outside_lines(found: Any, number: int) -> list[str]:
    if not found.frames:
        return []
    lines = [
        f"warning: {len(found.frames)} of {number} frames lie outside of what the student was "
        "trained on; errors there are those of a guess"
    ]
    return lines + [f"  {count} by {kind}: {text}" for kind, (count, text) in found.reasons.items()]


def _error_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, unit in (
        ("force", "mev_per_ang"),
        ("energy", "mev_per_atom"),
        ("stress", "gpa"),
    ):
        mae, rmse = result[f"{name}_mae_{unit}"], result[f"{name}_rmse_{unit}"]
        if mae is not None:
            shown = unit.replace("mev", "meV").replace("_per_", "/").replace("ang", "Å")
            shown = shown.replace("gpa", "GPa")
            lines.append(f"{name:<8} MAE {mae:9.4g}   RMSE {rmse:9.4g}  {shown}")
    for symbol, element in result["per_element"].items():
        lines.append(
            f"  {symbol:<6} force MAE {element['force_mae_mev_per_ang']:.4g} meV/Å "
            f"({element['num_atoms']} atoms)"
        )
    return lines


def info(
    path: Path | None = typer.Argument(None, help="File or run directory."),
    teachers: bool = typer.Option(False, "--teachers", help="List the teachers instead."),
    as_json: bool = JSON,
) -> None:
    """What is in a file."""
    with user_errors():
        from mlff_distiller.cli import describe

        if teachers:
            result, text = describe.teachers()
        elif path is None:
            raise InputError("info needs a file or --teachers, got neither; try info student.pt")
        else:
            result, text = describe.anything(path)
        emit(result, as_json, text)
