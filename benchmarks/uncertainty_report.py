"""Tables and figure of benchmarks/uncertainty.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.common import save
from mlff_distiller.evaluation.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
)

COLOURS = (GREY, BLUE, GREEN, ORANGE, PURPLE, RED)
#: Atoms of all kinds are put into this many equal parts, by prediction.
PARTS = 10


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def ranks(values: Any) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def spearman(a: Any, b: Any) -> float:
    """Correlation of ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def together(report: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Errors and predictions of all kinds."""
    kinds = report["kinds"].values()
    return (
        np.concatenate([k["error"] for k in kinds]),
        np.concatenate([k["predicted"] for k in kinds]),
    )


def parts(report: dict[str, Any]) -> list[tuple[float, float]]:
    """(rms predicted, rms error) of equal parts of all atoms, ascending."""
    error, predicted = together(report)
    order = np.argsort(predicted)
    return [(rms(predicted[i]), rms(error[i])) for i in np.array_split(order, PARTS)]


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    fit = report["fit"]
    lines = [
        "# Uncertainty of each atom",
        "",
        f"Teacher {report['teacher']}, silicon; calibrated on {fit['held_out_atoms']} held-out atoms "
        f"(rms error {fit['rms_error']:.3f}, predicted {fit['rms_predicted']:.3f}, largest "
        f"{fit['largest']:.3f} eV/Å). {report['processor']}.",
        "",
        "## Error of forces against prediction, eV/Å",
        "",
        "| frames | atoms | rms error | rms predicted | error < 2 u | rank correlation |",
        "|---|---|---|---|---|---|",
    ]
    error, predicted = together(report)
    rows = [*report["kinds"].items(), ("all", {"error": error, "predicted": predicted})]
    for kind, found in rows:
        e, u = np.array(found["error"]), np.array(found["predicted"])
        lines.append(
            f"| {kind} | {len(e)} | {rms(e):.3f} | {rms(u):.3f} | {100 * np.mean(e < 2 * u):.0f} % "
            f"| {spearman(e, u):.2f} |"
        )
    lines += [
        "",
        "Tenths of all atoms by prediction:",
        "",
        "| rms predicted | rms error |",
        "|---|---|",
    ]
    lines += [f"| {u:.3f} | {e:.3f} |" for u, e in parts(report)]
    in_time = report["in_time"]
    lines += [
        "",
        f"## First warning of `md` at {in_time['temperature']:g} K, fs",
        "",
        f"Limit {in_time['limit']:.2f} eV/Å, 3 times the largest of held-out atoms. Other checks: "
        "closest pair, energy per atom.",
        "",
        "| seed | uncertainty | other checks |",
        "|---|---|---|",
    ]
    for run in in_time["runs"]:
        spoke = [
            "never" if run[k] is None else f"{run[k]}" for k in ("uncertainty_fs", "others_fs")
        ]
        lines.append(f"| {run['seed']} | {spoke[0]} | {spoke[1]} |")
    lines += [
        "",
        "## Cost",
        "",
        "Energy and forces of one step, float32, one thread, medians of calls in turn.",
        "",
        "| network | atoms | without / ms | with / ms | cost |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['network']} | {r['atoms']} | {r['without_ms']:.2f} | {r['with_ms']:.2f} "
        f"| {100 * (r['ratio'] - 1):+.1f} % |"
        for r in report["cost"]
    ]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Error against prediction, and the largest uncertainty on the way out of the crystal."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
        for (kind, found), colour in zip(report["kinds"].items(), COLOURS, strict=False):
            left.scatter(
                found["predicted"], found["error"], s=4, alpha=0.35, color=colour, linewidths=0
            )
            left.scatter([], [], s=25, color=colour, label=kind)
        left.plot(
            *zip(*parts(report), strict=True), "o-", color="black", label="rms of tenths", ms=4
        )
        ends = np.array([3e-3, 30.0])
        left.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
        left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        left.set(xlabel="predicted, eV/Å", ylabel="error of the force on an atom, eV/Å")
        left.set_title("Error against prediction")
        left.legend(fontsize=8, loc="upper left")
        in_time = report["in_time"]
        for run in in_time["runs"]:
            time = np.array(run["time_fs"]) / 1000
            (line,) = right.plot(time, run["largest"], linewidth=1.2)
            if run["others_fs"] is not None:
                k = int(np.searchsorted(run["time_fs"], run["others_fs"]))
                right.plot(time[k], run["largest"][k], "o", color=line.get_color(), ms=7)
        right.plot([], [], "o", color=GREY, label="first word of the other checks")
        right.axhline(in_time["limit"], color="black", linestyle="--", label="limit")
        right.set(yscale="log", xlabel="time, ps", ylabel="largest uncertainty, eV/Å")
        right.set_title(f"Leaving the crystal, {in_time['temperature']:g} K")
        right.legend(fontsize=8, loc="lower right")
        save(figure, path)
