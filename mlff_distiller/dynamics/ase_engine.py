"""The student inside ASE."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.data import Structure
from mlff_distiller.data.constraints import constraints_of
from mlff_distiller.dynamics.freedom import still_directions
from mlff_distiller.dynamics.record import Begin, Recorder
from mlff_distiller.dynamics.settings import MDSettings, exact_settings
from mlff_distiller.dynamics.trajectory import Trajectory
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import stress_volume
from mlff_distiller.multistep.ase import FRICTION, MultipleTimeStep


class CentreOfMassAtRest(FixCom):
    """Projects the motion of the centre of mass out, in some directions.

    ASE's own FixCom changes forces by a rule that needs not be for a potential without net force,
    and in all directions.

    Args:
        still: (3,) bool, where the centre of mass rests.
    """

    def __init__(self, still: np.ndarray) -> None:
        self.still = np.asarray(still, dtype=bool)

    def get_removed_dof(self, atoms: Atoms) -> int:
        """Degrees of freedom that it takes away."""
        return int(self.still.sum())

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        """Shift ``new`` so that the centre of mass stays."""
        masses = atoms.get_masses()
        new += self.still * (masses @ (atoms.positions - new) / masses.sum())

    def adjust_momenta(self, atoms: Atoms, momenta: np.ndarray) -> None:
        """Take the momentum of the centre of mass out."""
        masses = atoms.get_masses()
        momenta -= self.still * masses[:, None] * momenta.sum(axis=0) / masses.sum()

    def adjust_forces(self, atoms: Atoms, forces: np.ndarray) -> None:
        """Nothing: they add up to zero."""

    def todict(self) -> dict[str, Any]:
        """Not one of those that ASE can read back."""
        return {"name": "CentreOfMassAtRest", "kwargs": {"still": self.still.tolist()}}


def single_point(model: Path, structure: Structure, dtype: str) -> Structure:
    """See :func:`mlff_distiller.dynamics.single_point`."""
    atoms = structure.to_atoms(labels=False)
    atoms.calc = _calculator(model, dtype, 0)
    return _labelled(structure, atoms)


def student_at_work(model: Path, structure: Structure, settings: MDSettings) -> Atoms:
    """Atoms with the student as calculator and what the ensemble holds."""
    atoms = structure.to_atoms(labels=False)
    atoms.calc = _calculator(model, settings.dtype, settings.threads)
    _constrain(atoms, structure, settings.ensemble)
    return atoms


def run_md(model: Path, structure: Structure, settings: MDSettings, begin: Begin) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    atoms = student_at_work(model, structure, settings)
    atoms.set_velocities(begin.velocities / units.fs)
    if settings.warmup_steps and not begin.resumed:
        _constrain(atoms, structure, "nvt")
        rng = np.random.default_rng(settings.seed)
        with _one_line():
            _integrator(atoms, settings, "nvt", rng).run(settings.warmup_steps)
        _constrain(atoms, structure, settings.ensemble)
    recorder = Recorder("ase", structure, settings, begin)
    # Numbers that follow those of the first part, not the same again.
    fresh = [settings.seed, begin.step] if begin.resumed else settings.seed
    rng = np.random.default_rng(fresh)
    if "rng" in begin.extra:
        rng.bit_generator.state = begin.extra["rng"]
    integrator, every = _integrator(atoms, settings, settings.ensemble, rng), 1
    barostat = integrator if settings.ensemble == "npt" else None
    if "p_eps" in begin.extra and barostat is not None:
        barostat.p_eps = begin.extra["p_eps"]
    if begin.correction is not None:
        every = settings.every
        integrator = _corrected(atoms, settings, begin, rng, barostat)

    def record() -> None:
        extra: dict[str, Any] = {
            "rng": rng.bit_generator.state,
            "settings": exact_settings(settings),
        }
        if barostat is not None:
            extra["p_eps"] = float(barostat.p_eps)
        recorder.add(_labelled(structure, atoms, atoms.get_momenta()), **extra)

    integrator.attach(record, interval=settings.interval // every)
    recorder.start()
    with recorder.interruptible(), _one_line():
        integrator.run(settings.steps // every)
    return recorder.trajectory(steps=settings.steps)


@contextmanager
def _one_line() -> Iterator[None]:
    """Cells that collapse make ASE and NumPy stop with errors of their own; overflows come first."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except InputError:
        raise
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"ASE stopped: {error}; the cell or the atoms left all bounds: try a shorter --timestep, "
            "or another --pressure or --temperature"
        ) from None


