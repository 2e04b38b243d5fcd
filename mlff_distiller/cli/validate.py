"""``validate``: the acceptance gates of a student, alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    REFUSED,
    check_device,
    emit,
    example,
    interval,
    note,
    nothing_but_json,
    parse_options,
    say,
    user_errors,
    wrote,
)
from mlff_distiller.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "May this student be used? Measure it beside its teacher.",
            "validate student.pt si.cif --teacher sevennet-0 --temperature 300:1800",
            "validate student.pt water.xyz --teacher gfn2-xtb --temperature 300:500 -o validation",
        )
    )(validate)


def validate(
    model: Path = typer.Argument(help="Exported student."),
    sources: list[str] = typer.Argument(help="Starting structures: files or builtin:NAME."),
    teacher: str = typer.Option(
        ..., "--teacher", help="Registry name (see info --teachers) or module:Class(kwargs)."
    ),
    temperature: str | None = typer.Option(
        None, help="K that the student must stand, LOW:HIGH or one number [default: 300:900]."
    ),
    pressure: str | None = typer.Option(None, help="GPa, LOW:HIGH or one number [default: 0]."),
    phase: list[str] = typer.Option(
        [], help="crystal, liquid, molecule, slab or cluster; may be repeated."
    ),
    defect: list[str] | None = typer.Option(
        None, help="vacancy, surface ...; may be repeated [default: both, of crystals]."
    ),
    timestep: float | None = typer.Option(
        None, help="fs [default: 0.5 with hydrogen, 1 or 2 without]."
    ),
    data: Path | None = typer.Option(
        None, "--data", help="Labelled frames that training never saw; of HDF5 the test split."
    ),
    config: Path | None = typer.Option(
        None, help="YAML with the sections purpose and acceptance, e.g. config.yaml of a run."
    ),
    gate: list[str] = typer.Option([], help="Only these gates; may be repeated."),
    skip: list[str] = typer.Option([], help="Without these gates; may be repeated."),
    picoseconds: float | None = typer.Option(None, help="Length of the runs for stability."),
    seeds: int | None = typer.Option(None, help="Number of the runs for stability."),
    engine: str | None = typer.Option(
        None, help="lammps, ase or openmm [default: lammps where it is installed]."
    ),
    device: str = typer.Option("cpu", help="Of the teacher: cpu or cuda."),
    option: list[str] = typer.Option([], "-O", help="KEY=VALUE for the teacher."),
    workers: int = typer.Option(0, min=0, help="Runs at the same time; 0: one for each CPU."),
    output: Path = typer.Option(
        Path("validation"), "-o", "--output", help="Directory for the results."
    ),
    as_json: bool = JSON,
) -> None:
    """May this student be used? Exit status 1: no, a gate fails.

    What the teacher gave is kept in the output directory and not computed again.
    """
    kept = f"what the teacher gave is kept in {output}; the same command goes on"
    with user_errors(kept):
        if output.exists() and not output.is_dir():
            raise InputError(f"--output must be a directory, got the file {output}; name another")
        from mlff_distiller.config import TeacherConfig
        from mlff_distiller.elements import check_elements
        from mlff_distiller.evaluation.gates import run_gates
        from mlff_distiller.evaluation.gates.verdict import print_gates, validation
        from mlff_distiller.sampling import starting_structures
        from mlff_distiller.students.file import read_metadata
        from mlff_distiller.workers import mapper

        card = read_metadata(model)
        structures = [s for source in sources for s in starting_structures(source, note)]
        for structure in structures:
            check_elements(structure.atomic_numbers, card["elements"], str(model))
        purpose, acceptance = _settings(
            structures,
            config,
            {
                "temperature": interval(temperature, "--temperature", "300:900"),
                "pressure": interval(pressure, "--pressure", "0:10"),
                "phases": phase or None,
                "defects": defect,
                "timestep": timestep,
            },
            {
                "gates": gate or None,
                "skip": skip or None,
                "stability_time": picoseconds,
                "stability_seeds": seeds,
            },
        )
        asked = TeacherConfig(teacher, check_device(device), parse_options(option))
        held_out = _held_out(data)
        start = time.perf_counter()
        with nothing_but_json(as_json):
            gates = run_gates(
                model,
                asked,
                structures,
                purpose,
                acceptance,
                cache=output / "measured.json",
                held_out=held_out,
                engine=engine,
                pool=mapper(workers),
                say=say,
            )
        result = validation(
            gates,
            purpose,
            acceptance,
            structures,
            student=str(model),
            teacher=teacher,
            structures_given=sources,
            seconds=round(time.perf_counter() - start, 1),
        )
        files = _write(output, result, gates, card, model)
        if not as_json:
            print_gates(gates, result["verdict"])
        emit({**result, "files": files}, as_json, "\n".join(wrote(file) for file in files))
        if not result["passed"]:
            raise typer.Exit(REFUSED)


def _settings(
    structures: list[Any],
    config: Path | None,
    purpose: dict[str, Any],
    acceptance: dict[str, Any],
) -> tuple[Any, Any]:
    """What is given on the command line, else in the file, else the defaults."""
    from mlff_distiller.config import AcceptanceConfig, PurposeConfig, from_dict, load_yaml
    from mlff_distiller.pipeline.plan import timestep_for
    from mlff_distiller.purpose import phase_of

    mapping = load_yaml(config) if config else {}
    chosen: dict[str, Any] = {"timestep": timestep_for(structures)}
    if any(phase_of(s) == "crystal" for s in structures):
        chosen["defects"] = ["vacancy", "surface"]
    parts = []
    for name, defaults, given in (
        ("purpose", chosen, purpose),
        ("acceptance", {}, acceptance),
    ):
        section = mapping.get(name) or {}
        if not isinstance(section, dict):
            raise InputError(f"{name} must be a mapping of keys, got {section!r}; indent its keys")
        values = {k: v for k, v in given.items() if v is not None}
        parts.append({**defaults, **section, **values})
    return (
        from_dict(PurposeConfig, parts[0], "purpose"),
        from_dict(AcceptanceConfig, parts[1], "acceptance"),
    )


def _held_out(data: Path | None) -> list[Any] | None:
    if data is None:
        return None
    from mlff_distiller.cli.analyse import labelled_frames

    return labelled_frames(data, None)[0]


def _write(
    output: Path, result: dict[str, Any], gates: Any, card: dict[str, Any], model: Path
) -> list[Path]:
    from mlff_distiller.evaluation.gates.plots import save_figures
    from mlff_distiller.evaluation.report import write_report
    from mlff_distiller.files import atomic_write_text, jsonable

    output.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output / "validation.json", json.dumps(jsonable(result), indent=1))
    pictures, captions = save_figures(gates, output)
    write_report(
        output / "validation.html",
        title=f"{model.name} beside {result['teacher']}",
        metrics={"validation": {**result, "captions": captions}},
        card=card,
        figures=pictures,
        model_path=str(model),
    )
    names = ["validation.html", "validation.json", *(f"{name}.png" for name in pictures)]
    return [output / name for name in names]
