"""Does the student hold at the hottest conditions, keep its energy, and is it fast?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates.choose import Case, cases, chosen
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.runs import (
    Run,
    carry_out,
    in_box,
    run_of,
    settings_for,
    summarised,
)
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.evaluation.speed import time_teacher
from mlff_distiller.purpose import PurposeConfig


def stability(context: Context, case: Case) -> list[Gate]:
    """Runs at the highest temperature with other seeds, ensembles and pressures; none may fail."""
    limits, purpose = context.limits, context.purpose
    assert case.structure is not None
    start = in_box(case.structure)
    runs = [
        run_of(
            context,
            start,
            settings_for(
                purpose,
                start,
                temperature=purpose.temperature[1],
                time=limits.stability_time,
                # Often enough that no fused pair escapes.
                records=max(20, round(20 * limits.stability_time)),
                seed=seed,
            ),
        )
        for seed in range(limits.stability_seeds)
    ]
    what = ["stability", [described(run) for run in runs]]
    found = context.student.remember(what, lambda: {"runs": list(context.pool(summarised, runs))})[
        "runs"
    ]
    return [stability_gate(found, purpose.temperature[1], limits.stability_time)]


def planned(
    limits: AcceptanceConfig, purpose: PurposeConfig, structures: Sequence[Structure]
) -> float:
    """Atoms × ps of the runs of :func:`stability`, which are most of what the gates compute.

    Args:
        limits: seeds and length of the runs.
        purpose: asks for phases.
        structures: starting structures.
    """
    if not limits.measure or "stability" not in chosen(limits, purpose, structures, True):
        return 0.0
    found = cases("stability", purpose, structures, limits.structures)
    atoms = sum(len(in_box(case.structure)) for case in found if case.structure is not None)
    return atoms * limits.stability_seeds * limits.stability_time


def stability_gate(runs: list[dict[str, Any]], temperature: float, time: float) -> Gate:
    """How many of the runs survived.

    Args:
        runs: of :func:`.runs.summarised`.
        temperature: K.
        time: ps, that each should have lasted.
    """
    dead = [run for run in runs if run["died"]]
    reason = ""
    if dead:
        first = min(dead, key=lambda run: run["picoseconds"])
        reason = f"the first failed after {first['picoseconds']:.3g} ps: {first['died']}"
    return Gate(
        f"stable {time:g} ps at {temperature:g} K",
        "stability",
        float(len(runs) - len(dead)),
        float(len(runs)),
        "runs",
        at_least=True,
        reason=reason,
        advice=(
            "more rounds of student dynamics at and above this temperature, a shorter time step, "
            "or a lower highest temperature"
        ),
        details={"figure": "stability", "student": {"runs": runs}},
    )


def drift(context: Context, case: Case) -> list[Gate]:
    """Slope of the total energy without thermostat at the highest temperature."""
    found = _without_thermostat(context, case)
    if found["died"]:
        raise ValueError(found["died"])
    return [
        Gate(
            f"energy drift, {context.purpose.temperature[1]:g} K",
            "drift",
            abs(found["drift"]),
            context.limits.drift,
            "meV/atom/ps",
            advice="a shorter time step (purpose.timestep)",
        )
    ]


def speed(context: Context, case: Case) -> list[Gate]:
    """One step of the student beside one call of the teacher, one thread each."""
    found = _without_thermostat(context, case)
    assert case.structure is not None
    if found["died"]:
        raise ValueError(found["died"])
    start = in_box(case.structure)
    config = context.teacher_config
    teacher = context.teacher.remember(
        ["speed", start.to_atoms(labels=False).todict()["numbers"].tolist(), start.cell.tolist()],
        lambda: {
            "seconds": time_teacher(
                config.name, start, device=config.device, options=config.options, threads=1
            )
        },
    )["seconds"]
    scale = 1e6 / len(start)
    return [
        Gate(
            "speed-up",
            "speed",
            teacher / found["seconds_per_step"],
            context.limits.speedup,
            "×",
            scale * found["seconds_per_step"],
            scale * teacher,
            "µs/atom",
            at_least=True,
            advice="a smaller network (model.hidden_dim, model.num_interactions) or cutoff",
        )
    ]


def _without_thermostat(context: Context, case: Case) -> dict[str, Any]:
    assert case.structure is not None
    start = in_box(case.structure)
    settings = settings_for(
        context.purpose,
        start,
        temperature=context.purpose.temperature[1],
        time=context.limits.drift_time,
        records=100,
        seed=0,
        ensemble="nve",
        warmup=1.0,
    )
    run = run_of(context, start, settings)

    def work() -> dict[str, Any]:
        outcome = carry_out(run)
        result: dict[str, Any] = {"died": outcome.died}
        if outcome.trajectory is not None:
            result["drift"] = outcome.trajectory.drift()
            result["seconds_per_step"] = outcome.trajectory.seconds_per_step
        return result

    return context.student.remember(["nve", described(run)], work)


def described(run: Run) -> list[Any]:
    """What decides the outcome of a run, the model apart."""
    s = run.structure
    return [
        run.engine,
        s.atomic_numbers.tolist(),
        s.positions.round(6).tolist(),
        s.cell.round(6).tolist(),
        dataclasses.asdict(run.settings),
    ]
