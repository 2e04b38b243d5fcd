"""``train``, ``distill`` and ``export``: making students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import JSON, accuracy_text, emit, example, user_errors, wrote
from mlff_distiller.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Train a student on labelled data. Ctrl-C keeps the state; --resume goes on.",
            "train --data data.h5 --preset base --max-minutes 20 -o runs/si",
            "train --data data.h5 -o runs/si train.yaml",
            "train --data more.h5 --from runs/si -o runs/si-more",
        )
    )(train)
    app.command(
        **example(
            "The whole line from structures to a report, stage by stage; finished stages are kept.",
            "distill examples/demo_silicon.yaml",
        )
    )(distill)
    app.command(
        **example(
            "Write a trained student as one file for LAMMPS, OpenMM and ASE.",
            "export runs/si -o student.pt",
        )
    )(export)


def train(
    config: Path | None = typer.Argument(
        None, help="YAML with the sections data, model and training."
    ),
    data: Path | None = typer.Option(None, "--data", help="Labelled HDF5 file."),
    preset: str | None = typer.Option(None, help="Size of the network: small, base or large."),
    max_minutes: float | None = typer.Option(None, help="Stop after this time."),
    max_epochs: int | None = typer.Option(None, help="Stop after this many epochs."),
    output: Path = typer.Option(Path("runs/train"), "-o", "--output", help="Run directory."),
    device: str | None = typer.Option(None, help="auto, cpu or cuda."),
    seed: int | None = typer.Option(None, help="Seed of weights and batches."),
    start_from: Path | None = typer.Option(
        None, "--from", help="Start with the weights of this run directory, checkpoint or student."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Start anew where a run is; its checkpoints move to *.old."
    ),
    as_json: bool = JSON,
) -> None:
    """Train a student on labelled data."""

    def kept() -> str:
        if (output / "last.ckpt").exists():
            return f"the state is kept in {output}; go on with the same command and --resume"
        return "stopped before the first checkpoint; nothing is kept"

    with user_errors(kept):
        from mlff_distiller.config import PRESETS, TrainConfig, from_dict, load_yaml, to_dict

        _refuse_to_replace(output, resume, overwrite)
        if resume and start_from:
            raise InputError("--resume and --from exclude each other, got both; give one")
        mapping = load_yaml(config) if config else {}
        if preset is not None:
            if preset not in PRESETS:
                raise InputError(f"unknown preset {preset!r}; use one of: {', '.join(PRESETS)}")
            mapping["model"] = {**PRESETS[preset], **_section(mapping, "model")}
        if start_from and not mapping.get("model"):
            from mlff_distiller.students.load import read_student

            mapping["model"] = to_dict(read_student(start_from).config)
        given: dict[str, dict[str, Any]] = {
            "data": {"path": str(data) if data else None},
            "training": {
                "max_minutes": max_minutes,
                "max_epochs": max_epochs,
                "device": device,
                "seed": seed,
            },
        }
        for section, values in given.items():
            chosen = {k: v for k, v in values.items() if v is not None}
            if chosen:
                mapping[section] = {**_section(mapping, section), **chosen}
        settings = from_dict(TrainConfig, mapping)
        if settings.data.path is None:
            raise InputError("training needs labelled data, got none; add --data data.h5")
        from mlff_distiller.training import train as fit

        result = fit(settings, output, resume=resume, start_from=start_from)
        lines = [
            f"stopped by {result['stopped']} after {result['epochs']} epochs, best {result['best_epoch']}: "
            + accuracy_text(result["validation"]),
            wrote(output / "best.ckpt", f"{result['num_parameters']:,} parameters"),
            f"next: mlff-distiller export {output} -o student.pt",
        ]
        emit(dict(result), as_json, "\n".join(lines))


def _refuse_to_replace(output: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other, got both; give one")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output must be a directory, got the file {output}; name another")
    found = [n for n in ("best.ckpt", "last.ckpt") if (output / n).exists()]
    if found and not resume and not overwrite:
        raise InputError(
            f"{output} must not hold a run yet, got {' and '.join(found)}; go on with --resume, "
            "start anew with --overwrite, or name another directory"
        )


def _section(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    section = mapping.get(name)
    if section is not None and not isinstance(section, dict):
        raise InputError(f"{name} must be a mapping of keys, got {section!r}; indent its keys")
    return section or {}


def distill(
    config: Path = typer.Argument(help="YAML with all sections; see examples/."),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Run directory instead of the one in the file."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Do finished stages again as well."),
    as_json: bool = JSON,
) -> None:
    """Structures -> labels -> student -> engines -> report."""
    run_dir = [output or Path("the run directory")]

    def kept() -> str:
        return f"finished stages are kept in {run_dir[0]}; run the same command again to go on"

    with user_errors(kept):
        import dataclasses

        from mlff_distiller.config import DistillConfig, load_config

        settings = load_config(config, DistillConfig)
        if output is not None:
            settings = dataclasses.replace(settings, output=str(output))
        run_dir[0] = Path(settings.output)
        from mlff_distiller.pipeline.distill import run_distillation

        metrics = run_distillation(settings, fresh=fresh, quiet=as_json)
        emit(metrics, as_json)


def export(
    run_dir: Path = typer.Argument(help="Run directory of `train`, or a checkpoint."),
    output: Path = typer.Option(Path("student.pt"), "-o", "--output", help="File to write."),
    dtype: str | None = typer.Option(None, help="float32 or float64; as trained if left out."),
    as_json: bool = JSON,
) -> None:
    """Write a trained student as one file."""
    with user_errors(f"{output} was not written"):
        from mlff_distiller.students.export import export_run

        metadata = export_run(run_dir, output, dtype)
        text = wrote(output, f"{metadata['num_parameters']:,} parameters, {metadata['dtype']}")
        emit({"path": output, **metadata}, as_json, text)
