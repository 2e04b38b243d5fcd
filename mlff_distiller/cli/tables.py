"""What ``convert`` and ``info`` say about structures and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from mlff_distiller.cli.common import note
from mlff_distiller.data.read.frame import listed
from mlff_distiller.data.read.reading import Reading
from mlff_distiller.data.survey import Survey


def label_rows(found: Reading) -> dict[str, str]:
    """Names of labels taken and left, and units; nothing for HDF5 files, which are ours."""
    rows = {}
    if found.taken:
        rows["labels taken"] = ", ".join(
            f"{quantity} from {' or '.join(names)}" for quantity, names in found.taken.items()
        )
    elif found.kind != "HDF5 data":
        rows["labels taken"] = "none"
    if left := found.left():
        rows["labels left"] = listed(f"{name} (in {count})" for name, count in left.items())
    if found.taken and found.units:
        rows["units"] = found.units
    return rows


def survey_rows(found: Survey) -> dict[str, str]:
    """Counts and ranges; one row where nothing is labelled."""
    rows = found.rows()
    if not any(found.counts.values()):
        closest = {k: v for k, v in rows.items() if k == "closest pair"}
        return {"labels": "none", **closest}
    return rows


def reading_dict(found: Reading) -> dict[str, Any]:
    """Plain JSON."""
    return {
        "kind": found.kind,
        "found": found.found,
        "taken": {k: list(v) for k, v in found.taken.items()},
        "left": found.left(),
        "units": found.units,
        "notes": [*found.notes, *found.label_notes, *found.hints],
    }


def tell(warnings: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Notes and warnings, one line each, on stderr."""
    for text in notes:
        note(text)
    for warning in warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)


def aligned(rows: dict[str, str]) -> str:
    """Rows of a table, indented."""
    width = max(map(len, rows), default=0) + 2
    return "\n".join(f"  {key:<{width}}{value}" for key, value in rows.items())
