"""Liquids: structure, density and diffusion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from ase.md.verlet import VelocityVerlet

from mlff_distiller.data import Structure
from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.choose import Case
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.gate import Gate, relative
from mlff_distiller.evaluation.gates.runs import Run, carry_out, in_box, run_of, settings_for
from mlff_distiller.purpose import phase_of
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

_BINS, _REACH = 120, 8.0  # Å
_MELT, _REST, _DENSITY_TIME = 5.0, 5.0, 20.0  # ps
_DENSITY_FRAMES = 10


def radial_distribution(
    positions: np.ndarray,
    cell: np.ndarray,
    numbers: np.ndarray,
    reach: float,
    molecules: np.ndarray | None = None,
) -> dict[str, Any]:
    """g(r) of each pair of elements; 1 everywhere in an ideal gas.

    Args:
        positions: (k, n, 3), Å, of k frames.
        cell: (3, 3), Å, of all of them.
        numbers: (n,).
        reach: Å, at most half of the narrowest width of the cell.
        molecules: (n,), the molecule of each atom; pairs within one are left out. Their bonds are
            peaks so high that nothing else would count. None: all pairs.

    Returns:
        ``r``, Å, middles of the bins; ``pairs``: ``O-H`` -> g.
    """
    edges = np.linspace(0.0, reach, _BINS + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    volume = abs(float(np.linalg.det(cell)))
    inverse = np.linalg.inv(cell)
    elements = np.unique(numbers)
    labels = np.arange(len(numbers)) if molecules is None else np.asarray(molecules)
    apart = labels[:, None] != labels
    between = {
        (a, b): apart[np.ix_(numbers == a, numbers == b)]
        for a in elements
        for b in elements
        if a <= b
    }
    counts = {pair: np.zeros(_BINS) for pair in between}
    for frame in positions:
        for a, b in counts:
            one, other = frame[numbers == a], frame[numbers == b]
            vectors = (one[:, None] - other) @ inverse
            vectors = (vectors - np.round(vectors)) @ cell
            distances = np.linalg.norm(vectors, axis=2)
            counts[a, b] += np.histogram(distances[between[a, b]], edges)[0]
    pairs = {}
    for (a, b), count in counts.items():
        number = int(between[a, b].sum())
        if number:
            name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
            pairs[name] = (count / len(positions) * volume / number / shells).tolist()
    return {"r": (0.5 * (edges[1:] + edges[:-1])).tolist(), "pairs": pairs}


def distance(one: list[float], other: list[float]) -> float:
    """Area between two functions as a share of the area under the second."""
    a, b = np.array(one), np.array(other)
    return float(np.abs(a - b).sum() / b.sum())


def diffusion_coefficient(times: np.ndarray, positions: np.ndarray, masses: np.ndarray) -> float:
    """Self-diffusion by Einstein's relation, Å^2/ps.

    Args:
        times: (k,), ps.
        positions: (k, n, 3), Å, unwrapped.
        masses: (n,), amu; the centre of mass is taken out.

    Returns:
        A sixth of the slope of the mean square displacement over the second half of its lags, all
        origins of time averaged.
    """
    positions = positions - np.einsum("i,kid->kd", masses, positions)[:, None] / masses.sum()
    lags = np.arange(1, max(2, len(times) // 2))
    squares = [((positions[lag:] - positions[:-lag]) ** 2).sum(axis=2).mean() for lag in lags]
    half = slice(len(lags) // 2, None)
    if len(lags[half]) < 2:
        raise InputError("the run is too short for diffusion; raise acceptance.teacher_time")
    return float(np.polyfit(times[lags][half] - times[0], squares[half], 1)[0] / 6.0)


def dynamics(
    calculator: Calculator,
    atoms: Atoms,
    velocities: list[list[float]],
    step: float,
    time: float,
    molecules: list[int] | None = None,
) -> dict[str, Any]:
    """What a run without thermostat says: radial distribution and diffusion.

    Args:
        calculator: teacher or student.
        atoms: a liquid in equilibrium.
        velocities: (n, 3), ASE's unit.
        step: fs.
        time: ps.
        molecules: of :func:`radial_distribution`.

    Returns:
        of :func:`radial_distribution`, ``diffusion`` in Å^2/ps and ``temperature``, K, the mean.
    """
    moved = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=calculator)
    moved.set_velocities(np.array(velocities))
    steps = max(20, round(time * 1000.0 / step))
    every = max(1, steps // 200)
    times: list[float] = []
    frames: list[np.ndarray] = []
    heat: list[float] = []
    verlet = VelocityVerlet(moved, step * units.fs)

    def record() -> None:
        times.append(verlet.get_time() / units.fs / 1000.0)
        frames.append(moved.get_positions())
        heat.append(moved.get_temperature())

    verlet.attach(record, interval=every)
    verlet.run(steps)
    positions = np.array(frames)
    if not np.isfinite(positions).all():
        raise InputError("the run of the liquid blew up")
    cell = moved.cell.array
    width = float((1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min())
    labels = None if molecules is None else np.array(molecules)
    return {
        **radial_distribution(positions, cell, moved.numbers, min(_REACH, 0.5 * width), labels),
        "diffusion": diffusion_coefficient(np.array(times), positions, moved.get_masses()),
        "temperature": float(np.mean(heat[len(heat) // 2 :])),
    }


def rdf(context: Context, case: Case) -> list[Gate]:
    """The worst pair of elements."""
    student, teacher = _both(context, case)
    rows = {
        name: distance(student["pairs"][name], g)
        for name, g in teacher["pairs"].items()
        if sum(g) > 0
    }
    worst = max(rows, key=lambda name: rows[name])
    return [
        Gate(
            "radial distribution functions",
            "rdf",
            rows[worst],
            context.limits.rdf,
            "",
            reason=f"of {worst}",
            advice="more rounds of student dynamics of the liquid",
            details={"figure": "rdf", "student": student, "teacher": teacher},
        )
    ]


def diffusion(context: Context, case: Case) -> list[Gate]:
    """Self-diffusion."""
    student, teacher = _both(context, case)
    advice = (
        "raise acceptance.teacher_time if the run is too short for it, else more rounds of student "
        "dynamics of the liquid"
    )
    own, other, limit = student["diffusion"], teacher["diffusion"], context.limits.diffusion
    return [relative("self-diffusion", "diffusion", own, other, limit, "Å²/ps", advice=advice)]


def density(context: Context, case: Case) -> list[Gate]:
    """Density at the lowest temperature and pressure.

    The student runs at constant pressure. What the teacher's pressure on its frames differs by,
    times the student's compressibility (from the fluctuations of its volume), is by how much the
    teacher would change the density, to first order: no long run of the teacher is needed.
    """
    assert case.structure is not None
    start = _liquid(context, case.structure)
    temperature = _temperature(context, case.structure)
    run = _run(context, start, temperature, time=_DENSITY_TIME, records=400, ensemble="npt")

    def work() -> dict[str, Any]:
        outcome = carry_out(run)
        if outcome.died or outcome.trajectory is None:
            raise InputError(outcome.died)
        t = outcome.trajectory
        half = len(t.volume) // 2
        volumes = t.volume[half:]
        chosen = t.frames[half :: max(1, (len(t.frames) - half) // _DENSITY_FRAMES)]
        shifts = [_pressure(context.teacher.calculator, frame) for frame in chosen]
        own = [-np.trace(frame.stress) / 3.0 for frame in chosen if frame.stress is not None]
        mass = float(start.to_atoms(labels=False).get_masses().sum())
        volume = float(volumes.mean())
        stiffness = volume * units.kB * temperature / max(float(volumes.var()), 1e-12)
        return {
            "density": mass * units._amu * 1e27 / volume,
            "pressure_difference": float(np.mean(shifts) - np.mean(own)),
            "bulk_modulus": stiffness,
        }

    what = ["density", context.teacher.identity, temperature, start.positions.round(4).tolist()]
    found = context.student.remember(what, work)
    # The teacher pushes harder, so its liquid is thinner.
    change = found["pressure_difference"] / found["bulk_modulus"]
    own = found["density"]
    shift = found["pressure_difference"] * EV_PER_ANGSTROM3_IN_GPA
    return [
        relative(
            f"density at {temperature:g} K",
            "density",
            own,
            own / (1.0 + max(change, -0.9)),
            context.limits.density,
            "g/cm³",
            reason=f"the teacher's pressure on these frames differs by {shift:+.3f} GPa",
            advice="label frames of the liquid with their stress, and give stress more weight",
        )
    ]


def _both(context: Context, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Student and teacher from the same start, which the cache keeps with the teacher's run."""
    assert case.structure is not None
    structure = case.structure
    temperature = _temperature(context, structure)
    step, time = context.purpose.timestep, context.limits.teacher_time

    def begin() -> dict[str, Any]:
        run = _run(context, _liquid(context, structure), temperature, time=_REST, records=20)
        outcome = carry_out(run)
        if outcome.died or outcome.trajectory is None:
            raise InputError(f"of the student's liquid: {outcome.died}")
        last = outcome.trajectory.frames[-1]
        assert last.momenta is not None
        atoms = last.to_atoms(labels=False)
        return {
            "positions": last.positions.tolist(),
            "cell": np.asarray(last.cell).tolist(),
            "velocities": (last.momenta / atoms.get_masses()[:, None]).tolist(),
        }

    what = ["start of a liquid", structure.positions.round(4).tolist(), temperature, step]
    start = context.teacher.remember(what, begin)
    box = in_box(structure)
    atoms = Atoms(box.atomic_numbers, start["positions"], cell=start["cell"], pbc=True)
    # In melts of crystals bonds come and go.
    molecular = phase_of(structure) == "liquid"
    molecules = find_molecules(box).labels.tolist() if molecular else None
    return context.both(dynamics, atoms, start["velocities"], step, time, molecules)


