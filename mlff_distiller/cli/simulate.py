"""``md`` and ``bench``: students at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    OVERWRITE,
    emit,
    example,
    note,
    refuse_to_replace,
    say,
    user_errors,
    wrote,
)
from mlff_distiller.errors import InputError

_MOST_ATOMS = 10**8


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Molecular dynamics with a student in ASE, LAMMPS or OpenMM.",
            "md student.pt start.extxyz --engine lammps --ensemble npt --steps 10000 -o traj.extxyz",
        )
    )(md)
    app.command(
        **example(
            "Time a student: by engine against its teacher, or by system size.",
            "bench student.pt start.extxyz --teacher sevennet-0",
            "bench student.pt builtin:silicon --sizes 64,512,4096 --engine lammps",
        )
    )(bench)


def md(
    model: Path = typer.Argument(help="Exported student."),
    structure: str = typer.Argument(
        help="Structure file, or builtin:NAME; the last frame is used."
    ),
    engine: str = typer.Option("ase", help="ase, lammps or openmm."),
    ensemble: str = typer.Option("nvt", help="nve, nvt or npt."),
    steps: int = typer.Option(1000, help="Number of steps."),
    temperature: float = typer.Option(300.0, help="K."),
    pressure: float = typer.Option(1.0, help="bar, for npt."),
    timestep: float = typer.Option(1.0, help="fs."),
    interval: int = typer.Option(10, help="Steps between two frames."),
    warmup: int = typer.Option(0, help="Thermostatted steps before the run."),
    dtype: str = typer.Option("float32", help="float32 or float64."),
    threads: int = typer.Option(0, help="Threads; 0 leaves it to the engine."),
    seed: int = typer.Option(1, help="Seed of the velocities."),
    output: Path = typer.Option(
        Path("trajectory.extxyz"), "-o", "--output", help="Trajectory to write."
    ),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """Molecular dynamics with a student."""
    kept = [f"the run was stopped and {output} was not written"]
    with user_errors(lambda: kept[0]):
        from mlff_distiller.data.io import write_structures
        from mlff_distiller.dynamics import MDSettings, RunInterrupted, run_md
        from mlff_distiller.sampling import starting_structures

        settings = MDSettings(
            ensemble=ensemble.lower(),
            steps=steps,
            temperature=temperature,
            pressure=pressure,
            timestep=timestep,
            interval=interval,
            warmup_steps=warmup,
            dtype=dtype,
            threads=threads,
            seed=seed,
        )
        refuse_to_replace(output, overwrite)
        start = starting_structures(structure, note)[-1]
        try:
            trajectory = run_md(engine.lower(), model, start, settings)
        except RunInterrupted as stopped:
            write_structures(output, stopped.trajectory.frames)
            kept[0] = (
                f"{output} has the {len(stopped.trajectory.frames)} frames of the first "
                f"{stopped.trajectory.time[-1] / 1000.0:.3g} ps; start from its last frame to go on"
            )
            raise
        write_structures(output, trajectory.frames)
        summary = {"path": output, "num_frames": len(trajectory.frames), **trajectory.summary()}
        lines = [
            f"{summary['picoseconds']:.3g} ps {ensemble.upper()} of {len(start)} atoms in {engine}: "
            f"mean {summary['mean_temperature_k']:.0f} K, "
            f"{summary['microseconds_per_atom_step']:.3g} µs per atom and step",
            wrote(output, f"{len(trajectory.frames)} frames"),
        ]
        if "drift_mev_per_atom_per_ps" in summary:
            drift = summary["drift_mev_per_atom_per_ps"]
            lines.insert(1, f"energy drift {drift:+.3g} meV/atom/ps")
        emit(summary, as_json, "\n".join(lines))


def bench(
    model: Path = typer.Argument(help="Exported student."),
    structure: str = typer.Argument(help="Structure file, or builtin:NAME."),
    engine: list[str] = typer.Option(
        ["lammps", "openmm", "ase"], "--engine", help="Engine to time; repeat for several."
    ),
    teacher: str | None = typer.Option(None, help="Time this teacher on the same structure."),
    sizes: str | None = typer.Option(
        None, help="Numbers of atoms, e.g. 64,512,4096: supercells near these sizes."
    ),
    steps: int = typer.Option(50, min=1, help="MD steps per measurement."),
    dtype: str = typer.Option("float32", help="float32 or float64."),
    threads: int = typer.Option(1, min=1, help="Threads of the student and the teacher."),
    as_json: bool = JSON,
) -> None:
    """Time a student."""
    with user_errors("nothing was written"):
        from mlff_distiller.dynamics import MDSettings, run_md
        from mlff_distiller.sampling import starting_structures

        start = starting_structures(structure, note)[-1]
        settings = MDSettings(
            ensemble="nve",
            steps=steps,
            interval=steps,
            warmup_steps=max(1, steps // 5),
            dtype=dtype,
            threads=threads,
        )
        rows: list[dict[str, Any]] = []
        for system in _systems(start, sizes):
            for name in engine:
                say(f"{name}, {len(system)} atoms ...")
                run = run_md(name, model, system, settings)
                rows.append(_row(name, len(system), run.seconds_per_step))
        if teacher is not None:
            from mlff_distiller.evaluation.speed import time_teacher

            say(f"{teacher}, {len(start)} atoms ...")
            seconds = time_teacher(teacher, start, threads=threads)
            rows.append(_row(teacher, len(start), seconds))
            for row in rows:
                if row["num_atoms"] == len(start):
                    row["speedup"] = seconds / row["seconds_per_step"]
        result = {"model": model, "dtype": dtype, "threads": threads, "results": rows}
        emit(result, as_json, None if as_json else _table(rows))


def _row(name: str, num_atoms: int, seconds: float) -> dict[str, Any]:
    return {
        "engine": name,
        "num_atoms": num_atoms,
        "seconds_per_step": seconds,
        "microseconds_per_atom_step": 1e6 * seconds / num_atoms,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    compared = any("speedup" in row for row in rows)
    last = f"{'× teacher':>11}" if compared else ""
    lines = [f"{'engine':<16}{'atoms':>9}{'ms/step':>12}{'µs/atom/step':>14}{last}"]
    for row in rows:
        speedup = f"{row['speedup']:.1f}" if "speedup" in row else ""
        lines.append(
            f"{row['engine']:<16}{row['num_atoms']:>9}{1e3 * row['seconds_per_step']:>12.3f}"
            f"{row['microseconds_per_atom_step']:>14.3f}" + (f"{speedup:>11}" if compared else "")
        )
    return "\n".join(lines)


def _systems(start: Any, sizes: str | None) -> list[Any]:
    """The structure itself, or supercells of it with about the numbers of atoms asked for."""
    if sizes is None:
        return [start]
    if not start.pbc.all():
        raise InputError(
            f"--sizes repeats a periodic cell, got pbc={start.pbc.tolist()}; leave --sizes out"
        )
    try:
        wanted = [int(float(word)) for word in sizes.split(",")]
    except (ValueError, OverflowError):
        raise InputError(
            f"--sizes must be numbers and commas, got {sizes!r}; e.g. 64,512"
        ) from None
    if not all(1 <= size <= _MOST_ATOMS for size in wanted):
        raise InputError(
            f"--sizes must be between 1 and {_MOST_ATOMS} atoms, got {sizes!r}; e.g. 64,512"
        )
    import numpy as np

    from mlff_distiller.data import Structure

    systems = []
    for size in wanted:
        repeats = np.ones(3, dtype=int)
        while len(start) * int(repeats.prod()) < size:
            repeats[np.argmin(repeats * np.linalg.norm(start.cell, axis=1))] += 1
        atoms = start.to_atoms(labels=False).repeat(tuple(int(r) for r in repeats))
        systems.append(Structure.from_atoms(atoms))
    return systems
