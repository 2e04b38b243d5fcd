"""Statistics, tables and picture of multistep.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import pyplot, save
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates.liquids import radial_distribution

#: Of a run, for standard errors; those of spectra are longer, to resolve frequencies.
BLOCKS, LONG_BLOCKS = 8, 4
_BINS, _REACH = 80, 8.0


def pair_distribution(positions: NDArray, structure: Structure) -> tuple[NDArray, NDArray]:
    """r and g(r) of all pairs together; of a molecule the density of its distances, 1/Å."""
    if structure.pbc.all():
        width = 1.0 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0).max()
        ones = np.ones(len(structure), dtype=int)
        reach = min(_REACH, 0.5 * float(width))
        found = radial_distribution(positions, structure.cell, ones, reach)
        return np.array(found["r"]), np.array(found["pairs"]["H-H"])
    upper = np.triu_indices(len(structure), 1)
    edges = np.linspace(0.8, _REACH, _BINS + 1)
    count = np.zeros(_BINS)
    for frame in positions:
        vectors = frame[upper[0]] - frame[upper[1]]
        count += np.histogram(np.linalg.norm(vectors, axis=1), edges)[0]
    density = count / (len(positions) * len(upper[0]) * np.diff(edges))
    return 0.5 * (edges[1:] + edges[:-1]), density


def spectrum(velocities: NDArray, masses: NDArray, times: NDArray, frequencies: NDArray) -> NDArray:
    """Vibrational density of states of one block, normalised.

    Runs are recorded at different spacings: the window is one function of time and the transform
    is taken at one set of frequencies for all of them.

    Args:
        velocities: (k, n, 3).
        masses: (n,).
        times: (k,), of the block from 0 to 1.
        frequencies: in periods per block.
    """
    window = np.sin(np.pi * times) ** 2
    weighted = velocities * np.sqrt(masses)[None, :, None] * window[:, None, None]
    waves = np.exp(-2j * np.pi * np.outer(frequencies, times))
    power = (np.abs(waves @ weighted.reshape(len(times), -1)) ** 2).sum(axis=1)
    density: NDArray = power / power.sum()
    return density


def agreement(one: NDArray, other: NDArray) -> dict[str, float]:
    """Two sets of blocks of a function: mean square difference in standard errors, and area.

    Args:
        one, other: (blocks, bins).
    """
    error = np.sqrt(one.var(axis=0, ddof=1) / len(one) + other.var(axis=0, ddof=1) / len(other))
    difference = one.mean(axis=0) - other.mean(axis=0)
    seen = other.mean(axis=0) > 0.02 * other.mean(axis=0).max()
    seen &= error > 0
    area = float(np.abs(other.mean(axis=0)).sum())
    return {
        "chi2": float(np.mean((difference[seen] / error[seen]) ** 2)),
        "area": float(np.abs(difference).sum()) / area,
        # What the errors alone would make, of normal deviates.
        "noise": float(np.sqrt(2 / np.pi) * error.sum()) / area,
    }


def statistics_of(runs: Mapping[str, Mapping[str, Any]], structure: Structure) -> dict[str, Any]:
    """Of each run: energies, g(r), spectrum, and how they agree with the teacher's run."""
    masses = structure.to_atoms(labels=False).get_masses()
    size = len(structure)
    coarse = max(float(run["spacing"]) for run in runs.values())
    # The longest that all runs have: the last outer step may end before the last step.
    ends = [float(run["spacing"]) * (len(run["energies"]) - 1) for run in runs.values()]
    block = min(ends) / 1000.0 / LONG_BLOCKS  # ps
    functions: dict[str, dict[str, NDArray]] = {}
    result: dict[str, Any] = {}
    for method, run in runs.items():
        spacing = float(run["spacing"])
        energies = 1000.0 * run["energies"] / size  # meV/atom
        times = spacing * np.arange(len(energies)) / 1000.0
        kinetic = 0.5 * (masses[:, None] * run["velocities"] ** 2).sum(axis=(1, 2))
        heat = 2.0 * kinetic / (3 * size - 3) / 8.617333262e-5
        rows = [pair_distribution(p, structure) for p in np.array_split(run["positions"], BLOCKS)]
        # Up to what the longest spacing resolves.
        periods = np.arange(1.0, 500.0 / coarse * block)
        grid = periods / block
        parts = [(times >= k * block) & (times < (k + 1) * block) for k in range(LONG_BLOCKS)]
        densities = np.array(
            [
                spectrum(run["velocities"][part], masses, times[part] / block - k, periods)
                for k, part in enumerate(parts)
            ]
        )
        mean = densities @ grid
        functions[method] = {"g": np.array([g for _, g in rows]), "spectrum": densities}
        result[method] = {
            "drift_mev_per_atom_per_ps": float(np.polyfit(times, energies, 1)[0]),
            "std_mev_per_atom": float(energies.std()),
            "temperature": float(heat.mean()),
            "temperature_error": _error(heat),
            "mean_frequency_thz": float(mean.mean()),
            "mean_frequency_error": float(mean.std(ddof=1) / np.sqrt(LONG_BLOCKS)),
            "seconds_per_step": float(run["seconds_per_step"]),
            "r": _plain(rows[0][0]),
            "g": _plain(functions[method]["g"].mean(axis=0)),
            "g_error": _errors(functions[method]["g"]),
            "frequencies": _plain(grid),
            "spectrum": _plain(densities.mean(axis=0)),
            "spectrum_error": _errors(densities),
        }
    for method in runs:
        if method != "teacher":
            for name in ("g", "spectrum"):
                pair = functions[method][name], functions["teacher"][name]
                result[method][f"{name}_agreement"] = agreement(*pair)
    return result


