"""The result of all gates for files, screens and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mlff_distiller.data import Structure
from mlff_distiller.elements import reduced_formula
from mlff_distiller.evaluation.gates.gate import Gate, all_passed, failures
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.evaluation.targets import number
from mlff_distiller.purpose import PurposeConfig, ensembles, phases


def validation(
    gates: Sequence[Gate],
    purpose: PurposeConfig,
    acceptance: AcceptanceConfig,
    structures: Sequence[Structure],
    **more: Any,
) -> dict[str, Any]:
    """Content of validation.json, and ``metrics["validation"]`` of the report.

    Args:
        gates: of :func:`.run.run_gates`.
        purpose: what was asked for.
        acceptance: limits and choices.
        structures: starting structures.
        more: what else to remember, e.g. ``teacher``.

    Returns:
        ``passed``, ``verdict`` (one sentence), ``conditions`` (name -> text), ``failures`` (lines),
        ``gates``, ``acceptance`` and ``more``.
    """
    conditions = conditions_of(purpose, acceptance, structures)
    return {
        "passed": all_passed(gates),
        "verdict": verdict(gates, conditions),
        "conditions": conditions,
        "failures": failures(gates),
        "gates": [gate.to_dict() for gate in gates],
        "acceptance": dataclasses.asdict(acceptance),
        **more,
    }


def verdict(gates: Sequence[Gate], conditions: dict[str, str]) -> str:
    """One sentence: may be used for what, where; or not, and why."""
    where = f"{conditions['system']} at {conditions['temperature']}"
    if conditions["pressure"] != "0 GPa":
        where += f", {conditions['pressure']}"
    if not gates:
        return f"Not validated: no gate was measured, so nothing is known of {where}."
    failed = [gate.name for gate in gates if not gate.passed]
    if not failed:
        number = f"all {len(gates)} gates" if len(gates) > 1 else "the one gate"
        if "asked alone" in conditions:
            return (
                f"No verdict on {where}: {number} that {'were' if len(gates) > 1 else 'was'} asked "
                f"passed ({conditions['asked alone']}), the others were not asked."
            )
        return f"May be used for {where}: {number} passed."
    named = "; ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
    return f"NOT to be used for {where}: {len(failed)} of {len(gates)} gates failed ({named})."


def conditions_of(
    purpose: PurposeConfig, acceptance: AcceptanceConfig, structures: Sequence[Structure]
) -> dict[str, str]:
    """What the gates cover, in words."""

    def span(values: list[float], unit: str) -> str:
        low, high = values
        return f"{low:g} {unit}" if low == high else f"{low:g}–{high:g} {unit}"

    found = phases(purpose, structures)
    systems = sorted(
        {reduced_formula(s.atomic_numbers) if s.pbc.any() else s.formula for s in structures}
    )
    used = sorted({e for s in structures for e in ensembles(purpose, s)})
    conditions = {
        "system": f"{', '.join(systems[:4])}{' …' if len(systems) > 4 else ''} ({', '.join(found)})",
        "temperature": span(purpose.temperature, "K"),
        "pressure": span(purpose.pressure, "GPa"),
        "ensembles": ", ".join(used).upper(),
        "time step": f"{purpose.timestep:g} fs",
        "defects": ", ".join(purpose.defects) or "none",
    }
    if not acceptance.gates or "stability" in acceptance.gates:
        runs, time = acceptance.stability_seeds, acceptance.stability_time
        conditions["stability"] = f"{runs} run{'s' * (runs != 1)} of {time:g} ps"
    if acceptance.gates:
        conditions["asked alone"] = ", ".join(k.replace("_", " ") for k in acceptance.gates)
    if acceptance.skip:
        conditions["left out"] = ", ".join(kind.replace("_", " ") for kind in acceptance.skip)
    return conditions


def cells(gate: Gate) -> tuple[str, str, str, str]:
    """Student, teacher, deviation and limit as they stand in tables."""
    unit = "" if gate.limit_unit == "%" else f" {gate.limit_unit}".rstrip()
    percent = "%" if gate.limit_unit == "%" else ""
    own = f" {gate.unit}".rstrip()
    limit = f"{'≥' if gate.at_least else '≤'} {number(gate.limit)}{percent}{unit}"
    deviation = (
        "not measured" if gate.deviation is None else f"{number(gate.deviation)}{percent}{unit}"
    )
    return (
        "–" if gate.student is None else f"{number(gate.student, 4)}{own}",
        "–" if gate.teacher is None else f"{number(gate.teacher, 4)}{own}",
        deviation,
        limit,
    )


def _in_one(gate: Gate) -> str:
    """Deviation and limit, short enough for a terminal of 80 columns."""
    limit = f"({'≥' if gate.at_least else '≤'} {number(gate.limit)})"
    deviation = "not measured" if gate.deviation is None else number(gate.deviation)
    return f"{deviation} {limit} {gate.limit_unit}".rstrip()


def print_gates(gates: Sequence[Gate], sentence: str) -> None:
    """A table for people, what failed and what to do about it, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(show_edge=False, box=None, pad_edge=False)
    for name in ("", "", "student", "teacher", "deviation (limit)"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for gate in gates:
        mark = "[green]✓[/]" if gate.passed else "[bold red]✗[/]"
        student, teacher, _, _ = cells(gate)
        table.add_row(mark, gate.name, student, teacher, _in_one(gate))
    console.print(table)
    for line in failures(gates):
        console.print(f"✗ {line}", style="red", markup=False)
    console.print(sentence, style="bold green" if all_passed(gates) else "bold red", markup=False)
