"""What the benchmarks share: the machine, the systems, rounds in turn, and the files of a report."""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESULTS = Path(__file__).resolve().parent / "results"
#: Below this share of a core, a timing says more about the machine than about the program.
BUSY = 0.9

Key = TypeVar("Key")
Found = TypeVar("Found")


# --- the machine ----------------------------------------------------------------------------------
def processor() -> str:
    """The name of the CPU; that of its architecture where the system does not tell (not Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# --- the command line -----------------------------------------------------------------------------
def parser_of(
    doc: str | None, *, quick: str | None = None, output: Path | None = None, whole: bool = False
) -> argparse.ArgumentParser:
    """A parser with --quick and --output, as far as they are given.

    Args:
        doc: docstring of the script; its first line is the description.
        quick: what --quick does.
        output: default of --output.
        whole: the whole docstring is the description.
    """
    text = doc or ""
    if whole:
        parser = argparse.ArgumentParser(
            description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
    else:
        parser = argparse.ArgumentParser(description=text.splitlines()[0])
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=quick)
    if output is not None:
        parser.add_argument("--output", type=Path, default=output, help="folder of the report")
    return parser


# --- systems and students -------------------------------------------------------------------------
def water(per_side: int) -> tuple[NDArray, NDArray, NDArray]:
    """Atomic numbers, positions and cell of 3 per_side³ atoms of water at 1 g/cm³, Å."""
    from mlff_distiller.sampling.builtin import water_box

    box = water_box(per_side)
    return box.atomic_numbers, box.positions, box.cell


def random_student(
    path: Path, elements: Sequence[int] = (1, 8), *, readout: float = 1.0, **network: Any
) -> None:
    """Write a student with random weights: the time does not depend on them.

    Args:
        path: exported file.
        elements: atomic numbers that it knows.
        readout: factor of the last layer; small makes forces weak, so that atoms fly on.
        network: of ModelConfig, where it is not the default; no repulsion, as in the peers.
    """
    import torch

    from mlff_distiller.config import ModelConfig
    from mlff_distiller.export import export_student
    from mlff_distiller.models import StudentForceField

    torch.manual_seed(0)
    student = StudentForceField(ModelConfig(**{"zbl": False, **network}), list(elements))
    with torch.no_grad():
        student.painn.readout[2].weight.mul_(readout)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_student(student, path)


def write_structure(
    path: Path, numbers: ArrayLike, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> None:
    """A structure as JSON that ``ase.Atoms(**json)`` reads in any environment."""
    content = {"numbers": numbers, "positions": positions, "cell": cell, "pbc": pbc}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: np.asarray(value).tolist() for key, value in content.items()}))


# --- measuring ------------------------------------------------------------------------------------
def in_turn(
    calls: Mapping[Key, Callable[[], Found]],
    rounds: int,
    *,
    repeats: int = 1,
    rotate: bool = False,
    shuffle: random.Random | None = None,
) -> dict[Key, list[Found]]:
    """Results of all ``calls``, one after the other in each round: a slow minute hits all of them.

    Args:
        calls: what is compared.
        rounds: how often.
        repeats: calls of one before the next has its turn.
        rotate: every round begins with another.
        shuffle: draws the order of every round.
    """
    found: dict[Key, list[Found]] = {key: [] for key in calls}
    order = list(calls)
    for _ in range(rounds):
        if rotate:
            order.append(order.pop(0))
        if shuffle is not None:
            shuffle.shuffle(order)
        for key in order:
            found[key] += [calls[key]() for _ in range(repeats)]
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and extremes of the times of calls."""
    return {
        "median_s": statistics.median(seconds),
        "low_s": min(seconds),
        "high_s": max(seconds),
        "calls": len(seconds),
    }


# --- reports --------------------------------------------------------------------------------------
def write_report(
    folder: Path,
    name: str,
    report: Any,
    markdown: str | None = None,
    plot: Callable[[Any, Path], None] | None = None,
) -> None:
    """Write ``name.json``, and ``name.md`` and ``name.png`` where there are such."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    if markdown is not None:
        (folder / f"{name}.md").write_text(markdown)
    if plot is not None:
        plot(report, folder / f"{name}.png")


def pyplot() -> Any:
    """matplotlib's pyplot, which needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure and forget it."""
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
