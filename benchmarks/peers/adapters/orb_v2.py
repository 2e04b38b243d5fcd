"""The Orb-v2 network with random weights (the trained ones are a download), compiled as its loader does."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from orb_models.forcefield import pretrained
from orb_models.forcefield.atomic_system import SystemConfig
from orb_models.forcefield.calculator import ORBCalculator


def calculator(atoms, folder: Path, threads: int, options: dict):
    torch.manual_seed(0)
    system = SystemConfig(radius=6.0, max_num_neighbors=20)
    model = pretrained.orb_v2_architecture(device="cpu", system_config=system).eval()
    model.requires_grad_(False)
    model.compile(mode="default", dynamic=True)
    return ORBCalculator(model, device="cpu")


def version() -> str:
    return f"{package_version('orb-models')}, torch {torch.__version__}"
