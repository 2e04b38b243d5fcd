"""Figures of the gates: student and teacher in one picture each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.plots import BLUE, GREY, RED, STYLE, save

_TEACHER: dict[str, Any] = {"color": GREY, "linewidth": 3.2, "alpha": 0.75, "label": "teacher"}
_STUDENT: dict[str, Any] = {"color": BLUE, "linewidth": 1.7, "label": "student"}


def figures(gates: Sequence[Gate]) -> dict[str, tuple[Figure, str]]:
    """All figures that the measurements allow.

    Args:
        gates: of :func:`.run.run_gates`.

    Returns:
        name of the file without ``.png`` -> figure and caption. The caller closes the figures.
    """
    found: dict[str, tuple[Figure, str]] = {}
    for gate in gates:
        kind = gate.details.get("figure")
        if kind not in _DRAW:
            continue
        draw, caption = _DRAW[kind]
        name, count = f"gate_{kind}", 1
        while name in found:
            count += 1
            name = f"gate_{kind}_{count}"
        label = gate.name.rpartition(": ")[0]
        with plt.rc_context(STYLE):
            figure, axis = plt.subplots(figsize=(5.2, 3.3), layout="constrained")
            draw(axis, gate.details)
        found[name] = (figure, f"{label}: {caption}" if label else caption)
    return found


def save_figures(gates: Sequence[Gate], folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Write all figures as PNG into ``folder``.

    Returns:
        name -> PNG, and name -> caption.
    """
    drawn = figures(gates)
    images = {name: save(figure, folder / f"{name}.png") for name, (figure, _) in drawn.items()}
    return images, {name: caption for name, (_, caption) in drawn.items()}


def _equation_of_state(axis: Axes, details: dict[str, Any]) -> None:
    for side, style in (("teacher", _TEACHER), ("student", _STUDENT)):
        volumes = np.array(details[side]["volumes"])
        energies = 1e3 * np.array(details[side]["energies"])
        fit = np.polynomial.Polynomial.fit(volumes, energies, 3)
        fine = np.linspace(volumes.min(), volumes.max(), 200)
        lowest = fit(fine).min()
        axis.plot(fine, fit(fine) - lowest, **style)
        axis.plot(volumes, energies - lowest, "o", color=style["color"], markersize=4)
    axis.set(xlabel="volume, Å³/atom", title="energy − minimum, meV/atom")
    axis.legend()


def _phonons(axis: Axes, details: dict[str, Any]) -> None:
    both = {side: np.ravel(details[side]["frequencies"]) for side in ("teacher", "student")}
    highest = max(values.max() for values in both.values())
    lowest = min(0.0, min(values.min() for values in both.values()))
    width = 0.02 * (highest - lowest)
    grid = np.linspace(lowest - 4 * width, highest + 4 * width, 500)
    for side, style in (("teacher", _TEACHER), ("student", _STUDENT)):
        # Each frequency as a Gaussian; the three translations are no vibrations.
        bells = np.exp(-0.5 * ((grid[:, None] - both[side]) / width) ** 2)
        density = bells.sum(axis=1) / (width * np.sqrt(2 * np.pi) * len(both[side]))
        axis.plot(grid, density, **style)
    if lowest < -0.05:
        axis.axvspan(grid[0], 0.0, color=RED, alpha=0.12, linewidth=0)
    axis.set(xlabel="frequency, THz (imaginary: negative)", title="phonon density of states, 1/THz")
    axis.set_ylim(bottom=0)
    axis.legend()


def _frequencies(axis: Axes, details: dict[str, Any]) -> None:
    own, other = (np.array(details[side]["frequencies"]) for side in ("student", "teacher"))
    axis.axhline(0.0, color=GREY, linewidth=1)
    axis.vlines(other, 0.0, own - other, color=BLUE, linewidth=1.5)
    axis.plot(other, own - other, "o", color=BLUE, markersize=4)
    axis.set(xlabel="frequency of the teacher, cm⁻¹", title="student − teacher, cm⁻¹")


def _curve(axis: Axes, details: dict[str, Any]) -> None:
    for side, style in (("teacher", _TEACHER), ("student", _STUDENT)):
        axis.plot(details["x"], np.array(details[side], dtype=float), **style)
    other = np.array(details["teacher"], dtype=float)
    low, high = np.nanmin(other), np.nanmax(other)
    margin = max(0.3 * (high - low), 0.02)
    axis.set_ylim(low - margin, high + margin)  # a student far off must not hide the teacher
    axis.legend()


def _torsion(axis: Axes, details: dict[str, Any]) -> None:
    _curve(axis, details)
    axis.set(xlabel=f"turn about {details['name']}, °", title="energy, eV")


def _dissociation(axis: Axes, details: dict[str, Any]) -> None:
    _curve(axis, details)
    other = np.array(details["teacher"], dtype=float)
    end = other[np.isfinite(other)][-1]
    axis.set_ylim(-0.15 * end, 1.4 * end)
    axis.set(xlabel=f"length of {details['name']}, Å", title="energy − minimum, eV")


def _rdf(axis: Axes, details: dict[str, Any]) -> None:
    names = list(details["teacher"]["pairs"])
    for k, name in enumerate(names):
        for side, style in (("teacher", _TEACHER), ("student", _STUDENT)):
            shown = {**style, "label": style["label"] if k == 0 else None}
            g = np.array(details[side]["pairs"][name])
            axis.plot(details[side]["r"], g + 2.0 * k, **shown)
        axis.annotate(name, (details["teacher"]["r"][2], 2.0 * k + 0.15), color=GREY)
    axis.set(xlabel="r, Å", title="radial distribution functions, each two higher")
    axis.legend(loc="upper right")


def _stability(axis: Axes, details: dict[str, Any]) -> None:
    for run in details["student"]["runs"]:
        if not run["times"]:
            continue
        dead = bool(run["died"])
        axis.plot(
            run["times"], run["temperatures"], color=RED if dead else BLUE, linewidth=1, alpha=0.6
        )
        if dead:
            axis.plot(run["times"][-1], run["temperatures"][-1], "x", color=RED, markersize=8)
    heats = [t for run in details["student"]["runs"] for t in run["temperatures"] if t is not None]
    if heats:
        axis.set_ylim(0, 1.15 * float(np.quantile(heats, 0.98)))
    axis.set(xlabel="time, ps", title="temperature, K; × marks where a run ended")


_DRAW = {
    "equation_of_state": (_equation_of_state, "Equation of state of the relaxed crystal."),
    "phonons": (_phonons, "Phonons at the wave vectors of the supercell."),
    "frequencies": (_frequencies, "Harmonic frequencies, each in its own minimum."),
    "torsion": (_torsion, "The worst torsion, rigid fragments."),
    "dissociation": (_dissociation, "The worst bond pulled apart, rigid fragments."),
    "rdf": (_rdf, "Radial distribution functions from the same start."),
    "stability": (_stability, "Runs at the highest temperature."),
}
