"""The report of openmm_plugin.py: what was measured, against the targets, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("overhead", "drift", "memory")
#: (fewest and most atoms, back end, largest overhead, its unit)
TARGETS = (
    (1, 100, "native", 50.0, "µs"),
    (900, 2000, "native", 5.0, "%"),
    (900, 2000, "python", 15.0, "%"),
)
CLOCKS = {"wall": "wall time", "cpu": "CPU time"}
DRIFT_TARGET = 1e-5  # eV/atom/ps
MEMORY_TARGET = 1.0  # %


def mass_text(row: dict[str, Any]) -> str:
    return "natural" if row["hydrogen_amu"] is None else f"{row['hydrogen_amu']:g} amu"


def target_of(row: dict[str, Any]) -> tuple[str, str]:
    """Target of a row of the overhead, and whether it is met."""
    for fewest, most, backend, limit, unit in TARGETS:
        if fewest <= row["atoms"] <= most and row["backend"] == backend:
            value = row["overhead_us"] if unit == "µs" else row["overhead_percent"]
            return f"≤ {limit:g} {unit}", "yes" if value <= limit else "**no**"
    return "–", "–"


def drift_verdict(row: dict[str, Any]) -> str:
    if row["error"] is None:
        return "–"
    low, high = (abs(row["drift"]) + sign * 2 * row["error"] for sign in (-1, 1))
    return "yes" if high <= DRIFT_TARGET else "**no**" if low > DRIFT_TARGET else "undecided"


def tables(report: dict[str, Any]) -> str:
    """Markdown of everything measured."""
    lines = ["# painn_force in OpenMM", ""]
    for part in PARTS:
        if part in report:
            about = report[part]["about"]
            lines.append(
                f"{part}: {about['machine']}, OpenMM {about['openmm']}; load average when it "
                f"began {about['load']:.1f}{', quick' if about['quick'] else ''}."
            )
    if "overhead" in report:
        section = report["overhead"]
        lines += [
            "",
            "## Overhead over the bare engine",
            "",
            f"µs of {CLOCKS[section['clock']]} per step, medians; skin {section['skin_angstrom']} Å. "
            "Added = with the force − without it − the engine alone. The engine alone is timed from Python, and "
            f"{section['python_call_us']:.1f} µs are taken off for the call (one atom, smallest "
            "network: an upper bound), so what is added is rather over- than underestimated.",
            "",
            "| atoms | network | platform | back end | threads | engine alone | OpenMM without force "
            "| with force | added | of the engine | target | met |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in section["rows"]:
            lines.append(
                f"| {row['atoms']} | {row['network']} | {row['platform']} | {row['backend']} "
                f"| {row['threads']} | {row['engine_us']:.1f} | {row['without_us']:.1f} "
                f"| {row['with_us']:.1f} | {row['overhead_us']:+.1f} ± {row['error_us']:.1f} "
                f"| {row['overhead_percent']:+.1f} % | {' | '.join(target_of(row))} |"
            )
    if "drift" in report:
        section = report["drift"]
        lines += [
            "",
            "## Conservation of energy",
            "",
            f"{section['structure']}, {section['atoms']} atoms, NVE on the CPU platform after "
            "thermostatted steps. Drift: mean slope of the trajectories ± its standard error; "
            f"noise: standard deviation about the line. Target {DRIFT_TARGET:.0e} eV/atom/ps; met if "
            "within by two standard errors.",
            "",
            "| step / fs | hydrogen | precision | runs | T / K | drift / eV/atom/ps "
            "| noise / eV/atom | met |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in section["rows"]:
            error = "" if row["error"] is None else f" ± {row['error']:.1e}"
            lines.append(
                f"| {row['step_fs']} | {mass_text(row)} | {row['precision']} "
                f"| {len(row['slopes'])} × {row['picoseconds']:g} ps | {row['temperature']:.0f} "
                f"| {row['drift']:+.1e}{error} | {row['noise']:.1e} | {drift_verdict(row)} |"
            )
    if "memory" in report:
        lines += [
            "",
            "## Resident memory",
            "",
            "| back end | steps | at the start / MB | growth | target | met |",
            "|---|---|---|---|---|---|",
        ]
        for row in report["memory"]["rows"]:
            met = "yes" if row["growth_percent"] < MEMORY_TARGET else "**no**"
            lines.append(
                f"| {row['backend']} | {row['steps']} | {row['bytes'][0] / 1e6:.1f} "
                f"| {row['growth_percent']:+.3f} % | < {MEMORY_TARGET:g} % | {met} |"
            )
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [part for part in PARTS if part in report]
    figure, grid = pyplot.subplots(
        1, len(shown), figsize=(5.2 * len(shown), 4.2), layout="constrained", squeeze=False
    )
    for axes, part in zip(grid[0], shown, strict=True):
        {"overhead": plot_overhead, "drift": plot_drift, "memory": plot_memory}[part](
            axes, report[part]["rows"]
        )
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_overhead(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["platform"] == rows[0]["platform"]]
    labels = [f"{row['atoms']} atoms\n{row['network']}\n{row['backend']}" for row in rows]
    bottom = np.zeros(len(rows))
    for key, text in (
        ("engine_us", "engine alone"),
        ("without_us", "OpenMM without force"),
        ("overhead_us", "added by the back end"),
    ):
        heights = np.maximum([100 * row[key] / row["with_us"] for row in rows], 0)
        axes.bar(range(len(rows)), heights, bottom=bottom, label=text)
        bottom += heights
    for i, row in enumerate(rows):
        axes.annotate(f"+{row['overhead_us']:.0f} µs", (i, 101), ha="center", fontsize=7)
    axes.set_xticks(range(len(rows)), labels, fontsize=6)
    axes.set(ylim=(0, 125), ylabel="% of a step", title=f"one step, {rows[0]['platform']} platform")
    axes.legend(fontsize=7, ncols=3, loc="upper center")


def plot_drift(axes: Any, rows: list[dict[str, Any]]) -> None:
    for i, row in enumerate(rows):
        for k, (times, energies) in enumerate(row["traces"]):
            label = f"{row['step_fs']} fs, H {mass_text(row)}, {row['precision']}"
            shift = 1e3 * (np.array(energies) - energies[0])
            axes.plot(times, shift, color=f"C{i}", lw=0.9, label=None if k else label)
    end = max(times[-1] for times, _ in rows[0]["traces"])
    limit = 1e3 * DRIFT_TARGET * end
    axes.fill_between([0, end], [0, limit], [0, -limit], color="0.85", label="target", zorder=0)
    axes.set(
        xlabel="time / ps",
        ylabel="total energy / (meV/atom)",
        title="NVE, means of short stretches",
    )
    axes.legend(fontsize=7)


def plot_memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        series = np.array(row["bytes"])
        steps = np.linspace(0, row["steps"], len(series))
        axes.plot(steps, 100 * (series / series[0] - 1), "o-", ms=3, label=row["backend"])
    axes.axhline(MEMORY_TARGET, color="0.5", ls="--", label="target")
    axes.set(xlabel="steps", ylabel="growth of resident memory / %", title="memory")
    axes.legend(fontsize=7)
