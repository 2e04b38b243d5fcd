"""How often to correct: what the difference and the fastest vibration allow.

Three bounds on the outer step Δt, of which the smallest counts:

- *Resonance.* Impulses pump energy into the fastest vibration, of period T, near T/2 (linear
  analysis: Schlick, Barth and Mandziuk 1997, doi:10.1146/annurev.biophys.26.1.181) and at constant
  energy from about T/3, sometimes T/4 (Ma, Izaguirre and Skeel 2003,
  doi:10.1137/S1064827501399833). T is that of the largest eigenvalue of the student's
  mass-weighted Hessian, by Lanczos' method from differences of forces: twenty steps find it within
  a percent, where a spectrum of velocities would need a run of picoseconds.
- *Correlation.* The difference of the forces should still look like itself after Δt.
- *Energy.* The integrator conserves H + Δt²/12 d²U/dt² - Δt²/24 Σ f²/m exactly to third order,
  with U and f energy and forces of teacher - student and the derivative along the student's
  dynamics. How much these terms fluctuate in a short run is how much the teacher's H will.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms, units

from mlff_distiller.data import Structure
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.multistep.ase import InnerSteps, MultipleTimeStep
from mlff_distiller.multistep.correction import Correction

#: Inner steps in an outer step that ``auto`` never exceeds.
MOST = 16
#: Outer steps longer than this share of the fastest period resonate at constant energy ...
RESONANT = 1.0 / 3.0
#: ... and may do so from here.
_SAFE = 1.0 / 4.0
# Of the difference of the forces, after an outer step.
_CORRELATION = 0.5
# Fluctuation of the conserved energy in kT per square root of the number of atoms.
_ENERGY = 0.05
_SETTLE, _SAMPLES, _CHECKS = 100, 24, 12
# Å, the longest move of an atom in a difference quotient of forces.
_MOVE = 0.01


class Choice(NamedTuple):
    """An outer step and why."""

    every: int
    calls: int
    """Of the teacher, to find it."""
    error: float
    """Expected fluctuation of the teacher's total energy, kT per root of the number of atoms."""
    found: float | None
    """The same of a few outer steps; None where they were not made."""
    text: str
    """One line."""


def fastest_period(
    model: EnergyModel, structure: Structure, *, steps: int = 20, seed: int = 0
) -> float:
    """Period of the fastest vibration, fs; infinite where nothing vibrates.

    Args:
        model: asked ``2 * steps`` times for forces.
        structure: where; held coordinates do not vibrate. Need not be at rest.
        steps: of Lanczos' method.
        seed: of its first vector.

    Raises:
        InputError: the model fails.
    """
    roots = np.sqrt(structure.to_atoms(labels=False).get_masses())[:, None]
    free = np.ones((len(structure), 3), dtype=bool)
    if structure.fixed is not None:
        free = ~structure.fixed

    def product(vector: np.ndarray) -> np.ndarray:
        move = vector / roots
        length = _MOVE / float(np.abs(move).max())
        ends = [
            model.compute(
                Structure(
                    structure.atomic_numbers,
                    structure.positions + sign * length * move,
                    structure.cell,
                    structure.pbc,
                )
            ).forces
            for sign in (1.0, -1.0)
        ]
        hessian: np.ndarray = -(ends[0] - ends[1]) / (2.0 * length) / roots * free
        return hessian

    vector = np.random.default_rng(seed).standard_normal(free.shape) * free
    basis: list[np.ndarray] = []
    diagonal: list[float] = []
    beside: list[float] = []
    norm = float(np.linalg.norm(vector))
    for _ in range(min(steps, int(free.sum()))):
        basis.append(vector / norm)
        vector = product(basis[-1])
        diagonal.append(float((vector * basis[-1]).sum()))
        for one in (*basis, *basis):  # twice, against what rounding leaves
            vector = vector - one * (vector * one).sum()
        norm = float(np.linalg.norm(vector))
        if norm < 1e-6 * max(1e-6, np.abs(diagonal).max()):
            break
        beside.append(norm)
    beside = beside[: len(diagonal) - 1]
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    largest = float(np.linalg.eigvalsh(matrix)[-1])
    return 2.0 * np.pi / np.sqrt(largest) / units.fs if largest > 1e-9 else float("inf")


def resonance_warning(every: int, timestep: float, period: float, hydrogen: bool) -> str | None:
    """The line for an outer step that resonates; None for others.

    Args:
        every: inner steps in it.
        timestep: of an inner step, fs.
        period: of the fastest vibration, fs.
        hydrogen: heavier ones are a remedy.
    """
    limit = RESONANT * period
    if every * timestep <= limit:
        return None
    most = int(limit / timestep)
    remedy = f"use --every {most}" if most else f"use a --timestep below {limit:.2g}"
    if hydrogen:
        remedy += " or --hydrogen-mass 3"
    return (
        f"warning: an outer step of {every * timestep:g} fs resonates with the fastest vibration "
        f"(period {period:.1f} fs, limit {limit:.2g} fs), so that the run may heat up; {remedy}"
    )


