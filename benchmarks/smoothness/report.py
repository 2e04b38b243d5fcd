"""Tables (Markdown) and picture (PNG) of benchmarks/smoothness.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pyplot, save
from benchmarks.smoothness.crystal import change
from benchmarks.smoothness.datasets import SYSTEMS
from benchmarks.smoothness.study import (
    DEMO_LATTICE,
    DISPLACEMENTS,
    FORMS,
    NORMS,
    REFERENCE,
    STRAINS,
)

Measured = dict[str, Any]
Value = Callable[[Measured, float], float]

AMPLITUDE = 1e-3  # Å or strain, at which constants are compared
MOST_CHANGE = 1.0  # %, of a constant between the amplitudes
MOST_ERROR = 2.0  # %, of the mean force MAE above the paper's form
CONSTANTS = ("C11", "C12", "C44")


def _at(name: str, key: str | None = None) -> Value:
    """Reads a quantity at an amplitude out of what measure_silicon returned."""

    def value(found: Measured, amplitude: float) -> float:
        entry = dict(map(tuple, found[name]))[amplitude]
        return float(entry if key is None else entry[key])

    return value


#: Title and reader of what is measured at several amplitudes.
SECONDS: dict[str, Value] = {
    "on-site k": _at("force_constant"),
    **{f"{c}": _at("elastic", c) for c in CONSTANTS},
    "Γ": _at("optical"),
}


#: Those that hardly change up to 3e-2 in a smooth potential; C11 and C12 do, by anharmonicity.
HARMONIC = ("on-site k", "C44", "Γ")


def runs_of(report: dict[str, Any], system: str, form: str) -> list[Measured]:
    """What was measured of the students of one form, by seed."""
    prefix = f"{system}; {form}; seed "
    return [r["found"] for key, r in report["runs"].items() if key.startswith(prefix) and "found" in r]  # fmt: skip


def forms_of(report: dict[str, Any], system: str) -> dict[str, list[Measured]]:
    found = {form: runs_of(report, system, form) for form in FORMS}
    return {form: runs for form, runs in found.items() if runs}


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    about = report["about"]
    systems = [s for s in SYSTEMS if forms_of(report, s)]
    lines = [
        "# Norms and envelopes",
        "",
        f"{about['machine']}, torch {about['torch']}. Smooth s: sqrt(x² + s²) − s; paper: sqrt(x² + 1e-8); squared: x². "
        "p: exponent of the polynomial envelope. Students trained in float32, measured in float64 in "
        "Python. Means over the seeds, ± their standard deviation.",
        "",
        "## Accuracy",
        "",
        *accuracy_table(report, systems),
    ]
    if "silicon" in systems and "teacher" in report:
        forms = forms_of(report, "silicon")
        teacher = report["teacher"]
        lines += [
            "",
            f"## Second derivatives of perfect silicon, a = {about['lattice']} Å",
            "",
            "On-site force constant by central differences, eV/Å²; 64 atoms.",
            "",
            *amplitude_table(forms, teacher, SECONDS["on-site k"], DISPLACEMENTS, " Å"),
            "",
            "Clamped-ion C44, GPa, by strain.",
            "",
            *amplitude_table(forms, teacher, SECONDS["C44"], STRAINS, ""),
            "",
            f"Constants at {AMPLITUDE:g} (GPa; optical frequency at Γ in THz) and how far a minimiser goes "
            "from a rattle of 1e-4 Å.",
            "",
            *constants_table(forms, teacher),
            "",
            f"Largest change of a constant from its value at {AMPLITUDE:g}, %, over seeds and over "
            "amplitudes of 1e-4 to 1e-2 (in brackets: at 3e-2).",
            "",
            *change_table(forms, teacher),
            "",
            "The change at 3e-2 divided by that at 1e-2, mean over seeds: 9 where it is the h² of a smooth energy "
            "(its anharmonicity), anything else where it is not.",
            "",
            *order_table(forms, teacher),
        ]
    if "teacher_at_demo" in report:
        lines += [
            "",
            f"The teacher at a = {DEMO_LATTICE} Å, where its envelope's second derivative jumps at the third shell.",
            "",
            *teacher_table(report["teacher_at_demo"]),
        ]
    lines += ["", "## Criteria", "", *verdict_table(report, systems)]
    return "\n".join(lines) + "\n"


def accuracy_table(report: dict[str, Any], systems: list[str]) -> list[str]:
    rows = []
    for system in systems:
        forms = forms_of(report, system)
        for form, runs in forms.items():
            extra = "–"
            if system != "silicon":
                extra = f"{max(r['hessian_error'] for r in runs):.1e}"
            rows.append(
                [
                    SYSTEMS[system].title,
                    form,
                    str(len(runs)),
                    _mean(runs, "force_mae_mev_per_ang", 2),
                    _relative(forms, form),
                    _mean(runs, "energy_mae_mev_per_atom", 3),
                    "–" if system != "silicon" else _mean(runs, "stress_mae_gpa", 4),
                    extra,
                ]
            )
    titles = ["set", "form", "seeds", "force MAE, meV/Å", "against paper", "energy MAE, meV/atom",
              "stress MAE, GPa", "Hessian by differences (1e-3 Å) − autograd, eV/Å²"]  # fmt: skip
    return _table(titles, rows, text=2)


def amplitude_table(
    forms: dict[str, list[Measured]],
    teacher: Measured,
    value: Value,
    amplitudes: tuple[float, ...],
    unit: str,
) -> list[str]:
    rows = [
        [form, *(f"{np.mean([value(r, h) for r in runs]):.2f}" for h in amplitudes)]
        for form, runs in forms.items()
    ]
    rows.append(["teacher (float32)", *(f"{value(teacher, h):.2f}" for h in amplitudes)])
    return _table(["form", *(f"{h:g}{unit}" for h in amplitudes)], rows)


def constants_table(forms: dict[str, list[Measured]], teacher: Measured) -> list[str]:
    names = [*CONSTANTS, "Γ"]
    rows = []
    for form, runs in {**forms, "teacher (float32)": [teacher]}.items():
        values = [[SECONDS[name](r, AMPLITUDE) for r in runs] for name in names]
        away = max(r["relaxation"]["displacement"] for r in runs)
        rows.append([form, *(_spread(v, 2) for v in values), f"{away:.1e}"])
    return _table(["form", *names, "displacement, Å (worst seed)"], rows)


def change_table(forms: dict[str, list[Measured]], teacher: Measured) -> list[str]:
    rows = []
    for form, runs in {**forms, "teacher (float32)": [teacher]}.items():
        cells = []
        for value in SECONDS.values():
            small, large = changes(runs, value)
            cells.append(f"{small:.2f} ({large:.2f})")
        rows.append([form, *cells])
    return _table(["form", *SECONDS], rows)


def order_table(forms: dict[str, list[Measured]], teacher: Measured) -> list[str]:
    middle, large = STRAINS[2:]
    rows = []
    for form, runs in {**forms, "teacher (float32)": [teacher]}.items():
        cells = []
        for value in SECONDS.values():
            ratios = [
                (value(r, large) - value(r, STRAINS[0])) / (value(r, middle) - value(r, STRAINS[0]))
                for r in runs
            ]
            cells.append(f"{np.mean(ratios):.1f}")
        rows.append([form, *cells])
    return _table(["form", *SECONDS], rows)


def teacher_table(teacher: Measured) -> list[str]:
    rows = [
        [name, *(f"{value(teacher, h):.2f}" for h in STRAINS)] for name, value in SECONDS.items()
    ]
    return _table(["", *(f"{h:g}" for h in STRAINS)], rows)


def changes(runs: list[Measured], value: Value) -> tuple[float, float]:
    """Largest relative change from AMPLITUDE over 1e-4 … 1e-2, and at 3e-2, %."""
    *small, large = STRAINS
    parts = []
    for amplitudes in (small, [large]):
        parts.append(
            max(100 * change([value(r, h) for h in amplitudes], value(r, AMPLITUDE)) for r in runs)
        )
    return parts[0], parts[1]


def verdict_table(report: dict[str, Any], systems: list[str]) -> list[str]:
    """Force MAE against the paper's form, and whether constants are constant."""
    rows = []
    for form in FORMS:
        if form == REFERENCE or not any(runs_of(report, s, form) for s in systems):
            continue
        ratios = []
        for system in systems:
            forms = forms_of(report, system)
            if form in forms and REFERENCE in forms:
                ratios.append(_ratio(forms, form))
        mean = 100 * (float(np.mean(ratios)) - 1.0) if ratios else float("nan")
        silicon = runs_of(report, "silicon", form)
        flat = flat_all = float("nan")
        if silicon:
            flat = max(changes(silicon, value)[0] for value in SECONDS.values())
            flat_all = max(flat, *(changes(silicon, SECONDS[name])[1] for name in HARMONIC))
        rows.append(
            [
                form,
                f"{mean:+.1f} % ({len(ratios)} sets)",
                _yes(mean <= MOST_ERROR),
                f"{flat:.2f} %",
                _yes(flat <= MOST_CHANGE),
                f"{flat_all:.2f} %",
                _yes(flat_all <= MOST_CHANGE),
            ]
        )
    limit = f"≤ {MOST_CHANGE:g} %"
    titles = ["form", "mean force MAE against paper", f"≤ {MOST_ERROR:g} %", "all constants to 1e-2", limit,
              f"{', '.join(HARMONIC)} to 3e-2", limit]  # fmt: skip
    return _table(titles, rows)


