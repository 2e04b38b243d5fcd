"""The student inside OpenMM, integrated by OpenMM itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import chemical_symbols

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.freedom import drift_of, masses_of, still_directions
from mlff_distiller.dynamics.openmm_corrected import FRICTION, STEP_OF_BAROSTAT, OuterSteps
from mlff_distiller.dynamics.record import Begin, Recorder
from mlff_distiller.dynamics.settings import MDSettings, exact_settings
from mlff_distiller.dynamics.trajectory import Trajectory
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import stress_volume
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.units import EV_IN_KJ_PER_MOL

_STEPS_PER_CALL = 50


@contextlib.contextmanager
def _one_line(outer: OuterSteps | None = None) -> Iterator[None]:
    """OpenMM's own exceptions as InputError; what the teacher raised, Ctrl-C too, as it was."""
    mm = _import()
    try:
        yield
    except mm.OpenMMException as error:
        if outer is not None and outer.failure is not None:
            raise outer.failure from None
        text = " ".join(str(error).split()) or "no reason given"
        raise InputError(
            f"OpenMM stopped: {text}; check the structure, the time step and the settings"
        ) from None


@_one_line()
def single_point(model: Path, structure: Structure, dtype: str) -> Structure:
    """See :func:`mlff_distiller.dynamics.single_point`."""
    mm = _import()
    system, rotation = _system(mm, model, structure, dtype, 0)
    context = _context(mm, system, mm.VerletIntegrator(0.001), structure, rotation)
    state = context.getState(energy=True, forces=True)
    return structure.with_labels(_energy(state), _forces(state) @ rotation.T, engine="openmm")


