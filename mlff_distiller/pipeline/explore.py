"""[7] Dynamics of the student at the conditions that it is made for -> ``candidates.h5``.

Where the student is wrong its own trajectories lead it: those frames, not those of the teacher, are
what it must learn next. A run that explodes is quarantined; its frames until the last sane one stay
candidates, and they are the most telling ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller import checksums
from mlff_distiller.data import Structure, structures_hash, write_structures
from mlff_distiller.data.structure import without_labels
from mlff_distiller.dynamics import MDSettings, RunStoppedError, Trajectory, run_md
from mlff_distiller.errors import InputError
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station
from mlff_distiller.progress import Progress
from mlff_distiller.sampling.geometry import closest_ratio, unlabelled
from mlff_distiller.units import GPA_IN_BAR
from mlff_distiller.workers import run_all

CANDIDATES = "candidates.h5"
SOURCE = "student-md"
# A ramp is this many runs, one after the other.
_RAMP = 8
# A run that exploded is repeated from its last sane frame, for so many intervals.
_REPLAY = 1.5
# Frames with a larger force by the student, in units of the largest that labels may have, or a
# closer contact are no longer something to ask the teacher about.
_WILD = 2.0


@dataclass(frozen=True)
class Run:
    """One trajectory."""

    start: int
    """Index of the starting structure."""
    ensemble: str
    temperature: float
    """K."""
    final_temperature: float
    """K; another one makes a ramp."""
    pressure: float
    """GPa, of ``npt``."""
    picoseconds: float
    seed: int


@dataclass(frozen=True)
class Inputs:
    """What the trajectories depend on."""

    student: Hashed[Path]
    starts: Hashed[list[Structure]]
    runs: list[Run]
    engine: str
    timestep: float
    """fs."""
    interval: float
    """fs, between two candidates."""
    min_distance: float
    """Closest contact of a candidate, as a share of the covalent radii."""
    max_force: float
    """eV/Å, of labels."""
    workers: int = field(default=0, metadata=EXECUTION)


@dataclass(frozen=True)
class Result:
    """What was found."""

    runs: list[dict[str, Any]]
    """Of each: its settings, ``reached`` (ps), ``verdict`` (empty if it stayed alive) and
    ``frames``."""
    num_frames: int
    candidates_hash: str

    @property
    def exploded(self) -> int:
        """Number of runs that did not stay physics."""
        return sum(bool(run["verdict"]) for run in self.runs)


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Run all trajectories and keep their sane frames."""
    jobs = [(inputs, i) for i in range(len(inputs.runs))]
    rows: list[dict[str, Any]] = []
    frames: list[Structure] = []
    with Progress("dynamics of the student") as bar:
        for i, (found, reached, verdict) in enumerate(run_all(student_run, jobs, inputs.workers)):
            run = inputs.runs[i]
            row = {**asdict(run), "reached": reached, "verdict": verdict, "frames": len(found)}
            rows.append(row)
            info = {"run": i, "exploded": bool(verdict)}
            frames += [replace(f, info={**f.info, **info}) for f in found]
            bar.update(i + 1, len(jobs))
    if not frames:
        raise InputError(
            "no run of the student left a single sane frame; sample more (sampling), or train "
            "longer before the first round (loop.final_share, loop.epochs)"
        )
    write_structures(output / CANDIDATES, frames)
    result = Result(rows, len(frames), structures_hash(frames))
    dead = "; ".join(
        f"{row['temperature']:.0f} K after {row['reached']:.2f} ps"
        for row in rows
        if row["verdict"]
    )
    hot = max(max(r.temperature, r.final_temperature) for r in inputs.runs)
    say(
        f"{len(rows)} runs up to {hot:.0f} K, {result.exploded} exploded"
        + (f" ({dead})" if dead else "")
        + f"; {len(frames)} frames"
    )
    return result


