"""``train``, ``distill`` and ``export``: making students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    REFUSED,
    accuracy_text,
    emit,
    example,
    interval,
    note,
    nothing_but_json,
    user_errors,
    wrote,
)
from mlff_distiller.errors import InputError
from mlff_distiller.launch import leads

_PRESET = "Size of the network: tiny, small, base or large."


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Train a student on labelled data. Ctrl-C keeps the state; --resume goes on.",
            "train --data data.h5 --preset base --max-minutes 20 -o runs/si",
            "train --data data.h5 -o runs/si train.yaml",
            "train --data more.h5 --from runs/si -o runs/si-more",
            "train --data bulk.h5 --data surfaces.h5=2 -o runs/both",
            "train --data dft.h5 --from student.pt --refit-energies -o runs/si-dft tune.yaml",
        )
    )(train)
    app.command(
        **example(
            "The whole line from structures to a report, stage by stage; finished stages are kept.",
            "distill si.cif --teacher sevennet-0 --temperature 300:1800 --minutes 30 -o runs/si",
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
    data: list[str] = typer.Option(
        [], "--data", help="Labelled HDF5 file; may be repeated, also with a weight: FILE=0.2."
    ),
    preset: str | None = typer.Option(None, help=_PRESET),
    max_minutes: float | None = typer.Option(None, help="Stop after this time."),
    max_epochs: int | None = typer.Option(None, help="Stop after this many epochs."),
    output: Path = typer.Option(Path("runs/train"), "-o", "--output", help="Run directory."),
    device: str | None = typer.Option(None, help="auto, cpu or cuda."),
    seed: int | None = typer.Option(None, help="Seed of weights and batches."),
    start_from: Path | None = typer.Option(
        None, "--from", help="Start with the weights of this run directory, checkpoint or student."
    ),
    refit_energies: bool = typer.Option(
        False,
        "--refit-energies",
        help="With --from: fit the reference energies to the new labels, which have another zero.",
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

    with user_errors(kept, together=True):
        from mlff_distiller.config import PRESETS, TrainConfig, from_dict, load_yaml, to_dict
        from mlff_distiller.data.frames import weighted_files

        _refuse_to_replace(output, resume, overwrite)
        if resume and start_from:
            raise InputError("--resume and --from exclude each other, got both; give one")
        if refit_energies and not start_from:
            raise InputError(
                "--refit-energies goes with --from, got it alone; new students are fitted anyway"
            )
        mapping = load_yaml(config) if config else {}
        if preset is not None:
            if preset not in PRESETS:
                raise InputError(f"unknown preset {preset!r}; use one of: {', '.join(PRESETS)}")
            mapping["model"] = {**PRESETS[preset], **_section(mapping, "model")}
        if start_from and not mapping.get("model"):
            from mlff_distiller.students.load import read_student

            mapping["model"] = to_dict(read_student(start_from).config)
        given: dict[str, dict[str, Any]] = {
            "data": {"path": weighted_files(data)},
            "training": {
                "max_minutes": max_minutes,
                "max_epochs": max_epochs,
                "device": device,
                "seed": seed,
                "reference_energies": "refit" if refit_energies else None,
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
        if leads():
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
    sources: list[str] = typer.Argument(
        help="One YAML with all sections (see init), or starting structures: files or builtin:NAME."
    ),
    teacher: str | None = typer.Option(
        None, "--teacher", help="Registry name (see info --teachers) or module:Class(kwargs)."
    ),
    temperature: str | None = typer.Option(
        None, help="K that the student must stand, LOW:HIGH or one number."
    ),
    pressure: str | None = typer.Option(None, help="GPa, LOW:HIGH or one number."),
    ensemble: list[str] = typer.Option([], help="nve, nvt or npt; may be repeated."),
    phase: list[str] = typer.Option(
        [], help="crystal, liquid, molecule, slab or cluster; may be repeated."
    ),
    defect: list[str] = typer.Option(
        [], help="vacancy, interstitial, antisite, surface or stacking; may be repeated."
    ),
    minutes: float | None = typer.Option(None, help="Wall-clock time for everything."),
    teacher_calls: int | None = typer.Option(None, help="Frames that the teacher may label."),
    rounds: int | None = typer.Option(None, help="On-policy rounds, at most; 0 for none."),
    preset: str | None = typer.Option(None, help=_PRESET),
    device: str | None = typer.Option(None, help="Of teacher and training: cpu or cuda."),
    seed: int | None = typer.Option(None, help="Seed of everything."),
    output: Path | None = typer.Option(None, "-o", "--output", help="Run directory."),
    fresh: bool = typer.Option(False, "--fresh", help="Do finished stages again as well."),
    as_json: bool = JSON,
) -> None:
    """Structures -> labels -> student -> dynamics -> labels ... -> engines -> report.

    Exit status 1: the student is there, but an acceptance gate fails.
    """
    run_dir = [output or Path("the run directory")]

    def kept() -> str:
        return f"finished stages are kept in {run_dir[0]}; run the same command again to go on"

    with user_errors(kept):
        from mlff_distiller.config import DistillConfig, from_dict, load_yaml
        from mlff_distiller.pipeline.distill import read_starts, run_distillation
        from mlff_distiller.pipeline.plan import plan

        purpose = {
            "temperature": interval(temperature, "--temperature", "300:900"),
            "pressure": interval(pressure, "--pressure", "0:10"),
            "ensembles": ensemble or None,
            "phases": phase or None,
            "defects": defect or None,
        }
        given: dict[str, Any] = {
            "output": str(output) if output else None,
            "teacher": {"name": teacher, "device": device},
            "loop": {"minutes": minutes, "teacher_calls": teacher_calls, "rounds": rounds},
            "model": _preset(preset),
            "training": {"seed": seed, "device": device},
            "sampling": {"seed": seed},
            "data": {"split_seed": seed},
        }
        given = _without_none(given)
        purpose = {k: v for k, v in purpose.items() if v is not None}
        if any(source.endswith((".yaml", ".yml")) for source in sources):
            if len(sources) > 1:
                raise InputError(
                    f"distill takes one YAML or structures, got {' '.join(sources)}; name the "
                    "structures in the YAML, as a list"
                )
            mapping = load_yaml(Path(sources[0]))
            for key, value in {**given, "purpose": purpose}.items():
                if value:
                    section = isinstance(value, dict)
                    mapping[key] = {**_section(mapping, key), **value} if section else value
            settings = from_dict(DistillConfig, mapping)
        else:
            settings = plan(sources, read_starts(sources), purpose=purpose, given=given)
        run_dir[0] = Path(settings.output)
        with nothing_but_json(as_json):
            metrics = run_distillation(settings, fresh=fresh, quiet=as_json)
        emit(metrics, as_json)
        if metrics["validation"] is not None and not metrics["validation"]["passed"]:
            typer.echo(_refused(run_dir[0], settings.loop.minutes), err=True)
            raise typer.Exit(REFUSED)


def _refused(run_dir: Path, minutes: float | None) -> str:
    """What to do with a student that fails a gate."""
    more = f"--minutes {2 * minutes:g}" if minutes else "more rounds (loop.rounds)"
    return (
        f"the student fails gates: do not use it where they matter; distill again with {more} into "
        f"another directory, or ask for less (purpose, acceptance in {run_dir / 'config.yaml'})"
    )


def _preset(name: str | None) -> dict[str, Any]:
    from mlff_distiller.config import PRESETS, ModelConfig, to_dict

    if name is None:
        return {}
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; use one of: {', '.join(PRESETS)}")
    return to_dict(ModelConfig(**PRESETS[name]))


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    """Keys that were given; sections without any are left out."""
    result = {}
    for key, value in mapping.items():
        inner = _without_none(value) if isinstance(value, dict) else value
        if inner is not None and inner != {}:
            result[key] = inner
    return result


def export(
    run_dir: Path = typer.Argument(help="Run directory of `train`, or a checkpoint."),
    output: Path = typer.Option(Path("student.pt"), "-o", "--output", help="File to write."),
    dtype: str | None = typer.Option(None, help="float32 or float64; as trained if left out."),
    uncertainty: bool = typer.Option(
        True, help="Fit uncertainties of atoms to the data that it was trained on."
    ),
    data: Path | None = typer.Option(
        None, "--data", help="These data, if they are not where they were."
    ),
    as_json: bool = JSON,
) -> None:
    """Write a trained student as one file."""
    with user_errors(f"{output} was not written"):
        from mlff_distiller.students.export import export_run

        metadata = export_run(
            run_dir,
            output,
            dtype,
            uncertainty=uncertainty,
            data=data,
            say=None if data else note,
        )
        text = wrote(output, f"{metadata['num_parameters']:,} parameters, {metadata['dtype']}")
        emit({"path": output, **metadata}, as_json, text)
