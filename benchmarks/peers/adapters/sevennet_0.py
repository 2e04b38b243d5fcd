"""SevenNet-0 with the weights that its package ships."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from sevenn.calculator import SevenNetCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    return SevenNetCalculator("7net-0", device="cpu")


def version() -> str:
    return f"{package_version('sevenn')}, torch {torch.__version__}"
