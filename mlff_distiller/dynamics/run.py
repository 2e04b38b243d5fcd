"""One call for every engine: what it is given is checked here, and what it gives back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator

from mlff_distiller.data import Structure, check_structure
from mlff_distiller.data.structure import check_constraints
from mlff_distiller.dynamics.corrected import plan, teacher_of
from mlff_distiller.dynamics.freedom import (
    degrees_of_freedom,
    drift_of,
    initial_velocities,
    masses_of,
    temperature_of,
)
from mlff_distiller.dynamics.masses import same_hydrogens, with_heavy_hydrogens
from mlff_distiller.dynamics.record import Begin
from mlff_distiller.dynamics.settings import MDSettings, exact_settings
from mlff_distiller.dynamics.state import RunState
from mlff_distiller.dynamics.trajectory import Trajectory
from mlff_distiller.dynamics.watch import Watch
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.lammps import lammps_command
from mlff_distiller.multistep.correction import STUDENT_ENERGY
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.students.file import UNCERTAINTY, read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor

#: engine -> module with ``run_md`` and ``single_point``
ENGINES = {
    "ase": "mlff_distiller.dynamics.ase_engine",
    "lammps": "mlff_distiller.dynamics.lammps_engine",
    "openmm": "mlff_distiller.dynamics.openmm_engine",
}


def run_md(
    engine: str,
    model: str | Path,
    structure: Structure,
    settings: MDSettings,
    *,
    resume: RunState | None = None,
    say: Callable[[str], None] = lambda text: None,
    teacher: EnergyModel | Calculator | None = None,
) -> Trajectory:
    """Run molecular dynamics with an exported student.

    Args:
        engine: ``ase``, ``lammps`` or ``openmm``.
        model: exported student.
        structure: starting positions. Its momenta are the start unless ``settings`` ask for new
            velocities, which are drawn at their temperature. Held coordinates stay.
        settings: ensemble, length, temperature ...
        resume: go on from here, in place of ``structure``; the first record is this state.
        say: told what a user should know, one line each: warnings, as they happen.
        teacher: to correct with, in place of the name in ``settings``; any ASE calculator.

    Raises:
        InputError: unknown or missing engine, an element that the model or the teacher does not
            know, NPT of a system that is not periodic or has held atoms.
        RunStoppedError: atoms fused, the temperature ran away, energies are not finite, the teacher
            failed; or extrapolation, where ``settings`` say stop. With what was recorded (an
            InputError).
        RunInterrupted: Ctrl-C, with what was recorded (a KeyboardInterrupt).
    """
    if resume is not None:
        structure = resume.structure
    _check(model, structure)
    _check_freedom(engine, structure, settings)
    module = _module(engine)
    if resume is not None:
        same_hydrogens(structure, settings.hydrogen_mass)
    elif settings.hydrogen_mass is not None:
        structure = with_heavy_hydrogens(structure, settings.hydrogen_mass)
    settings, surface = teacher_of(settings, teacher, resume)
    begin = _begin(engine, model, structure, settings, resume, say)
    # A frame of a corrected run has the student's energy there.
    info = {key: value for key, value in structure.info.items() if key != STUDENT_ENERGY}
    bare = replace(structure, momenta=None, info=info)
    with plan(Path(model), bare, settings, begin, surface) as (settings, begin):
        trajectory: Trajectory = module.run_md(Path(model), bare, settings, begin)
    _check_sane(trajectory)
    return trajectory


def _begin(
    engine: str,
    model: str | Path,
    structure: Structure,
    settings: MDSettings,
    resume: RunState | None,
    say: Callable[[str], None],
) -> Begin:
    s = settings
    start_temperature = s.temperature
    if structure.momenta is not None and not s.new_velocities:
        velocities = structure.momenta / masses_of(structure) * units.fs
        if structure.fixed is not None:
            velocities[structure.fixed] = 0.0
        if s.ensemble != "nve":  # thermostats keep the centre of mass at rest, from the start
            velocities = velocities - drift_of(velocities, structure)
        found = temperature_of(structure.momenta, structure)
        start_temperature = max(found, 0.0 if s.ensemble == "nve" else s.temperature)
        if resume is None:
            say(f"starting with the momenta of the structure ({found:.0f} K)")
    else:
        velocities = initial_velocities(structure, s.temperature, s.seed)
        if structure.momenta is not None:
            say(f"new velocities at {s.temperature:g} K in place of the momenta of the structure")
    metadata = read_metadata(model)
    monitor = None
    if metadata.get(UNCERTAINTY) or s.uncertainty_limit is not None:
        monitor = UncertaintyMonitor(model, s.uncertainty_limit, dtype=s.dtype, threads=s.threads)
    watch = Watch(
        metadata,
        structure,
        start_temperature,
        stop=s.on_extrapolation == "stop",
        say=say,
        watch_volume=s.ensemble == "npt",
        monitor=monitor,
    )
    watch.start()
    if resume is None:
        return Begin(velocities, watch, say=say)
    same = resume.engine == engine and resume.ensemble == s.ensemble
    if changed := _changed(resume, engine, s):
        say(f"goes on with {changed}: the trajectory is not one run from here on")
    extra = resume.extra if same and resume.extra.get("settings") == exact_settings(s) else {}
    return Begin(velocities, watch, resume.step, resume.time, extra, say, resumed=True)


def _changed(resume: RunState, engine: str, settings: MDSettings) -> str:
    """``--NAME VALUE instead of VALUE_BEFORE`` of all that a run goes on with otherwise, in words."""
    names = ["ensemble", "temperature", "pressure", "timestep", "dtype", "correct-with", "every"]
    before = {"engine": resume.engine, "ensemble": resume.ensemble}
    before |= dict(zip(names, resume.extra.get("settings", []), strict=False))
    now = {"engine": engine, **dict(zip(names, exact_settings(settings), strict=False))}
    if settings.ensemble != "npt":
        now.pop("pressure")
    if settings.ensemble == "nve":
        now.pop("temperature")
    return ", ".join(
        f"--{name} {value} instead of {before[name]}"
        for name, value in now.items()
        if name in before and before[name] != value
    )


def _check_freedom(engine: str, structure: Structure, settings: MDSettings) -> None:
    check_constraints(structure)
    if degrees_of_freedom(structure) == 0:
        raise InputError("all atoms are held, so nothing can move; remove constraints")
    if settings.ranks > 1 and engine != "lammps":
        raise InputError(f"--ranks is for LAMMPS, got --engine {engine}; use --engine lammps")
    if settings.ensemble != "npt":
        return
    if not structure.pbc.all():
        raise InputError(
            "NPT needs a system that is periodic in three directions, got "
            f"pbc={structure.pbc.tolist()}; use --ensemble nvt"
        )
    if structure.fixed is not None:
        raise InputError(
            "NPT moves all atoms with the cell, but "
            f"{int(structure.fixed.any(axis=1).sum())} atoms are held; use --ensemble nvt, or "
            "remove the constraints"
        )
    if settings.temperature <= 0:
        raise InputError("NPT needs a temperature above 0 K, got 0; use e.g. --temperature 10")


def single_point(
    engine: str, model: str | Path, structure: Structure, dtype: str = "float32"
) -> Structure:
    """Energy, forces and (not OpenMM, which has no stress) stress of one structure.

    Args:
        engine: ``ase``, ``lammps``, ``openmm`` or ``torchscript``.
        model: exported student.
        structure: what to evaluate.
        dtype: arithmetic of the network.

    Returns:
        ``structure`` with the labels of the student.
    """
    _check(model, structure)
    if engine == "torchscript":
        portable = ExportedModel(model, backend="portable", dtype=dtype)
        return structure.with_labels(*portable.compute(structure))
    labelled: Structure = _module(engine).single_point(Path(model), structure, dtype)
    return labelled


def engine_of(wanted: str | None) -> str:
    """The engine asked for; LAMMPS where it is installed, else ASE, for None and ``auto``."""
    if wanted not in (None, "auto"):
        return wanted
    try:
        lammps_command()
    except InputError:
        return "ase"
    return "lammps"


def _module(engine: str) -> Any:
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; use one of: {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[engine])


def _check(model: str | Path, structure: Structure) -> None:
    check_structure(structure)
    known = read_metadata(model)["elements"]
    if unknown := unknown_elements(structure.atomic_numbers, known):
        raise InputError(
            f"{model} knows {symbols(known)}, the structure holds {symbols(unknown)}; "
            "train with these elements in the data"
        )


def _check_sane(trajectory: Trajectory) -> None:
    finite = np.isfinite(trajectory.total_energy) & np.isfinite(trajectory.temperature)
    if not finite.all():
        when = trajectory.time[int(np.argmin(finite))]
        raise InputError(
            f"the {trajectory.engine} run blew up at {when:.0f} fs (energy is not finite); "
            "shorten the time step or train on hotter frames"
        )
