"""CHGNet with the weights that its package ships."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from chgnet.model.dynamics import CHGNetCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    if not atoms.pbc.any():  # it needs a cell: a box that no image reaches
        atoms.set_cell([30.0, 30.0, 30.0])
        atoms.pbc = True
    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")


def version() -> str:
    return f"{package_version('chgnet')}, torch {torch.__version__}"
