"""This package, through its ASE calculator; the neighbour list is built in every call."""

from pathlib import Path

import mlff_distiller
from mlff_distiller import StudentCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    return StudentCalculator(
        folder / "student.pt", threads=threads, skin=0.0, backend=options.get("backend", "auto")
    )


def version() -> str:
    return mlff_distiller.__version__
