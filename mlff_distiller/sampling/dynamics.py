"""Dynamics with a thermostat or a barostat of ASE, and frames of it that make sense."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.rattle import CLOSE_CONTACT

_FRICTION = 0.01 / units.fs
# Segments are short and begin far from the pressure: the volume of a solid of this stiffness moves
# with this period and critical damping, so that it neither lags nor overshoots. Softer ones creep.
_STIFFNESS = 20 * units.GPa
_PERIOD = 400 * units.fs
FAILED = "the calculator failed in molecular dynamics"
HOT = "molecular dynamics ran away"
LARGE_FORCE = "force above max_force in molecular dynamics"


def has_pressure(structure: Structure) -> bool:
    """Whether its cell may change: three periodic directions, no held atoms."""
    return bool(structure.pbc.all()) and structure.fixed is None


def check_pressure(base: Sequence[Structure], calculator: Calculator, remedy: str) -> None:
    """Raise InputError where constant pressure is asked for and impossible."""
    if not any(has_pressure(s) for s in base):
        raise InputError(
            "constant pressure needs a starting structure with three periodic directions and "
            f"without held atoms, got none; set {remedy}"
        )
    if "stress" not in calculator.implemented_properties:
        raise InputError(
            f"constant pressure needs a calculator with stress, got {type(calculator).__name__}; "
            f"set {remedy}, or choose another teacher"
        )


def make_dynamics(
    atoms: Atoms,
    timestep: float,
    temperature: float,
    pressure: float | None,
    rng: np.random.Generator,
) -> MolecularDynamics:
    """Langevin dynamics.

    Args:
        atoms: with a calculator and velocities.
        timestep: fs.
        temperature: K.
        pressure: GPa; None keeps the cell.
        rng: of the thermostat.
    """
    step = timestep * units.fs
    if pressure is not None:
        from mlff_distiller.dynamics.ase_engine import langevin_barostat

        # mass x d²e/dt² = -9 V B e for a linear strain e.
        frequency = 2.0 * np.pi / _PERIOD
        barostat: MolecularDynamics = langevin_barostat(
            atoms,
            step,
            temperature=temperature,
            pressure=1e4 * pressure,
            period=0.5 / frequency,
            mass=9.0 * atoms.get_volume() * _STIFFNESS / frequency**2,
            rng=rng,
        )
        return barostat
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Langevin(
            atoms,
            timestep=step,
            temperature_K=temperature,
            friction=_FRICTION,
            fixcm=False,
            rng=rng,
        )


def run_steps(dynamics: MolecularDynamics, steps: int, rejected: Counter[str]) -> bool:
    """Whether the calculator went along; if it failed, that is counted."""
    try:
        dynamics.run(steps)
    except Exception as error:  # calculators raise whatever they like on wild geometries
        lines = str(error).strip().splitlines() or [type(error).__name__]
        rejected[f"{FAILED} ({lines[0][:80]})"] += 1
        return False
    return True


def take_frame(
    atoms: Atoms,
    origin: Structure,
    temperature: float,
    *,
    min_distance: float,
    max_force: float,
    rejected: Counter[str],
) -> Structure | None:
    """The frame that dynamics of ``origin`` is at, or None if it makes no sense: that is counted."""
    cell = np.asarray(atoms.get_cell())
    finite = all(np.all(np.isfinite(x)) for x in (atoms.positions, cell, _forces(atoms)))
    # The kinetic energy of few atoms fluctuates: allow for three standard deviations more.
    limit = 10.0 * temperature * (1.0 + 3.0 / np.sqrt(1.5 * len(atoms)))
    if not finite or atoms.get_temperature() > limit or not _same_size(cell, origin.cell):
        rejected[HOT] += 1
        return None
    frame = Structure(
        atomic_numbers=origin.atomic_numbers,
        positions=atoms.get_positions(),
        cell=cell,
        pbc=origin.pbc,
        fixed=origin.fixed,
        info=origin.info,
    )
    if closest_ratio(frame) < min_distance:
        rejected[CLOSE_CONTACT] += 1
        return None
    if np.linalg.norm(_forces(atoms), axis=1).max() > max_force:
        rejected[LARGE_FORCE] += 1
        return None
    return frame


def _same_size(cell: np.ndarray, before: np.ndarray) -> bool:
    """Whether a volume is within a factor of three: beyond it matter has evaporated or collapsed."""
    old, new = abs(np.linalg.det(before)), abs(np.linalg.det(cell))
    return bool(old == 0.0 or 1 / 3 < new / old < 3)


def _forces(atoms: Atoms) -> np.ndarray:
    """(n, 3), eV/Å, those on held atoms too."""
    forces: np.ndarray = atoms.get_forces(apply_constraint=False)
    return forces
