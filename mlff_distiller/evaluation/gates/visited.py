"""Errors against the teacher: on held-out frames, and where the student's own dynamics goes."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from ase.geometry import find_mic

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.choose import Case
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.gate import Gate, unmeasured
from mlff_distiller.evaluation.gates.runs import (
    Outcome,
    carry_out,
    in_box,
    run_of,
    settings_for,
    temperatures_of,
)
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.evaluation.gates.stability import described
from mlff_distiller.purpose import phase_of

_WARMUP, _SPACING = 2.0, 0.25  # ps
#: The limit at the highest temperature is at most this multiple of the one below.
_MOST = 4.0
#: A crystal is molten where this share of its atoms is farther from their sites than half of the
#: shortest distance between two sites; single defects move fewer.
_LOST, _HALF = 0.25, 0.5


def held_out(context: Context, case: Case) -> list[Gate]:
    """Mean errors on labelled frames that training never saw."""
    from mlff_distiller.evaluation.metrics import accuracy, predict
    from mlff_distiller.students.energy_model import ExportedModel

    if not context.held_out:
        raise InputError("there are no held-out frames; give some, e.g. data.test_fraction")
    frames = list(context.held_out)
    return held_out_gates(
        accuracy(frames, predict(ExportedModel(context.path), frames)), context.limits
    )


def held_out_gates(errors: dict[str, Any], limits: AcceptanceConfig) -> list[Gate]:
    """One line for each kind of label that there is.

    Args:
        errors: of :func:`mlff_distiller.evaluation.accuracy`.
        limits: of the user.
    """
    advice = "more frames, or a longer training"
    rows = [
        Gate(f"{name}, held-out frames", "held_out", errors[key], limit, unit, advice=advice)
        for name, key, limit, unit in (
            ("force error", "force_mae_mev_per_ang", limits.force_mae, "meV/Å"),
            ("energy error", "energy_mae_mev_per_atom", limits.energy_mae, "meV/atom"),
            ("stress error", "stress_mae_gpa", limits.stress_mae, "GPa"),
        )
        if errors[key] is not None or key.startswith("force")
    ]
    elements = errors.get("per_element") or {}
    if len(elements) > 1:
        worst = max(elements, key=lambda symbol: elements[symbol]["force_mae_mev_per_ang"])
        rows.append(
            Gate(
                "forces of the worst element, held-out",
                "held_out",
                elements[worst]["force_mae_mev_per_ang"],
                limits.element_force_mae,
                "meV/Å",
                reason=worst,
                advice=f"more frames with {worst} in other surroundings",
            )
        )
    return rows


def visited(context: Context, case: Case) -> list[Gate]:
    """Errors of the forces on frames of the student's dynamics at two or three temperatures."""
    purpose, limits = context.purpose, context.limits
    assert case.structure is not None
    start = in_box(case.structure)
    temperatures = temperatures_of(purpose)
    runs = [
        run_of(
            context,
            start,
            settings_for(
                purpose,
                start,
                temperature=temperature,
                time=_SPACING * limits.visited_frames,
                records=limits.visited_frames,
                seed=0,
                warmup=_WARMUP,
            ),
        )
        for temperature in temperatures
    ]

    def work() -> dict[str, Any]:
        outcomes = context.pool(carry_out, runs)
        sides = context.student.calculator, context.teacher.calculator
        return {"runs": [errors_on(*sides, outcome, start) for outcome in outcomes]}

    what = ["visited", 2, context.teacher.identity, [described(run) for run in runs]]
    found = context.student.remember(what, work)["runs"]
    return visited_gates(found, temperatures, limits)


