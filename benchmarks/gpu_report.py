"""Table (Markdown), numbers (JSON) and picture (PNG) of benchmarks/gpu.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import pyplot, save, write_report


def write(report: dict[str, Any], folder: Path) -> None:
    write_report(folder, "gpu", report, markdown(report), plot)


def label(row: dict[str, Any]) -> str:
    """What a row measured, in words."""
    parts = [row["what"]]
    if "math" in row:
        parts += [row["math"], "graph" if row["graph"] else "no graph"]
        if row["rebuild"]:
            parts.append("list built in every call")
    return ", ".join(parts)


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Measured {report['date']} on {report['device']}, products by {report['products']}; "
        f"{report['model']}. Water at 1 g/cm³, energy and forces to the host, atoms moved in every "
        "call; medians.",
        "",
        *([f"**The GPU failed on the way: {report['failed']}**", ""] if "failed" in report else []),
        "| atoms | what | ms per call | µs per atom | lowest – highest ms | device memory |",
        "|--:|---|--:|--:|---|--:|",
    ]
    for row in report["rows"]:
        name = label(row) + (f" {row['version']}" if row.get("version") else "")
        if "not_measured" in row:
            reason = str(row["not_measured"]).replace("|", "/")
            lines.append(f"| {row['atoms']:,} | {name} | not measured: {reason} | | | |")
            continue
        on_gpu = "memory_GB" in row and "CPU" not in row["what"]
        memory = f"{row['memory_GB']:.2f} GB" if on_gpu else ""
        lines.append(
            f"| {row['atoms']:,} | {name} | {row['median_s'] * 1e3:.3g} "
            f"| {row['median_s'] / row['atoms'] * 1e6:.3g} "
            f"| {row['low_s'] * 1e3:.3g} – {row['high_s'] * 1e3:.3g} | {memory} |"
        )
    lines += [
        "",
        "Largest deviations from the CPU engine in float64, checked before anything was timed:",
        "",
        "| precision | products | energy of an atom, eV | force, of the largest |",
        "|---|---|--:|--:|",
    ]
    kinds = list(dict.fromkeys((row["dtype"], row["math"]) for row in report["checks"]))
    for dtype, math in kinds:
        rows = [r for r in report["checks"] if (r["dtype"], r["math"]) == (dtype, math)]
        energy, force = max(r["energy_eV"] for r in rows), max(r["force"] for r in rows)
        wrong = "" if all(r["ok"] for r in rows) else " **wrong**"
        lines.append(f"| {dtype} | {math} | {energy:.1e} | {force:.1e}{wrong} |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    left_out = ("no graph", "list built", "python backend", "half", "1 rank, tf32")
    for row in report["rows"]:
        if "median_s" in row and not any(words in label(row) for words in left_out):
            point = (row["atoms"], row["median_s"] / row["atoms"] * 1e6)
            lines.setdefault(label(row), []).append(point)
    figure, axis = pyplot().subplots(figsize=(9, 5), layout="constrained")
    slowest = sorted(lines.items(), key=lambda line: -line[1][0][1])  # the legend in their order
    for k, (name, points) in enumerate(slowest):
        axis.plot(*zip(*points, strict=True), "os^D"[k // 10], ls="-", markersize=4, label=name)
    axis.set(xscale="log", yscale="log", xlabel="atoms", ylabel="µs per atom and call",
             title=f"water, {report['device']}")  # fmt: skip
    axis.grid(alpha=0.3, which="both")
    if lines:
        figure.legend(loc="outside right upper", fontsize=8)
    save(figure, path, 130)
