"""Figures of the report. Colours are those of Okabe and Ito, told apart by colour-blind readers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import Trajectory
from mlff_distiller.files import atomic_path
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#6b7280",
)
PIXELS_PER_INCH = 160
ENGINE_COLOURS = {"lammps": BLUE, "openmm": ORANGE, "ase": GREEN, "teacher": GREY}
ENGINE_NAMES = {
    "lammps": "LAMMPS",
    "openmm": "OpenMM",
    "ase": "ASE",
    "torchscript": "TorchScript",
    "teacher": "teacher",
}
STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#1f2937",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.dpi": 100,
    "savefig.dpi": PIXELS_PER_INCH,
    "savefig.bbox": "tight",
}


def learning_curve(history: dict[str, np.ndarray]) -> Figure:
    """Validation errors and learning rate over the epochs.

    Args:
        history: columns of ``history.csv``.
    """
    panels = [
        ("valid_force_mae", "force MAE, meV/Å", 1e3, BLUE),
        ("valid_energy_mae", "energy MAE, meV/atom", 1e3, ORANGE),
        ("valid_stress_mae", "stress MAE, GPa", EV_PER_ANGSTROM3_IN_GPA, GREEN),
    ]
    shown = [p for p in panels if p[0] in history and np.isfinite(history[p[0]]).any()]
    epochs = history["epoch"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(shown), figsize=(3.9 * len(shown), 3.2), squeeze=False, layout="constrained"
        )
        for axis, (key, label, factor, colour) in zip(axes[0], shown, strict=True):
            values = history[key] * factor
            good = np.isfinite(values)
            axis.plot(epochs[good], values[good], color=colour)
            best = int(np.nanargmin(values))
            axis.plot(epochs[best], values[best], "o", color=colour, markersize=6)
            axis.annotate(
                f"best {values[best]:.3g}",
                (epochs[best], values[best]),
                xytext=(0, 16),
                textcoords="offset points",
                ha="right" if best > len(epochs) / 2 else "left",
                color=colour,
                fontweight="bold",
            )
            axis.set_yscale("log")
            _plain_log_labels(axis)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set(xlabel="epoch", title=label)
    return figure


def parity(reference: Sequence[Structure], predicted: Sequence[Structure]) -> Figure:
    """Student against teacher: density of force components, energies and stresses."""
    pairs = list(zip(reference, predicted, strict=True))
    forces = [
        (r.forces, p.forces) for r, p in pairs if r.forces is not None and p.forces is not None
    ]
    energy = [
        (r.energy / len(r), p.energy / len(p))
        for r, p in pairs
        if r.energy is not None and p.energy is not None
    ]
    stress = [
        (r.stress * EV_PER_ANGSTROM3_IN_GPA, p.stress * EV_PER_ANGSTROM3_IN_GPA)
        for r, p in pairs
        if r.stress is not None and p.stress is not None
    ]
    columns = [bool(forces), bool(energy), bool(stress)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            sum(columns),
            figsize=(4.1 * sum(columns), 3.9),
            squeeze=False,
            layout="constrained",
        )
        free = iter(axes[0])
        if forces:
            true = np.concatenate([np.ravel(a) for a, _ in forces])
            model = np.concatenate([np.ravel(b) for _, b in forces])
            _density(figure, next(free), true, model, "force component, eV/Å", "meV/Å")
        if energy:
            values = np.array(energy)
            values = values - values[:, 0].mean()
            label = "energy per atom − mean, eV"
            _scatter(next(free), values[:, 0], values[:, 1], label, "meV/atom", ORANGE)
        if stress:
            true = np.concatenate([np.ravel(a) for a, _ in stress])
            model = np.concatenate([np.ravel(b) for _, b in stress])
            _scatter(next(free), true, model, "stress component, GPa", "GPa", GREEN)
    return figure


def energy_drift(trajectories: Sequence[Trajectory]) -> Figure:
    """Total energy of the NVE runs relative to their start, and temperature."""
    runs = [t for t in trajectories if t.ensemble == "nve"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), layout="constrained")
        for run in runs:
            colour = ENGINE_COLOURS.get(run.engine, PURPLE)
            name = ENGINE_NAMES.get(run.engine, run.engine)
            time = run.time / 1000.0
            change = (run.total_energy - run.total_energy[0]) / run.num_atoms * 1e3
            label = f"{name}: {run.drift():+.2g} meV/atom/ps"
            axes[0].plot(time, change, color=colour, alpha=0.45, linewidth=1.2)
            fit = np.polyval(np.polyfit(time, change, 1), time)
            axes[0].plot(time, fit, color=colour, linewidth=2.2, label=label)
            axes[1].plot(time, run.temperature, color=colour, linewidth=1.3, label=name)
        largest = max((np.abs(axis).max() for axis in axes[0].get_ylim()), default=0.0)
        axes[0].set_ylim(-1.35 * max(largest, 0.02), 1.6 * max(largest, 0.02))
        axes[0].set(xlabel="time, ps", title="NVE total energy − start, meV/atom")
        axes[0].legend(loc="upper left", fontsize=9)
        axes[1].set(xlabel="time, ps", title="NVE temperature, K")
        axes[1].set_ylim(bottom=0)
        axes[1].legend(loc="lower right", fontsize=9, ncols=3)
    return figure


def volume_over_time(trajectory: Trajectory) -> Figure:
    """Volume and temperature of an NPT run."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.0), layout="constrained")
        time = trajectory.time / 1000.0
        per_atom = trajectory.volume / trajectory.num_atoms
        axes[0].plot(time, per_atom, color=BLUE)
        axes[0].set(xlabel="time, ps", title="NPT volume, Å³/atom")
        axes[1].plot(time, trajectory.temperature, color=RED)
        axes[1].set(xlabel="time, ps", title="NPT temperature, K")
        axes[1].set_ylim(bottom=0)
    return figure