def choose_every(
    atoms: Atoms,
    correction: Correction,
    timestep: float,
    *,
    temperature: float,
    period: float,
    allowed: Sequence[int] = tuple(range(1, MOST + 1)),
    thermostat: bool = True,
    check: bool = True,
    rng: np.random.Generator | None = None,
) -> Choice:
    """Choose the outer step by a short run of the student.

    Args:
        atoms: where the run starts, with momenta, constraints and the student as calculator; they
            are moved.
        correction: what is asked; about 40 calls of the teacher.
        timestep: of the inner steps, fs.
        temperature: K, of the run.
        period: of the fastest vibration, fs, see :func:`fastest_period`.
        allowed: numbers of inner steps to choose from.
        thermostat: let the run come to equilibrium with one.
        check: run a few outer steps of what was chosen, and take a smaller one if the energy says.
        rng: of the thermostat.

    Raises:
        InputError: the teacher fails, or nothing is allowed.
    """
    allowed = sorted({int(n) for n in allowed if 1 <= n <= MOST})
    if not allowed:
        raise InputError("--every auto has no number to choose from; name one, e.g. --every 4")
    begin = correction.calls
    step = timestep * units.fs
    InnerSteps(atoms, step, temperature if thermostat else None, rng=rng).run(_SETTLE)
    stride = 2
    correlation, growth = _sample(atoms, correction, step, stride)
    # Fluctuation of the conserved energy over kT and root of the number of atoms, per (inner step)².
    unit = units.kB * max(temperature, 1.0) * np.sqrt(len(atoms))
    growth = growth * step**2 / unit

    def like_itself(n: int) -> float:
        return float(np.interp(n, stride * np.arange(len(correlation)), correlation))

    bounds = {
        "resonance": [n for n in allowed if n * timestep <= _SAFE * period],
        "correlation": [
            n for n in allowed if min(like_itself(k) for k in range(1, n + 1)) >= _CORRELATION
        ],
        "energy": [n for n in allowed if growth * n**2 <= _ENERGY],
    }
    tightest = min(bounds, key=lambda name: max(bounds[name], default=0))
    every = max(bounds[tightest], default=allowed[0])
    found = None
    while check:
        found = _fluctuation(atoms, correction, step, every) / unit
        smaller = [n for n in allowed if n < every]
        if found <= 2.0 * _ENERGY or not smaller:
            break
        every, tightest = smaller[-1], "energy"
    limit = f"limited by {tightest}"
    if every == allowed[-1]:  # no bound acts
        limit = "the most that auto takes" if every == MOST else "the most that divides --interval"
    vibration = f"{period:.3g} fs" if np.isfinite(period) else "none"
    seen = "" if found is None else f", {100 * found:.2g} % in {_CHECKS} outer steps"
    text = (
        f"every {every} steps ({every * timestep:g} fs), {limit}: fastest vibration "
        f"{vibration}, teacher - student correlated to {like_itself(every):.2f} over the step, "
        f"energy error {100 * growth * every**2:.2g} % of kT per root of atoms{seen}; "
        f"{correction.calls - begin} calls of the teacher"
    )
    return Choice(every, correction.calls - begin, growth * every**2, found, text)


def _sample(
    atoms: Atoms, correction: Correction, step: float, stride: int
) -> tuple[np.ndarray, float]:
    """Correlation (k,) of the difference at lags of ``stride`` steps, and the standard deviation
    of d²U/dt² / 12 - Σ f²/m / 24, in eV per ASE's unit of time squared."""
    probe = MultipleTimeStep(atoms, step, correction)
    forces, powers, squares = [], [], []
    inner = InnerSteps(atoms, step)
    for sample in range(_SAMPLES):
        if sample:
            inner.run(stride)
        difference = probe.difference.forces
        forces.append(difference)
        powers.append(-float((difference * atoms.get_velocities()).sum()))
        squares.append(float((difference**2 / atoms.get_masses()[:, None]).sum()))
    flat = np.array(forces).reshape(_SAMPLES, -1)
    products = flat @ flat.T
    lags = min(MOST // stride + 1, _SAMPLES - 1)
    size = float(np.trace(products)) / _SAMPLES
    if size <= 0.0:  # teacher and student are the same
        return np.ones(lags), 0.0
    correlation = np.array([np.diagonal(products, lag).mean() / size for lag in range(lags)])
    second = np.diff(powers) / (stride * step)
    middle = 0.5 * (np.array(squares[1:]) + np.array(squares[:-1]))
    return correlation, float(np.std(second / 12.0 - middle / 24.0))


def _fluctuation(atoms: Atoms, correction: Correction, step: float, every: int) -> float:
    """Standard deviation of the teacher's total energy over a few outer steps, eV."""
    dynamics = MultipleTimeStep(atoms, step, correction, every)
    energies: list[float] = []
    dynamics.attach(
        lambda: energies.append(dynamics.get_teacher_energy() + atoms.get_kinetic_energy())
    )
    dynamics.run(_CHECKS)
    return float(np.std(energies))