def demo_table(found: dict[str, Measured]) -> str:
    """Two runs of the demo beside their teacher."""
    rows = []
    for title, key, digits in (
        ("force MAE, meV/Å", "force_mae_mev_per_ang", 2),
        ("energy MAE, meV/atom", "energy_mae_mev_per_atom", 3),
        ("stress MAE, GPa", "stress_mae_gpa", 4),
    ):
        rows.append([title, "", *(f"{m[key]:.{digits}f}" if key in m else "–" for m in found.values())])  # fmt: skip
    blocks: list[tuple[str, Value, tuple[float, ...]]] = [
        ("on-site force constant, eV/Å²", SECONDS["on-site k"], DISPLACEMENTS),
        *((f"{c} clamped, GPa", SECONDS[c], STRAINS) for c in CONSTANTS),
        ("C44 relaxed ions, GPa", _at("elastic_relaxed", "C44"), STRAINS[1:]),
        ("optical at Γ, THz", SECONDS["Γ"], STRAINS),
    ]
    for title, value, amplitudes in blocks:
        for h in amplitudes:
            rows.append([title, f"{h:g}", *(f"{value(m, h):.2f}" for m in found.values())])
    relaxed = [m["relaxation"]["displacement"] for m in found.values()]
    rows.append(["relaxed from a rattle, Å", "0.0001", *(f"{away:.1e}" for away in relaxed)])
    return "\n".join(_table(["", "amplitude", *found], rows))