def speed_bars(microseconds: dict[str, float], teacher_name: str | None = None) -> Figure:
    """Cost per atom and step of each engine and of the teacher, logarithmic.

    Args:
        microseconds: engine or ``teacher`` -> µs per atom and step.
        teacher_name: what to call the teacher.
    """
    names = sorted(microseconds, key=lambda name: -microseconds[name])
    values = np.array([microseconds[name] for name in names])
    labels = [
        f"teacher\n{teacher_name}" if name == "teacher" and teacher_name else ENGINE_NAMES[name]
        for name in names
    ]
    teacher = microseconds.get("teacher")
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9.6, 0.5 * len(names) + 1.0), layout="constrained")
        colours = [ENGINE_COLOURS.get(name, PURPLE) for name in names]
        bars = axis.barh(labels, values, color=colours, height=0.62)
        for bar, name, value in zip(bars, names, values, strict=True):
            text = f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"
            if teacher and name != "teacher":
                text += f"   ({teacher / value:,.0f}× faster)"
            axis.annotate(
                text,
                (value, bar.get_y() + bar.get_height() / 2),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
            )
        axis.set_xscale("log")
        axis.set_xlim(values.min() / 3, values.max() * 12)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set(xlabel="µs per atom and step (less is better)", title="Cost of one MD step")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file in memory; the figure is closed."""
    buffer = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="png", facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> bytes:
    """Write the figure as PNG (atomically) and return the bytes; the figure is closed."""
    data = png(figure)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return data


def _density(
    figure: Figure, axis: Axes, true: np.ndarray, model: np.ndarray, label: str, unit: str
) -> None:
    low, high = _limits(true, model)
    counts = axis.hexbin(
        true,
        model,
        gridsize=70,
        extent=(low, high, low, high),
        norm=LogNorm(),
        cmap="viridis",
        mincnt=1,
        linewidths=0.1,
    )
    bar = figure.colorbar(counts, ax=axis, shrink=0.8, pad=0.01)
    bar.set_label("number of components", fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _finish_parity(axis, true, model, low, high, label, unit)


def _scatter(
    axis: Axes, true: np.ndarray, model: np.ndarray, label: str, unit: str, colour: str
) -> None:
    low, high = _limits(true, model)
    axis.plot(true, model, "o", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
    _finish_parity(axis, true, model, low, high, label, unit)


def _finish_parity(
    axis: Axes,
    true: np.ndarray,
    model: np.ndarray,
    low: float,
    high: float,
    label: str,
    unit: str,
) -> None:
    error = np.abs(model - true).mean() * (1e3 if unit.startswith("meV") else 1.0)
    axis.plot([low, high], [low, high], color="#111827", linewidth=0.9, linestyle="--")
    axis.set(
        xlim=(low, high),
        ylim=(low, high),
        xlabel="teacher",
        ylabel="student",
        title=label,
        aspect="equal",
    )
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.text(
        0.04, 0.95, f"MAE {error:.3g} {unit}", transform=axis.transAxes, va="top", fontweight="bold"
    )


def _limits(true: np.ndarray, model: np.ndarray) -> tuple[float, float]:
    low, high = float(min(true.min(), model.min())), float(max(true.max(), model.max()))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _plain_log_labels(axis: Any) -> None:
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