def _errors(blocks: NDArray) -> list[float]:
    return _plain(blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks)))


def _plain(values: NDArray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _error(series: NDArray) -> float:
    means = [float(part.mean()) for part in np.array_split(series, BLOCKS)]
    return float(np.std(means, ddof=1) / np.sqrt(BLOCKS))


def table(name: str, found: Mapping[str, Any]) -> str:
    """One system."""
    teacher = found["runs"]["teacher"]
    lines = [
        f"## {name}",
        "",
        f"{found['atoms']} atoms, {found['teacher']}, steps of {found['timestep_fs']:g} fs, "
        f"{found['picoseconds']:g} ps at constant energy. The student's forces differ by "
        f"{1000 * found['force_error_ev_per_ang']:.0f} meV/Å (root mean square) on the teacher's "
        f"run; its fastest vibration has {found['fastest_period_fs']:.1f} fs.",
        "",
        "| run | drift, meV/atom/ps | deviation, meV/atom | T, K | g(r): χ² | area, % (noise) | "
        "spectrum: χ² | area, % (noise) | mean frequency, THz | speed over teacher |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, run in found["runs"].items():
        cells = [
            method,
            f"{run['drift_mev_per_atom_per_ps']:+.4f}",
            f"{run['std_mev_per_atom']:.4f}",
            f"{run['temperature']:.0f} ± {run['temperature_error']:.0f}",
        ]
        for kind in ("g", "spectrum"):
            a = run.get(f"{kind}_agreement")
            cells += ["", ""] if a is None else [
                f"{a['chi2']:.1f}", f"{100 * a['area']:.1f} ({100 * a['noise']:.1f})"
            ]  # fmt: skip
        cells.append(f"{run['mean_frequency_thz']:.2f} ± {run['mean_frequency_error']:.2f}")
        speed = found["speedup"].get(method)
        cells.append("" if speed is None else f"{speed:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"The teacher alone: {teacher['seconds_per_step']:.3f} s a step.", ""]
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    head = [
        "# Multiple time steps: the teacher's averages at a fraction of its calls",
        "",
        f"`python benchmarks/multistep.py` on {report.get('processor', 'an unknown processor')}.",
        "Drift and deviation are those of the total energy that a run conserves: the teacher's, of "
        "`student` its own. χ² is the mean square difference from the teacher's run in standard "
        "errors (from eight blocks of each run, four for spectra; 1.2 and 1.5 where only chance "
        "differs, less where two runs still follow each other), area the difference as a share of "
        "the teacher's function, beside what chance alone would make. Speeds are with the student "
        "in float32, one thread, in turn with the teacher.",
        "",
    ]
    tables = [table(name, found) for name, found in report["systems"].items()]
    return "\n".join([*head, *tables, "![g(r) and spectra](multistep.png)", ""])


def plot(report: Mapping[str, Any], path: Path) -> None:
    """g(r), spectra and energies of each system."""
    plt = pyplot()
    systems = report["systems"]
    figure, axes = plt.subplots(len(systems), 2, figsize=(10, 3.2 * len(systems)), squeeze=False)
    for row, (name, found) in zip(axes, systems.items(), strict=True):
        for method, run in found["runs"].items():
            style = {"teacher": "k-", "student": "r--"}.get(method, "-")
            width = 2.0 if method == "teacher" else 1.0
            row[0].plot(run["r"], run["g"], style, lw=width, label=method)
            row[1].plot(run["frequencies"], run["spectrum"], style, lw=width, label=method)
        row[0].set(title=f"{name} ({found['teacher']})", xlabel="r / Å", ylabel="g(r)")
        row[1].set(xlabel="frequency / THz", ylabel="density of states")
        row[0].legend(fontsize=7)
    figure.tight_layout()
    save(figure, path)
