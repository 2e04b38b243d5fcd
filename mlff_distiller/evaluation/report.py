"""One HTML file: may the student be used, where, how good it is and how to use it next.

What it looks like is in report.html.j2; here is what that template is given.
"""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.verdict import cells
from mlff_distiller.evaluation.plots import ENGINE_NAMES
from mlff_distiller.evaluation.targets import measured, number
from mlff_distiller.files import atomic_write_text


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: dict[str, Any],
    card: dict[str, Any],
    figures: dict[str, bytes],
    model_path: str,
) -> None:
    """Write a self-contained HTML page.

    Args:
        path: file to write.
        title: what was distilled from which teacher.
        metrics: content of metrics.json. ``validation`` is that of
            :func:`mlff_distiller.evaluation.gates.verdict.validation`, with ``captions`` (figure ->
            text) of the gates' figures; without it the page says that nothing was validated.
        card: metadata of the exported student.
        figures: name (``parity``, ``learning_curve``, ``energy_drift``, ``npt``, ``speed``, and
            those of the captions) -> PNG.
        model_path: exported student, as it should appear in the commands.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a key that is missing must not become an empty cell
    )
    environment.filters.update(
        number=number, cell=_cell, base64=lambda png: base64.b64encode(png).decode("ascii")
    )
    test = metrics.get("test")
    validation = metrics.get("validation")
    gates = [Gate.from_dict(row) for row in (validation or {}).get("gates", [])]
    counts = metrics.get("num_frames", {})
    page = environment.get_template("report.html.j2").render(
        title=title,
        parameters=f"{card.get('num_parameters', 0):,}",
        counts=", ".join(f"{counts[k]} {k}" for k in ("train", "valid", "test") if k in counts),
        today=datetime.date.today().isoformat(),
        targets=measured(metrics),
        validation=validation,
        gates=[(gate, cells(gate)) for gate in gates],
        test=test,
        errors=_errors(test) if test else [],
        engines=metrics.get("engines"),
        names=ENGINE_NAMES,
        metrics=metrics,
        training=metrics.get("training") or {},
        stages=metrics.get("stage_seconds", {}),
        card=card,
        network=card.get("model_config", {}),
        symbols=" ".join(chemical_symbols[z] for z in card["elements"]),
        figures=figures,
        model=model_path,
    )
    atomic_write_text(path, page)


def _errors(test: dict[str, Any]) -> list[tuple[str, float | None, float | None]]:
    keys = {
        "Forces, meV/Å": ("force", "mev_per_ang"),
        "Energy, meV/atom": ("energy", "mev_per_atom"),
        "Stress, GPa": ("stress", "gpa"),
    }
    return [
        (name, test[f"{what}_mae_{unit}"], test[f"{what}_rmse_{unit}"])
        for name, (what, unit) in keys.items()
    ]


def _cell(value: Any) -> str:
    """A cell of a table: text as it is, counts with thousands, numbers with three digits."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else number(value)
