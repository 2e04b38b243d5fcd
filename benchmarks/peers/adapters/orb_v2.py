"""The Orb-v2 network with random weights (the trained ones are a download)."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from orb_models.forcefield import pretrained
from orb_models.forcefield.calculator import ORBCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    torch.manual_seed(0)
    return ORBCalculator(pretrained.orb_v2_architecture(device="cpu"), device="cpu")


def version() -> str:
    return f"{package_version('orb-models')}, torch {torch.__version__}"