def plot(report: dict[str, Any], path: Path) -> None:
    """Force constant and C44 against the amplitude, one line a form."""
    forms = forms_of(report, "silicon")
    if not forms or "teacher" not in report:
        return
    figure, axes = pyplot().subplots(
        2, 2, figsize=(9.5, 6), sharex="col", height_ratios=(1, 1.2), layout="constrained"
    )
    panels = (("on-site k", DISPLACEMENTS, "displacement, Å", "on-site k, eV/Å²", 10.0),
              ("C44", STRAINS, "strain", "clamped-ion C44, GPa", 100.0))  # fmt: skip
    for (whole, detail), (name, amplitudes, x, y, linear) in zip(axes.T, panels, strict=True):
        value = SECONDS[name]
        exact = [value(report["teacher"], h) for h in amplitudes]
        for axis in (whole, detail):
            for form, runs in forms.items():
                mean = [np.mean([value(r, h) for r in runs]) for h in amplitudes]
                line = "o-" if form in NORMS else "o:"
                axis.plot(amplitudes, mean, line, markersize=3, label=form)
            axis.plot(amplitudes, exact, "k--", label="teacher, SevenNet-0")
            axis.set(xscale="log", ylabel=y)
            axis.grid(alpha=0.3)
        whole.set_yscale("symlog", linthresh=linear, linscale=1.5)
        detail.set(xlabel=x, ylim=(0.85 * exact[-1], 1.05 * exact[-1]))
    axes[1, 0].legend(fontsize=7, ncols=2)
    figure.suptitle(
        "Perfect silicon: a second derivative must not depend on the step (below: detail)"
    )
    save(figure, path, 130)


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _ratio(forms: dict[str, list[Measured]], form: str) -> float:
    key = "force_mae_mev_per_ang"
    own, paper = (np.mean([r[key] for r in forms[f]]) for f in (form, REFERENCE))
    return float(own / paper)


def _relative(forms: dict[str, list[Measured]], form: str) -> str:
    if form == REFERENCE or REFERENCE not in forms:
        return "–"
    return f"{100 * (_ratio(forms, form) - 1):+.1f} %"


def _mean(runs: list[Measured], key: str, digits: int) -> str:
    return _spread([r[key] for r in runs], digits)


def _spread(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def _table(titles: list[str], rows: list[list[str]], text: int = 1) -> list[str]:
    rule = "|" + "---|" * text + "--:|" * (len(titles) - text)
    lines = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return [lines[0], rule, *lines[1:]]
