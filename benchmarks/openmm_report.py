"""The report of openmm_plugin.py: what was measured, against the targets, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pyplot, save

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


def excursion(row: dict[str, Any]) -> float:
    """Largest deviation of a trajectory's short means from their first, eV/atom."""
    return max(max(abs(e - energies[0]) for e in energies) for _, energies in row["traces"])


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
            "noise: standard deviation about the line; excursion: the farthest that a mean over one "
            f"hundredth of a run came to lie from the first. Target {DRIFT_TARGET:.0e} eV/atom/ps; met if "
            "within by two standard errors.",
            "",
            "| step / fs | hydrogen | precision | runs | T / K | drift / eV/atom/ps "
            "| noise / eV/atom | excursion / eV/atom | met |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in section["rows"]:
            error = "" if row["error"] is None else f" ± {row['error']:.1e}"
            lines.append(
                f"| {row['step_fs']} | {mass_text(row)} | {row['precision']} "
                f"| {len(row['slopes'])} × {row['picoseconds']:g} ps | {row['temperature']:.0f} "
                f"| {row['drift']:+.1e}{error} | {row['noise']:.1e} | {excursion(row):.1e} "
                f"| {drift_verdict(row)} |"
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
    shown = [part for part in PARTS if part in report]
    widths = [{"overhead": 7.0, "drift": 5.5, "memory": 4.0}[part] for part in shown]
    figure, grid = pyplot().subplots(
        1,
        len(shown),
        figsize=(sum(widths), 4.4),
        width_ratios=widths,
        layout="constrained",
        squeeze=False,
    )
    for axes, part in zip(grid[0], shown, strict=True):
        {"overhead": plot_overhead, "drift": plot_drift, "memory": plot_memory}[part](
            axes, report[part]["rows"]
        )
        axes.grid(alpha=0.3)
    save(figure, path)


def plot_overhead(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["platform"] == rows[0]["platform"]]
    rows = [row for row in rows if row["threads"] == rows[0]["threads"]]
    colors = {"native": "C0", "python": "C1"}
    for i, row in enumerate(rows):
        to_percent = 100 / row["engine_us"]
        height, error = row["overhead_percent"], row["error_us"] * to_percent
        axes.bar(i, height, yerr=error, color=colors[row["backend"]], capsize=3)
        top = max(height + error, 0)
        limit = target_of(row)[0].removeprefix("≤ ").split()
        if len(limit) == 2:
            at = float(limit[0]) * (to_percent if limit[1] == "µs" else 1)
            axes.hlines(at, i - 0.45, i + 0.45, color="C3", lw=1.5)
            top = max(top, at)
        text = f"{row['overhead_us']:+.0f} µs\nof {row['engine_us']:.0f}"
        axes.annotate(text, (i, top + 1.5), ha="center", fontsize=7)
    axes.margins(y=0.12)
    names = [f"{row['atoms']} atoms\n{row['network']}\n{row['backend']}" for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=7)
    axes.plot([], [], color="C3", label="target")
    axes.set(
        ylabel="added to the bare engine / %",
        title=f"overhead of painn_force, {rows[0]['platform']} platform",
    )
    axes.legend(fontsize=8)


def plot_drift(axes: Any, rows: list[dict[str, Any]]) -> None:
    end = max(times[-1] for times, _ in rows[0]["traces"])
    limit = 1e3 * DRIFT_TARGET * end
    axes.fill_between([0, end], [0, limit], [0, -limit], color="0.88", label="target", zorder=0)
    for i, row in enumerate(rows):
        for k, (times, energies) in enumerate(row["traces"]):
            label = f"{row['step_fs']} fs, H {mass_text(row)}, {row['precision']}"
            shift = 1e3 * (np.array(energies) - energies[0])
            axes.plot(times, shift, color=f"C{i}", lw=0.9, label=None if k else label)
    axes.set_yscale("symlog", linthresh=1.0, linscale=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="time / ps",
        ylabel="total energy / (meV/atom)",
        title="NVE, means of short stretches",
    )
    axes.legend(fontsize=7, loc="upper left")


def plot_memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        series = np.array(row["bytes"])
        steps = np.linspace(0, row["steps"], len(series))
        growth = 100 * (series / series[0] - 1)
        axes.plot(steps, growth, "o-", ms=3, label=f"{row['backend']}, {series[0] / 1e6:.0f} MB")
    axes.axhline(MEMORY_TARGET, color="0.5", ls="--", label="target")
    axes.set(xlabel="steps", ylabel="growth of resident memory / %", title="memory")
    axes.legend(fontsize=7)