def _liquid(context: Context, structure: Structure) -> Structure:
    """A liquid: the one that is given, or the crystal that is given, melted by the student."""
    start = in_box(structure)
    if phase_of(structure) == "liquid":
        return start
    hot = 1.5 * context.purpose.temperature[1]
    outcome = carry_out(_run(context, start, hot, time=_MELT, records=20))
    if outcome.died or outcome.trajectory is None:
        raise InputError(f"student: melting: {outcome.died}")
    return replace(
        outcome.trajectory.frames[-1], energy=None, forces=None, stress=None, momenta=None
    )


def _temperature(context: Context, structure: Structure) -> float:
    """Liquids are compared at the lowest temperature, melts at the highest, K."""
    return context.purpose.temperature[0 if phase_of(structure) == "liquid" else 1]


def _run(
    context: Context,
    start: Structure,
    temperature: float,
    *,
    time: float,
    records: int,
    ensemble: str = "nvt",
) -> Run:
    settings = settings_for(
        context.purpose,
        start,
        temperature=temperature,
        time=time,
        records=records,
        seed=0,
        ensemble=ensemble,
        pressure=context.purpose.pressure[0],
    )
    return run_of(context, start, settings)


def _pressure(calculator: Calculator, frame: Structure) -> float:
    """Of the forces alone, eV/Å^3."""
    atoms = frame.to_atoms(labels=False)
    atoms.calc = calculator
    return -float(np.mean(atoms.get_stress()[:3]))