def _constrain(atoms: Atoms, structure: Structure, ensemble: str) -> None:
    constraints: list[Any] = list(constraints_of(structure.fixed))
    still = still_directions(structure)
    if ensemble != "nve" and still.any():
        constraints.append(CentreOfMassAtRest(still))
    atoms.set_constraint(constraints)


def _calculator(model: Path, dtype: str, threads: int):  # type: ignore[no-untyped-def]
    from mlff_distiller.calculator import StudentCalculator

    return StudentCalculator(str(model), dtype=dtype, threads=threads)


def _integrator(  # type: ignore[no-untyped-def]
    atoms: Atoms, settings: MDSettings, ensemble: str, rng: np.random.Generator
):
    timestep = settings.timestep * units.fs
    if ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep)
    if ensemble == "nvt":
        from ase.md.langevin import Langevin

        return Langevin(
            atoms,
            timestep,
            temperature_K=settings.temperature,
            friction=FRICTION,
            fixcm=False,
            rng=rng,
        )
    return langevin_barostat(
        atoms,
        timestep,
        temperature=settings.temperature,
        pressure=settings.pressure,
        period=1000 * timestep,
        rng=rng,
    )


def _corrected(
    atoms: Atoms,
    settings: MDSettings,
    begin: Begin,
    rng: np.random.Generator,
    barostat: Any,
) -> MultipleTimeStep:
    assert begin.correction is not None
    integrator = MultipleTimeStep(
        atoms,
        settings.timestep * units.fs,
        begin.correction,
        settings.every,
        temperature_K=settings.temperature if settings.ensemble == "nvt" else None,
        rng=rng,
        barostat=barostat,
        first_step=begin.step,
    )
    begin.correction.step = begin.step
    _ = integrator.difference  # the call before the first step is not of the time per step
    return integrator


def langevin_barostat(  # type: ignore[no-untyped-def]
    atoms: Atoms,
    timestep: float,
    *,
    temperature: float,
    pressure: float,
    period: float,
    mass: float | None = None,
    rng: np.random.Generator,
):
    """Langevin dynamics of atoms and volume (Quigley and Probert 2004): ergodic for few atoms,
    where chains of thermostats are not.

    Args:
        atoms: with a calculator that has a stress.
        timestep: ASE's unit of time.
        temperature: K.
        pressure: bar.
        period: in which the motion of the volume loses its memory, ASE's unit of time.
        mass: of the volume, ASE's units; by default that of Martyna, Tobias and Klein 1994.
        rng: of the thermostats.
    """
    try:
        from ase.md.langevinbaoab import LangevinBAOAB
    except ImportError:
        raise InputError(
            "NPT in ASE needs a newer ASE; run: pip install -U ase, or use --engine lammps"
        ) from None
    if mass is None:
        degrees = atoms.get_number_of_degrees_of_freedom()
        mass = (degrees + 3) * units.kB * temperature * period**2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constraints: this one is of momenta alone
        return LangevinBAOAB(
            atoms,
            timestep,
            temperature_K=temperature,
            externalstress=-pressure * 1e5 * units.Pascal,
            hydrostatic=True,
            T_tau=100 * units.fs,
            P_tau=period,
            P_mass=mass,
            rng=rng,
        )


def _labelled(structure: Structure, atoms: Atoms, momenta: np.ndarray | None = None) -> Structure:
    cell = np.asarray(atoms.get_cell())
    stress = None
    if stress_volume(cell, structure.pbc):
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress(apply_constraint=False))
    return Structure(
        atomic_numbers=structure.atomic_numbers,
        positions=atoms.get_positions(),
        cell=cell,
        pbc=structure.pbc,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(apply_constraint=False),
        stress=stress,
        momenta=momenta,
        fixed=structure.fixed,
        info=dict(structure.info),
    )