def student_run(job: tuple[Inputs, int]) -> tuple[list[Structure], float, str]:
    """Sane frames without labels, ps that were reached, and why it ended early if it did."""
    inputs, index = job
    # Below, what an engine says of a damaged file would be an explosion.
    checksums.check_zip(inputs.student.value, "an exported student")
    run = inputs.runs[index]
    start = inputs.starts.value[run.start]
    pieces = _RAMP if run.final_temperature != run.temperature else 1
    steps = max(1, round(1000.0 * run.picoseconds / inputs.timestep / pieces))
    interval = max(1, round(inputs.interval / inputs.timestep))
    steps = -(-steps // interval) * interval
    temperatures = np.linspace(run.temperature, run.final_temperature, pieces)
    frames: list[Structure] = []
    state, verdict, reached = None, "", 0.0
    for k, temperature in enumerate(temperatures):
        settings = MDSettings(
            ensemble=run.ensemble,
            steps=steps,
            temperature=float(temperature),
            pressure=run.pressure * GPA_IN_BAR,
            timestep=inputs.timestep,
            interval=interval,
            threads=1,
            new_velocities=k == 0,
            seed=run.seed + k,
        )
        try:
            found = run_md(inputs.engine, inputs.student.value, start, settings, resume=state)
        except RunStoppedError as stopped:
            verdict = str(stopped)
            found = stopped.trajectory
        except InputError as error:  # before its first record
            verdict, found = str(error), None
        if found is not None:
            new = found.frames[1:] if k else found.frames
            frames += [replace(f, info={**f.info, "thermostat": float(temperature)}) for f in new]
            reached, state = _picoseconds(found), found.state
        if verdict:
            break
    sane = _sane(frames, inputs)
    if not verdict and len(sane) < len(frames):
        verdict = "atoms came too close or forces too large"
    if verdict and sane:
        sane += _replay(inputs, sane[-1])
    return [_candidate(f, run, start) for f in sane], reached, verdict


def _replay(inputs: Inputs, last: Structure) -> list[Structure]:
    """The way from the last sane frame into the hole that it fell into, every step of it.

    An explosion takes some ten steps, so that frames at the usual interval show nothing of it.
    Without the thermostat, whose noise would be another one.
    """
    steps = max(1, round(_REPLAY * inputs.interval / inputs.timestep))
    settings = MDSettings(
        ensemble="nve", steps=steps, timestep=inputs.timestep, interval=1, threads=1
    )
    try:
        found = run_md(inputs.engine, inputs.student.value, without_labels(last), settings)
    except RunStoppedError as stopped:
        found = stopped.trajectory
    except InputError:
        return []
    about = {"thermostat": last.info["thermostat"]}
    start = float(last.info["time_fs"])
    return [
        replace(f, info={**f.info, **about, "time_fs": start + float(f.info["time_fs"])})
        for f in _sane(found.frames[1:], inputs)
    ]


def _picoseconds(trajectory: Trajectory) -> float:
    return float(trajectory.frames[-1].info["time_fs"]) / 1000.0


def _sane(frames: Sequence[Structure], inputs: Inputs) -> list[Structure]:
    """Frames before the first that no teacher should be asked about."""
    for i, frame in enumerate(frames):
        if not is_sane(frame, inputs.min_distance, inputs.max_force):
            return list(frames[:i])
    return list(frames)


def is_sane(frame: Structure, min_distance: float, max_force: float) -> bool:
    """Whether a teacher can be asked about a frame.

    Args:
        frame: with the student's forces.
        min_distance: closest contact, as a share of the covalent radii.
        max_force: eV/Å, of labels.
    """
    assert frame.forces is not None
    return bool(
        np.isfinite(frame.positions).all()
        and np.isfinite(frame.forces).all()
        and np.linalg.norm(frame.forces, axis=1).max() <= _WILD * max_force
        and closest_ratio(frame) >= min_distance
    )


def _candidate(frame: Structure, run: Run, start: Structure) -> Structure:
    info = {
        "source": SOURCE,
        "parent": str(start.info.get("group", run.start)),
        "ensemble": run.ensemble,
        "temperature": frame.info["thermostat"],
        "time_fs": frame.info["time_fs"],
    }
    if run.ensemble == "npt":
        info["pressure"] = run.pressure
    return unlabelled(frame, info=info)


STATION = Station("explore", work, Result, [CANDIDATES])
