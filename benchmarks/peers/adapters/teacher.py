"""A teacher of this package's registry; ``options`` name it and its device."""

from pathlib import Path

from mlff_distiller import __version__
from mlff_distiller.teachers import get_teacher


def calculator(atoms, folder: Path, threads: int, options: dict):
    return get_teacher(options["teacher"], device=options.get("device", "cpu")).calculator


def version() -> str:
    return f"through mlff_distiller {__version__}"
