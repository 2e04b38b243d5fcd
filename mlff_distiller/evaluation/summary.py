"""The one-screen summary at the end of ``distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.verdict import print_gates
from mlff_distiller.evaluation.targets import measured


def print_summary(metrics: dict[str, Any], output: Path) -> None:
    """Print what was reached, against the targets, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=_title(metrics), title_style="bold", title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("reached", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for target, value in measured(metrics):
        if value is None and not target.at_least:
            continue
        passed = target.passed(value)
        mark = "[dim]–[/]" if passed is None else "[green]✓[/]" if passed else "[bold red]✗[/]"
        table.add_row(target.label, target.reached(value), f"{target.goal} {target.unit}", mark)
    console.print()
    console.print(table)
    for line in _details(metrics):
        console.print(line, style="dim")
    if validation := metrics.get("validation"):
        console.print()
        print_gates([Gate.from_dict(row) for row in validation["gates"]], validation["verdict"])
    console.print(f"\nreport   [bold]{output / 'report.html'}[/]\nstudent  {output / 'student.pt'}")
    console.print(
        f"next     mlff-distiller md {output / 'student.pt'} START.xyz --engine lammps", style="dim"
    )


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The same as plain lines, for ``info`` on the output directory."""
    lines = [_title(metrics)]
    for target, value in measured(metrics):
        passed = target.passed(value)
        mark = "–" if passed is None else "✓" if passed else "✗"
        reached = target.reached(value)
        lines.append(f"  {mark} {target.label:<26}{reached:>22}   target {target.goal}")
    if validation := metrics.get("validation"):
        lines += [f"  {validation['verdict']}", *(f"  ✗ {line}" for line in validation["failures"])]
    return lines + [f"  {line}" for line in _details(metrics)]


def _title(metrics: dict[str, Any]) -> str:
    system = str(metrics.get("structures", "")).removeprefix("builtin:")
    return f"{metrics.get('teacher')} distilled on {Path(system).name}"


def _details(metrics: dict[str, Any]) -> list[str]:
    lines = []
    counts = metrics.get("num_frames") or {}
    if counts:
        lines.append("frames: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    engines = metrics.get("engines") or {}
    costs = engines.get("seconds_per_step") or {}
    if costs:
        atoms = engines["num_atoms"]
        parts = [f"{name} {1e6 * seconds / atoms:.3g}" for name, seconds in costs.items()]
        if engines.get("teacher_seconds"):
            parts.append(f"teacher {1e6 * engines['teacher_seconds'] / atoms:.4g}")
        threads = engines.get("threads")
        lines.append(
            f"µs per atom and step ({atoms} atoms, {threads} thread{'s' if threads != 1 else ''}): "
            + ", ".join(parts)
        )
    for engine, reason in (engines.get("not_run") or {}).items():
        lines.append(f"✗ {engine} was not run: {reason}")
    stages = metrics.get("stage_seconds") or {}
    if stages:
        parts = [f"{name} {seconds:.0f}" for name, seconds in stages.items()]
        lines.append(f"seconds: {', '.join(parts)}; together {sum(stages.values()):.0f}")
    return lines