def errors_on(
    student: Calculator, teacher: Calculator, outcome: Outcome, start: Structure
) -> dict[str, Any]:
    """Errors of the forces on the frames of a run.

    Args:
        student: who is measured; what engines record may lack precision.
        teacher: the reference.
        outcome: of the student's run; its first frame is not counted.
        start: where the run began, before it was warmed up.

    Returns:
        ``died``; ``force_mae`` and ``mean_force``, meV/Å, means of the sizes of components;
        ``frames``, how many; ``molten``, see :func:`is_molten`.
    """
    frames = [] if outcome.trajectory is None else outcome.trajectory.frames[1:]
    errors, sizes, died, last = [], [], outcome.died, start
    for frame in frames:
        if not np.isfinite(frame.positions).all():
            continue
        try:
            forces = _forces(teacher, frame)
        except Exception as error:  # calculators raise whatever they like
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            died = died or f"the teacher cannot label a frame of it: {line}"
            break
        errors.append(np.abs(_forces(student, frame) - forces).mean())
        sizes.append(np.abs(forces).mean())
        last = frame
    return {
        "died": died,
        "frames": len(errors),
        "force_mae": 1e3 * float(np.mean(errors)) if errors else None,
        "mean_force": 1e3 * float(np.mean(sizes)) if errors else None,
        "molten": is_molten(start, last),
    }


def is_molten(start: Structure, frame: Structure) -> bool | None:
    """Whether the atoms of a crystal have left their sites; None where there is no crystal.

    Args:
        start: with each atom on its site.
        frame: the same atoms later, in a cell of any size.
    """
    if phase_of(start) != "crystal" or len(start) < 2:
        return None
    moved = np.linalg.solve(frame.cell.T, frame.positions.T).T
    moved -= np.linalg.solve(start.cell.T, start.positions.T).T
    vectors, _ = find_mic(moved @ start.cell, start.cell, start.pbc)
    # Thermostats let the whole crystal drift.
    vectors, _ = find_mic(vectors - np.median(vectors, axis=0), start.cell, start.pbc)
    distances = start.to_atoms(labels=False).get_all_distances(mic=True)
    shortest = distances[~np.eye(len(start), dtype=bool)].min()
    lost = np.linalg.norm(vectors, axis=1) > _HALF * shortest
    return bool(lost.mean() > _LOST)


def force_limit(limits: AcceptanceConfig, mean_force: float | None) -> float:
    """Largest mean error of a force component on visited frames, meV/Å.

    Args:
        limits: of the user.
        mean_force: of the teacher's components there, meV/Å; None up to half of the highest
            temperature, where the limit is a number.
    """
    limit = limits.visited_force_mae
    if mean_force is None:
        return limit
    # Where a student strays to absurd forces, a share of them would allow anything.
    return max(limit, min(limits.visited_force_fraction * mean_force, _MOST * limit))


def visited_gates(
    found: list[dict[str, Any]], temperatures: list[float], limits: AcceptanceConfig
) -> list[Gate]:
    """One line for each temperature; a run that died has no measurement.

    Args:
        found: of :func:`errors_on`, one each.
        temperatures: K, ascending.
        limits: of the user.
    """
    rows = []
    for temperature, errors in zip(temperatures, found, strict=True):
        size = errors["mean_force"]
        hot = temperature == temperatures[-1]
        limit = force_limit(limits, size if hot else None)
        name = f"own dynamics, {temperature:g} K" + (", molten" if errors["molten"] else "")
        advice = f"more rounds of student dynamics at {temperature:g} K, labelled by the teacher"
        if errors["died"] or errors["force_mae"] is None:
            reason = errors["died"] or "no frame was recorded"
            rows.append(unmeasured(name, "visited", limit, "meV/Å", reason, advice=advice))
            continue
        rows.append(
            Gate(
                name,
                "visited",
                errors["force_mae"],
                limit,
                "meV/Å",
                reason=f"the teacher's components: {size:.0f} meV/Å, {errors['frames']} frames",
                advice=advice,
            )
        )
    return rows


def _forces(calculator: Calculator, frame: Structure) -> np.ndarray:
    atoms = frame.to_atoms(labels=False)
    atoms.calc = calculator
    return np.asarray(atoms.get_forces())
