"""The exported student run for real in every engine: agreement, dynamics, drift and speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.config import EnginesConfig, TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.dynamics import (
    MDSettings,
    RunStoppedError,
    Trajectory,
    run_md,
    single_point,
)
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.speed import time_teacher

#: The last one is the portable form that shares no code with the others.
AGREEMENT_ENGINES = ("lammps", "openmm", "ase", "torchscript")


def compare_engines(
    model: str | Path, structure: Structure, engines: list[str], dtypes: tuple[str, ...]
) -> dict[str, Any]:
    """Evaluate one frame with each engine and compare all pairs.

    Args:
        model: exported student.
        structure: the frame; one off equilibrium says most.
        engines: which of :data:`AGREEMENT_ENGINES`.
        dtypes: arithmetic of the network, e.g. ``("float32", "float64")``.

    Returns:
        dtype -> {``rows``: per engine energy (eV) and its largest differences from the first
        engine, ``max_energy_diff_ev_per_atom``, ``max_force_diff_ev_per_ang``,
        ``max_stress_diff_gpa``: largest over all pairs}.
    """
    from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

    report: dict[str, Any] = {}
    for dtype in dtypes:
        results = {engine: single_point(engine, model, structure, dtype) for engine in engines}
        energies = np.array([_energy(r) for r in results.values()]) / len(structure)
        forces = np.array([r.forces for r in results.values()])
        stresses = [r.stress for r in results.values() if r.stress is not None]
        rows = {
            engine: {
                "energy_ev": _energy(result),
                "energy_diff_ev_per_atom": float(abs(energies[i] - energies[0])),
                "max_force_diff_ev_per_ang": float(np.abs(forces[i] - forces[0]).max()),
            }
            for i, (engine, result) in enumerate(results.items())
        }
        report[dtype] = {
            "rows": rows,
            "max_energy_diff_ev_per_atom": float(np.ptp(energies)),
            "max_force_diff_ev_per_ang": float(np.ptp(forces, axis=0).max()),
            "max_stress_diff_gpa": (
                float(np.ptp(np.array(stresses), axis=0).max()) * EV_PER_ANGSTROM3_IN_GPA
                if len(stresses) > 1
                else None
            ),
        }
    return report


def run_engines(
    model: str | Path,
    structure: Structure,
    config: EnginesConfig,
    teacher: TeacherConfig | None = None,
    *,
    agreement_frame: Structure | None = None,
    threads: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Agreement, NVE and NPT runs of the student, and its speed beside the teacher's.

    Args:
        model: exported student.
        structure: where the dynamics start.
        config: which engines, how long, how hot.
        teacher: timed on the same frame with the same number of threads; None leaves it out.
        agreement_frame: compared between the engines; ``structure`` when left out.
        threads: of every engine and of the teacher.
        say: told what happens.

    Returns:
        A dictionary for metrics.json and the trajectories (NVE of each engine, NPT of LAMMPS).
    """
    wanted = [e for e in ("lammps", "openmm", "ase") if getattr(config, e)]
    usable, missing = _usable(model, structure, wanted)
    result: dict[str, Any] = {"not_run": missing, "threads": threads, "num_atoms": len(structure)}
    say(f"same frame in {', '.join([*usable, 'torchscript'])}")
    result["agreement"] = compare_engines(
        model, agreement_frame or structure, [*usable, "torchscript"], ("float32", "float64")
    )
    trajectories: list[Trajectory] = []
    base = {
        "temperature": config.temperature,
        "timestep": config.timestep,
        "threads": threads,
        "warmup_steps": config.nve_steps // 4,
    }
    for engine in usable:
        say(f"{config.nve_steps} steps NVE in {engine}")
        interval = max(1, config.nve_steps // 200)
        settings = MDSettings("nve", config.nve_steps, interval=interval, **base)  # type: ignore[arg-type]
        trajectories.append(_run(engine, model, structure, settings, say))
    if structure.pbc.all() and config.npt_steps and "lammps" in usable:
        say(f"{config.npt_steps} steps NPT in lammps")
        interval = max(1, config.npt_steps // 100)
        settings = MDSettings("npt", config.npt_steps, interval=interval, **base)  # type: ignore[arg-type]
        trajectories.append(_run("lammps", model, structure, settings, say))
    result["runs"] = [t.summary() for t in trajectories]
    result["seconds_per_step"] = {
        t.engine: t.seconds_per_step for t in trajectories if t.ensemble == "nve"
    }
    result["teacher_seconds"] = None
    if teacher is not None:
        say(f"timing the teacher {teacher.name}")
        result["teacher_seconds"] = time_teacher(
            teacher.name,
            structure,
            device=teacher.device,
            options=teacher.options,
            threads=threads,
        )
    return result, trajectories


def headline(engines: dict[str, Any]) -> dict[str, Any]:
    """The keys of metrics.json that come from the engines, float32 as they are used."""
    single = engines["agreement"]["float32"]
    drifts = {
        run["engine"]: run["drift_mev_per_atom_per_ps"]
        for run in engines["runs"]
        if run["ensemble"] == "nve" and "drift_mev_per_atom_per_ps" in run  # not in short runs
    }
    teacher = engines["teacher_seconds"]
    speedups = {
        engine: teacher / seconds if teacher else None
        for engine, seconds in engines["seconds_per_step"].items()
    }
    worst = max(drifts.values(), key=abs) if drifts else None
    return {
        "engines_max_energy_diff_ev_per_atom": single["max_energy_diff_ev_per_atom"],
        "engines_max_force_diff_ev_per_ang": single["max_force_diff_ev_per_ang"],
        "speedup_vs_teacher_lammps": speedups.get("lammps"),
        "speedup_vs_teacher": speedups,
        "nve_drift_mev_per_atom_per_ps": worst,
    }


def _run(
    engine: str,
    model: str | Path,
    structure: Structure,
    settings: MDSettings,
    say: Callable[[str], None],
) -> Trajectory:
    """A run; one that stopped being physics is a result, too, and its warnings say why."""
    try:
        return run_md(engine, model, structure, settings, say=say)
    except RunStoppedError as dead:
        trajectory: Trajectory = dead.trajectory
        if not np.isfinite(trajectory.total_energy).all():
            raise
        say(f"warning: {engine}: {dead}")
        trajectory.warnings.append(str(dead))
        return trajectory


def _usable(
    model: str | Path, structure: Structure, wanted: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Engines that are installed, and why the others are not used."""
    usable, missing = [], {}
    for engine in wanted:
        try:
            single_point(engine, model, structure)
            usable.append(engine)
        except (InputError, ImportError) as error:
            missing[engine] = str(error).splitlines()[0]
    return usable, missing


def _energy(structure: Structure) -> float:
    assert structure.energy is not None  # single_point always sets it
    return structure.energy
