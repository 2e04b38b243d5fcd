"""The student inside ASE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.common import MDSettings, Recorder, Trajectory, initial_velocities


def single_point(model: Path, structure: Structure, dtype: str) -> Structure:
    """See :func:`mlff_distiller.dynamics.single_point`."""
    atoms = structure.to_atoms(labels=False)
    atoms.calc = _calculator(model, dtype, 0)
    return _labelled(structure, atoms)


def run_md(model: Path, structure: Structure, settings: MDSettings) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    atoms = structure.to_atoms(labels=False)
    atoms.calc = _calculator(model, settings.dtype, settings.threads)
    velocities = initial_velocities(structure, settings.temperature, settings.seed)
    atoms.set_velocities(velocities / units.fs)
    if settings.warmup_steps:
        _integrator(atoms, settings, "nvt").run(settings.warmup_steps)
        atoms.set_constraint()
    recorder = Recorder("ase", structure, settings)

    def record() -> None:
        recorder.add(atoms.get_kinetic_energy(), _labelled(structure, atoms))

    integrator = _integrator(atoms, settings, settings.ensemble)
    integrator.attach(record, interval=settings.interval)
    recorder.start()
    with recorder.interruptible():
        integrator.run(settings.steps)
    return recorder.trajectory(steps=settings.steps)


def _calculator(model: Path, dtype: str, threads: int):  # type: ignore[no-untyped-def]
    from mlff_distiller.calculator import StudentCalculator

    return StudentCalculator(str(model), dtype=dtype, threads=threads)


def _integrator(atoms: Atoms, settings: MDSettings, ensemble: str):  # type: ignore[no-untyped-def]
    timestep = settings.timestep * units.fs
    if ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep)
    if ensemble == "nvt":
        from ase.constraints import FixCom
        from ase.md.langevin import Langevin

        atoms.set_constraint(FixCom())
        return Langevin(
            atoms,
            timestep,
            temperature_K=settings.temperature,
            friction=0.01 / units.fs,
            fixcm=False,
            rng=np.random.default_rng(settings.seed),
        )
    from ase.md.nose_hoover_chain import IsotropicMTKNPT

    return IsotropicMTKNPT(
        atoms,
        timestep,
        temperature_K=settings.temperature,
        pressure_au=settings.pressure * 1e5 * units.Pascal,
        tdamp=100 * timestep,
        pdamp=1000 * timestep,
    )


def _labelled(structure: Structure, atoms: Atoms) -> Structure:
    stress = None
    if structure.pbc.all():
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress(apply_constraint=False))
    return Structure(
        atomic_numbers=structure.atomic_numbers,
        positions=atoms.get_positions(),
        cell=np.asarray(atoms.get_cell()),
        pbc=structure.pbc,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(apply_constraint=False),
        stress=stress,
        info=dict(structure.info),
    )
