"""The student inside OpenMM, integrated by OpenMM itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.common import MDSettings, Recorder, Trajectory, initial_velocities
from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_IN_KJ_PER_MOL

_STEP_OF_BAROSTAT = 25
_STEPS_PER_CALL = 50


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """OpenMM's own exceptions as InputError."""
    mm = _import()
    try:
        yield
    except mm.OpenMMException as error:
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
def run_md(model: Path, structure: Structure, settings: MDSettings) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    mm, s = _import(), settings
    system, rotation = _system(mm, model, structure, s.dtype, s.threads)
    velocities = initial_velocities(structure, s.temperature, s.seed) @ rotation * 100.0  # nm/ps
    positions = structure.positions @ rotation / 10.0
    if s.warmup_steps:
        context = _context(mm, system, _integrator(mm, s, "nvt"), structure, rotation)
        context.setVelocities(velocities)
        _advance(context.getIntegrator(), s.warmup_steps)
        state = context.getState(positions=True, velocities=True)
        positions = state.getPositions(asNumpy=True)._value
        velocities = state.getVelocities(asNumpy=True)._value
        del context
    if s.ensemble == "npt":
        barostat = mm.MonteCarloBarostat(s.pressure, s.temperature, _STEP_OF_BAROSTAT)
        barostat.setRandomNumberSeed(_seed(s))
        system.addForce(barostat)
    integrator = _integrator(mm, s, s.ensemble)
    context = _context(mm, system, integrator, structure, rotation)
    context.setPositions(positions)
    if s.ensemble == "nve":
        # Leapfrog keeps the velocities of half a step before the positions.
        forces = context.getState(forces=True).getForces(asNumpy=True)._value
        masses = structure.to_atoms(labels=False).get_masses()[:, None]
        velocities = velocities - 0.5 * s.timestep / 1000.0 * forces / masses
    context.setVelocities(velocities)
    context.getState(energy=True)  # the first evaluation sets things up

    recorder = Recorder("openmm", structure, s)
    seconds = 0.0
    with recorder.interruptible():
        for record in range(s.steps // s.interval + 1):
            if record:
                start = time.perf_counter()
                _advance(integrator, s.interval)
                seconds += time.perf_counter() - start
            state = context.getState(
                energy=True, forces=True, positions=True, enforcePeriodicBox=False
            )
            kinetic = state.getKineticEnergy()._value / EV_IN_KJ_PER_MOL
            recorder.add(kinetic, _frame(structure, state, rotation))
    return recorder.trajectory(seconds)


def _frame(structure: Structure, state: Any, rotation: np.ndarray) -> Structure:
    box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * 10.0
    return Structure(
        atomic_numbers=structure.atomic_numbers,
        positions=state.getPositions(asNumpy=True)._value * 10.0 @ rotation.T,
        cell=box @ rotation.T if structure.pbc.all() else structure.cell,
        pbc=structure.pbc,
        energy=_energy(state),
        forces=_forces(state) @ rotation.T,
        info=dict(structure.info),
    )


def _advance(integrator: Any, steps: int) -> None:
    # Python sees Ctrl-C only between two calls.
    for done in range(0, steps, _STEPS_PER_CALL):
        integrator.step(min(_STEPS_PER_CALL, steps - done))


def _seed(settings: MDSettings) -> int:
    return settings.seed or 2**31 - 1  # 0 tells OpenMM to draw another seed in each run


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
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    system = mm.System()
    for z in structure.atomic_numbers:
        element = app.Element.getByAtomicNumber(int(z))
        topology.addAtom(chemical_symbols[int(z)], element, residue)
    for mass in structure.to_atoms(labels=False).get_masses():
        system.addParticle(float(mass))
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


def _integrator(mm: Any, settings: MDSettings, ensemble: str) -> Any:
    timestep = settings.timestep / 1000.0  # ps
    if ensemble == "nve":
        return mm.VerletIntegrator(timestep)
    integrator = mm.LangevinMiddleIntegrator(settings.temperature, 10.0, timestep)
    integrator.setRandomNumberSeed(_seed(settings))
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