@_one_line()
def run_md(model: Path, structure: Structure, settings: MDSettings, begin: Begin) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    mm, s = _import(), settings
    system, rotation = _system(mm, model, structure, s.dtype, s.threads)
    masses = masses_of(structure)
    velocities = begin.velocities @ rotation * 100.0  # nm/ps
    positions = structure.positions @ rotation / 10.0
    if s.warmup_steps and not begin.resumed:
        remover = _hold_centre_of_mass(mm, system, structure, "nvt")
        context = _context(mm, system, _integrator(mm, s, "nvt", _seed(s)), structure, rotation)
        context.setVelocities(velocities)
        _advance(context.getIntegrator(), s.warmup_steps)
        state = context.getState(positions=True, velocities=True)
        positions = state.getPositions(asNumpy=True)._value
        velocities = state.getVelocities(asNumpy=True)._value
        velocities = velocities - drift_of(velocities, structure)
        del context
        if remover is not None:
            system.removeForce(remover)
    seed = _seed(s, begin.step)
    _hold_centre_of_mass(mm, system, structure, s.ensemble)
    outer = None
    if begin.correction is not None:
        outer = OuterSteps(structure, s, begin.correction, rotation, begin.step)
        system.addForce(outer.force)
    if s.ensemble == "npt":
        frequency = STEP_OF_BAROSTAT if outer is None else outer.barostat_frequency
        barostat = mm.MonteCarloBarostat(s.pressure, s.temperature, frequency)
        barostat.setRandomNumberSeed(seed)
        system.addForce(barostat)
    integrator = _integrator(mm, s, s.ensemble, seed) if outer is None else outer.integrator(seed)
    context = _context(mm, system, integrator, structure, rotation)
    if "checkpoint" in begin.extra:
        _load(mm, context, begin.extra["checkpoint"])
    else:
        context.setPositions(positions)
        half = _half_kick(context, s, masses)
        context.setVelocities(velocities - half)
    if outer is not None:
        outer.first_count = context.getStepCount()
    with _one_line(outer):
        context.getState(energy=True)  # the first evaluation sets things up
    stresses = _Stresses(model, structure, s, begin)

    recorder = Recorder("openmm", structure, s, begin)
    seconds = 0.0
    with recorder.interruptible(), _one_line(outer):
        for record in range(s.steps // s.interval + 1):
            if record:
                start = time.perf_counter()
                _advance(integrator, s.interval if outer is None else s.interval // s.every)
                seconds += time.perf_counter() - start
            state = context.getState(
                energy=True, forces=True, positions=True, velocities=True, enforcePeriodicBox=False
            )
            velocities = state.getVelocities(asNumpy=True)._value + _half_kick(context, s, masses)
            if s.ensemble != "nve":  # it is taken out at the start of the next step
                velocities = velocities - drift_of(velocities, structure)
            momenta = masses * (velocities @ rotation.T) / 100.0 / units.fs
            recorder.add(
                stresses.of(_frame(structure, state, rotation, momenta)),
                checkpoint=_checkpoint(context),
                settings=exact_settings(s),
            )
    return recorder.trajectory(seconds)


class _Stresses:
    """OpenMM has no stress: one more evaluation of the student at each record of a plain run."""

    def __init__(
        self, model: Path, structure: Structure, settings: MDSettings, begin: Begin
    ) -> None:
        self._model = None
        if begin.correction is None and stress_volume(structure.cell, structure.pbc):
            self._model = ExportedModel(model, dtype=settings.dtype, threads=settings.threads)

    def of(self, frame: Structure) -> Structure:
        """``frame`` with its stress."""
        if self._model is None or not np.isfinite(frame.positions).all():
            return frame
        return replace(frame, stress=self._model.compute(frame).stress)


def _half_kick(context: Any, settings: MDSettings, masses: np.ndarray) -> np.ndarray | float:
    """What leapfrog velocities, half a step before the positions, lack (nm/ps); only in plain NVE.
    Those of the Langevin integrators are canonical as they are, and MTSIntegrator is velocity
    Verlet."""
    if not isinstance(context.getIntegrator(), _import().VerletIntegrator):
        return 0.0
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    mobile = np.array(
        [context.getSystem().getParticleMass(i)._value > 0 for i in range(len(masses))]
    )
    kick: np.ndarray = 0.5 * settings.timestep / 1000.0 * forces / masses * mobile[:, None]
    return kick


def _hold_centre_of_mass(mm: Any, system: Any, structure: Structure, ensemble: str) -> int | None:
    """Index of the force that takes its motion out in each step, None where it is free."""
    if ensemble == "nve" or not still_directions(structure).all():
        return None
    return int(system.addForce(mm.CMMotionRemover(1)))


def _checkpoint(context: Any) -> bytes:
    data = context.createCheckpoint()
    return data if isinstance(data, bytes) else str(data).encode("latin-1")


def _load(mm: Any, context: Any, checkpoint: bytes) -> None:
    try:
        context.loadCheckpoint(checkpoint)
    except mm.OpenMMException:
        raise InputError(
            "this OpenMM cannot load the checkpoint in the state of the run; start a new run from "
            "the last frame of the trajectory"
        ) from None


def _frame(
    structure: Structure, state: Any, rotation: np.ndarray, momenta: np.ndarray
) -> Structure:
    box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * 10.0
    return Structure(
        atomic_numbers=structure.atomic_numbers,
        positions=state.getPositions(asNumpy=True)._value * 10.0 @ rotation.T,
        cell=box @ rotation.T if structure.pbc.all() else structure.cell,
        pbc=structure.pbc,
        energy=_energy(state),
        forces=_forces(state) @ rotation.T,
        momenta=momenta,
        fixed=structure.fixed,
        info=dict(structure.info),
    )


def _advance(integrator: Any, steps: int) -> None:
    # Python sees Ctrl-C only between two calls.
    for done in range(0, steps, _STEPS_PER_CALL):
        integrator.step(min(_STEPS_PER_CALL, steps - done))


def _seed(settings: MDSettings, step: int = 0) -> int:
    """Of the noise; another one for each part of a run that is gone on with."""
    # 0 would tell OpenMM to draw another seed in each run.
    return (settings.seed + step) % (2**31 - 1) or 2**31 - 1


def _import() -> Any:
    try:
        import openmm
    except ImportError:
        raise InputError("OpenMM is not installed; run: pip install openmm") from None
    return openmm


def _system(
    mm: Any, model: Path, structure: Structure, dtype: str, threads: int
) -> tuple[Any, np.ndarray]:
    """System with the student as its only force, and the rotation into OpenMM's reduced box."""
    from openmm import app

    from mlff_distiller.openmm import painn_force

    if structure.pbc.any() and not structure.pbc.all():
        raise InputError(
            "OpenMM runs systems that are periodic in all directions or in none, got "
            f"pbc={structure.pbc.tolist()}; use --engine lammps or ase"
        )
    held = np.zeros(len(structure), dtype=bool)
    if structure.fixed is not None:
        held[structure.fixed.any(axis=1)] = True
        if not np.array_equal(held, structure.fixed.all(axis=1)):
            atom = int(np.argmax(held & ~structure.fixed.all(axis=1)))
            raise InputError(
                f"OpenMM holds atoms or lets them move, got atom {atom} with single coordinates "
                "held; use --engine ase or lammps"
            )
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    system = mm.System()
    for z in structure.atomic_numbers:
        element = app.Element.getByAtomicNumber(int(z))
        topology.addAtom(chemical_symbols[int(z)], element, residue)
    for mass, still in zip(masses_of(structure)[:, 0], held, strict=True):
        system.addParticle(0.0 if still else float(mass))  # OpenMM's way to hold an atom
    rotation = np.eye(3)
    if structure.pbc.all():
        box, rotation = _reduced_box(structure.cell)
        topology.setPeriodicBoxVectors(box / 10.0)
        system.setDefaultPeriodicBoxVectors(*(mm.Vec3(*row) for row in box / 10.0))
    precision = "double" if dtype == "float64" else "single"
    system.addForce(
        painn_force(
            topology,
            str(model),
            precision=precision,
            periodic=bool(structure.pbc.all()),
            threads=threads,
        )
    )
    return system, rotation


def _reduced_box(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lattice in OpenMM's form: lower triangular and reduced, and ``cell -> cell @ rotation``."""
    box = np.linalg.cholesky(cell @ cell.T)
    rotation = np.linalg.solve(cell, box)
    box[2] -= box[1] * np.round(box[2, 1] / box[1, 1])
    box[2] -= box[0] * np.round(box[2, 0] / box[0, 0])
    box[1] -= box[0] * np.round(box[1, 0] / box[0, 0])
    return box, rotation


def _integrator(mm: Any, settings: MDSettings, ensemble: str, seed: int) -> Any:
    timestep = settings.timestep / 1000.0  # ps
    if ensemble == "nve":
        return mm.VerletIntegrator(timestep)
    integrator = mm.LangevinMiddleIntegrator(settings.temperature, FRICTION, timestep)
    integrator.setRandomNumberSeed(seed)
    return integrator


def _context(
    mm: Any, system: Any, integrator: Any, structure: Structure, rotation: np.ndarray
) -> Any:
    # The student brings its own threads. With no other force, the CPU platform would only add the
    # time to wake its own: three times that of the student in a small molecule.
    context = mm.Context(system, integrator, mm.Platform.getPlatformByName("Reference"))
    context.setPositions(structure.positions @ rotation / 10.0)
    return context


def _energy(state: Any) -> float:
    return float(state.getPotentialEnergy()._value) / EV_IN_KJ_PER_MOL


def _forces(state: Any) -> np.ndarray:
    # kJ/mol/nm -> eV/Å
    forces: np.ndarray = state.getForces(asNumpy=True)._value / (EV_IN_KJ_PER_MOL * 10.0)
    return forces
