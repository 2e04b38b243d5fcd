"""``md`` and ``bench``: students at work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    OVERWRITE,
    check_device,
    emit,
    example,
    fail,
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
            "md student.pt start.extxyz --correct-with sevennet-0 --every auto --keep-labels more.h5",
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
    temperature: float | None = typer.Option(
        None,
        help="K, of thermostat and first velocities [default: 300]. For nve, naming it asks for "
        "new velocities where the structure has momenta.",
    ),
    new_velocities: bool = typer.Option(
        False, "--new-velocities", help="Draw velocities even where the structure has momenta."
    ),
    go_on: bool = typer.Option(
        False,
        "--continue",
        help="Go on from the end of the trajectory --output, which is added to.",
    ),
    on_extrapolation: str = typer.Option(
        "warn", help="warn or stop, where the run leaves what training saw."
    ),
    uncertainty_limit: float | None = typer.Option(
        None,
        help="eV/Å, of the force on an atom; above it the run extrapolates [default: 3 times the "
        "largest of held-out atoms, where the model has uncertainties].",
    ),
    ranks: int = typer.Option(1, help="MPI processes, for lammps."),
    pressure: float = typer.Option(1.0, help="bar, for npt."),
    timestep: float = typer.Option(1.0, help="fs."),
    interval: int | None = typer.Option(
        None,
        help="Steps between two frames; of a shorter run the last step is the only one [default: "
        "10, with --correct-with about as many].",
    ),
    warmup: int = typer.Option(0, help="Thermostatted steps before the run."),
    dtype: str = typer.Option("float32", help="float32 or float64."),
    threads: int = typer.Option(0, help="Threads; 0 leaves it to the engine."),
    seed: int = typer.Option(1, help="Seed of the velocities."),
    correct_with: str | None = typer.Option(
        None,
        metavar="TEACHER",
        help="Sample the surface of this teacher: the student makes the steps, and the difference "
        "is an impulse every few of them (docs/multistep.md).",
    ),
    every: str | None = typer.Option(
        None, help="Steps between two calls of the teacher, or auto [default: auto]."
    ),
    device: str = typer.Option("cpu", help="Of the teacher: cpu or cuda."),
    keep_labels: Path | None = typer.Option(
        None, help="HDF5 file for the teacher's labels of all its calls, ready for train."
    ),
    hydrogen_mass: float | None = typer.Option(
        None, help="amu, taken from the atoms that hydrogens are bonded to; e.g. 3, for long steps."
    ),
    output: Path = typer.Option(
        Path("trajectory.extxyz"), "-o", "--output", help="Trajectory to write."
    ),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """Molecular dynamics with a student.

    Exit status 3: the run stopped being physics (atoms fused, temperature or energy ran away, or
    extrapolation with --on-extrapolation stop). What came before is in the trajectory.
    """
    _refuse_mpiexec()
    kept = [f"the run was stopped and {output} was not written"]
    with user_errors(lambda: kept[0]):
        from mlff_distiller.dynamics import MDSettings, RunInterrupted, RunStoppedError, run_md
        from mlff_distiller.dynamics.settings import check_multiple
        from mlff_distiller.sampling import starting_structures

        number = _every(every, correct_with)
        if number:
            check_multiple("--steps", steps, "--every", number)
        if interval is None:
            interval = 10 if correct_with is None else _good_interval(steps, number)
        if 0 < steps < interval:
            interval = steps
        elif interval > 0:
            # The trajectory would end before the run does, and --continue not where it ends.
            check_multiple("--steps", steps, "--interval", interval)
        settings = MDSettings(
            ensemble=ensemble.lower(),
            steps=steps,
            temperature=300.0 if temperature is None else temperature,
            pressure=pressure,
            timestep=timestep,
            interval=interval,
            warmup_steps=warmup,
            dtype=dtype,
            threads=threads,
            seed=seed,
            new_velocities=new_velocities
            or (temperature is not None and ensemble.lower() == "nve"),
            on_extrapolation=on_extrapolation.lower(),
            uncertainty_limit=uncertainty_limit,
            ranks=ranks,
            correct_with=correct_with,
            every=number,
            teacher_device=device if correct_with is None else check_device(device),
            keep_labels=None if keep_labels is None else str(keep_labels),
            hydrogen_mass=hydrogen_mass,
        )
        start = starting_structures(structure, note)[-1]
        before, state = _earlier(output, start) if go_on else ([], None)
        if not go_on:
            refuse_to_replace(output, overwrite)
        more: dict[str, Any] = {} if state is None else {"resume": state}
        if state is not None and not new_velocities:
            settings = replace(settings, new_velocities=False)
        try:
            trajectory = run_md(engine.lower(), model, start, settings, say=say, **more)
        except RunInterrupted as stopped:
            frames = _save(output, before, stopped.trajectory)
            kept[0] = (
                f"{output} has the {frames} frames of the first "
                f"{stopped.trajectory.time[-1] / 1000.0:.3g} ps; --continue goes on from there"
            )
            raise
        except RunStoppedError as dead:
            frames = _save(output, before, dead.trajectory)
            fail(f"{dead} ({output} has the {frames} frames until then)", status=3)
        frames = _save(output, before, trajectory)
        summary = {"path": output, "num_frames": frames, **trajectory.summary()}
        lines = [*_report(summary), wrote(output, f"{frames} frames")]
        if keep_labels is not None:
            lines.append(wrote(keep_labels, "labels of every call"))
        emit(summary, as_json, "\n".join(lines))


def _every(text: str | None, teacher: str | None) -> int:
    """Steps between two corrections; 0 leaves it to a short run."""
    if text is None:
        return 0
    if teacher is None:
        raise InputError("--every needs a teacher, got none; add e.g. --correct-with sevennet-0")
    if text.strip().lower() == "auto":
        return 0
    if not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"--every must be auto or a number of steps, got {text!r}; use e.g. 4")
    return int(text)


def _good_interval(steps: int, every: int) -> int:
    """Steps between two frames: divides the run, and calls of the teacher divide it."""
    divisors = [d for d in range(1, max(steps, 1) + 1) if steps % d == 0]
    if every:
        fits = [d for d in divisors if d % every == 0]
        return next((d for d in fits if d >= 10), max(fits, default=every))
    few = [d for d in divisors if 10 <= d <= 100] or [max(steps, 1)]
    return max(few, key=lambda d: (sum(d % n == 0 for n in range(1, 17)), -d))


def _report(summary: dict[str, Any]) -> list[str]:
    """What a run did, in lines for people."""
    s = summary
    lines = [
        f"{s['picoseconds']:.3g} ps {s['ensemble'].upper()} of {s['num_atoms']} atoms in "
        f"{s['engine']}: mean {s['mean_temperature_k']:.0f} K, "
        f"{s['microseconds_per_atom_step']:.3g} µs per atom and step"
    ]
    if "teacher" in s:
        lines.append(
            f"corrected with {s['teacher']} every {s['every']} steps ({s['outer_step_fs']:g} fs): "
            f"{s['teacher_calls']} call{'s' * (s['teacher_calls'] != 1)} of {s['seconds_per_teacher_call']:.3g} s, "
            f"{100 * s['teacher_share']:.0f} % of the time; calls in every step would take "
            f"{s['speedup_over_teacher']:.3g} times as long"
        )
    if "drift_mev_per_atom_per_ps" in s:
        whose = f" of {s['teacher']}" if "teacher" in s else ""
        lines.append(f"energy drift{whose} {s['drift_mev_per_atom_per_ps']:+.3g} meV/atom/ps")
    if s["ensemble"] == "npt":
        lengths = ", ".join(f"{x:.4f}" for x in s["mean_cell_lengths_ang"])
        angles = ", ".join(f"{x:.2f}" for x in s["mean_cell_angles_deg"])
        lines.append(
            f"mean volume {s['mean_volume_ang3_per_atom']:.4f} Å³ per atom, density "
            f"{s['mean_density_g_per_cm3']:.4f} g/cm³, cell {lengths} Å, {angles}°"
        )
    if s["ensemble"] == "npt" and "mean_pressure_bar" in s:
        lines.append(f"mean pressure {s['mean_pressure_bar']:.0f} bar")
    return lines


def _save(output: Path, before: list[Any], trajectory: Any) -> int:
    """Write trajectory and state; returns the number of frames."""
    import numpy as np

    from mlff_distiller.data.io import write_structures
    from mlff_distiller.dynamics.state import state_path

    # The first record of a run that goes on is the last of the one before.
    new = trajectory.frames[1:] if before else trajectory.frames
    good = [
        f for f in new if np.isfinite(f.positions).all() and np.isfinite([f.energy or 0.0]).all()
        and (f.forces is None or np.isfinite(f.forces).all())
    ]  # fmt: skip
    frames = [*before, *good]
    if frames:
        write_structures(output, frames)
    if trajectory.state is not None and len(good) == len(new):
        trajectory.state.save(state_path(output))
    return len(frames)


def _earlier(output: Path, start: Any) -> tuple[list[Any], Any]:
    """Frames of the trajectory to go on from, and the state at its end."""
    import numpy as np

    from mlff_distiller.data.io import read_structures
    from mlff_distiller.dynamics.state import RunState, state_path

    if not output.exists():
        raise InputError(
            f"--continue needs the trajectory {output}, got no such file; leave it out"
        )
    frames, state = read_structures(output), RunState.load(state_path(output))
    if not np.array_equal(state.structure.atomic_numbers, start.atomic_numbers):
        raise InputError(
            f"{output} is of {state.structure.formula}, got a structure of {start.formula}; name "
            "the structure that the run began with"
        )
    last = frames[-1]
    if last.positions.shape != state.structure.positions.shape or not np.allclose(
        last.positions, state.structure.positions, atol=1e-6
    ):
        raise InputError(
            f"the last frame of {output} is not where {state_path(output).name} stands; one of the "
            "two was changed, so start a new run from that frame"
        )
    return frames, state


def _refuse_mpiexec() -> None:
    """Under ``mpiexec`` every process would run all of it, and write the same file."""
    sizes = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PALS_SIZE")
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID")
    size = max((int(os.environ.get(name) or 1) for name in sizes), default=1)
    if size > 1:
        rank = next((os.environ[name] for name in ranks if os.environ.get(name)), "0")
        if rank != "0":
            raise typer.Exit(2)
        fail(
            f"md starts the processes of LAMMPS itself, got {size} of md under mpiexec; leave "
            f"mpiexec out and use --engine lammps --ranks {size}"
        )


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
