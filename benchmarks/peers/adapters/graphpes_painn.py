"""graph-pes' PaiNN (F=128, 3 layers, 20 Bessel functions, 5 Å), random weights."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from graph_pes.models import PaiNN
from graph_pes.utils.calculator import GraphPESCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    torch.manual_seed(0)
    model = PaiNN(channels=128, radial_features=20, layers=3, cutoff=5.0)
    return GraphPESCalculator(model, device="cpu", skin=0.0)


def version() -> str:
    return f"{package_version('graph-pes')}, torch {torch.__version__}"
