"""``reweight``: averages of the teacher from a student's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mlff_distiller.cli.common import (
    JSON,
    check_device,
    emit,
    example,
    say,
    user_errors,
    wrote,
)


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        **example(
            "Averages on the teacher's surface from frames of a student's run.",
            "reweight trajectory.extxyz --teacher gfn2-xtb --temperature 300",
        )
    )(reweight)


def reweight(
    trajectory: Path = typer.Argument(help="Frames of one run at constant temperature."),
    teacher: str = typer.Option(
        ..., "--teacher", help="Registry name (see info --teachers) or module:Class(kwargs)."
    ),
    temperature: float = typer.Option(..., help="K, of the thermostat of the run."),
    skip: int = typer.Option(0, min=0, help="Frames at the start that are left out."),
    device: str = typer.Option("cpu", help="Of the teacher: cpu or cuda."),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="JSON file for averages, weights and pair distributions."
    ),
    as_json: bool = JSON,
) -> None:
    """Averages on the teacher's surface from frames of a student's run.

    Works for small systems and good students; see docs/multistep.md. Elsewhere run with
    `md --correct-with`.
    """
    with user_errors("nothing was written"):
        import json

        from mlff_distiller.data.io import read_structures
        from mlff_distiller.files import atomic_write_text, jsonable
        from mlff_distiller.multistep.reweight import reweight as work
        from mlff_distiller.teachers import get_teacher

        frames = read_structures(trajectory)[skip:]
        labeller = get_teacher(teacher, device=check_device(device))
        found = work(frames, labeller, temperature, progress=_progress(len(frames)))
        result: dict[str, Any] = {"path": trajectory, **found.summary()}
        lines = _lines(result)
        if output is not None:
            whole = {**result, "weights": found.weights}
            atomic_write_text(output, json.dumps(jsonable(whole), indent=1))
            lines.append(wrote(output))
        if found.warning is not None:
            say(found.warning)
        emit(result, as_json, "\n".join(lines))


def _progress(total: int) -> Any:
    def told(done: int) -> None:
        if done % max(1, total // 5) == 0:
            say(f"{done} of {total} frames labelled")

    return told


def _lines(result: dict[str, Any]) -> list[str]:
    """What reweighting found, for people."""
    import numpy as np

    r = result
    lines = [
        f"{r['num_frames']} frames of {r['num_atoms']} atoms at {r['temperature']:g} K on the "
        f"surface of {r['teacher']}: U_T - U_S spreads over {r['spread_kt']:.2f} kT, effective "
        f"sample size {r['effective_frames']:.1f} frames",
        f"{'':<18}{'student':>22}{'teacher':>22}{'first order':>14}",
    ]
    names = {"energy": "energy, eV/atom", "volume": "volume, Å³/atom"}
    for name, a in r["averages"].items():
        student = f"{a['student']:.5f} ± {a['student_error']:.5f}"
        teacher = f"{a['teacher']:.5f} ± {a['teacher_error']:.5f}"
        lines.append(f"{names[name]:<18}{student:>22}{teacher:>22}{a['first_order']:>14.5f}")
    for pair, both in r["pairs"].items():
        change = np.array(both["teacher"]) - np.array(both["student"])
        k = int(np.abs(change).argmax())
        lines.append(
            f"g(r) of {pair}: largest change {change[k]:+.3f} at {r['r'][k]:.2f} Å, where it is "
            f"{both['student'][k]:.3f}"
        )
    return lines
