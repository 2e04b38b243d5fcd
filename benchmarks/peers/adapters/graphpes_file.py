"""A model file of graph-pes in its own ASE calculator, with the skin that it has by default."""

from __future__ import annotations

import warnings
from importlib.metadata import version as package_version
from pathlib import Path

import torch
from graph_pes.models import load_model


def calculator(atoms, folder: Path, threads: int, options: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an older version wrote the file
        return load_model(options["model"]).ase_calculator(device="cpu")


def version() -> str:
    return f"{package_version('graph-pes')}, torch {torch.__version__}"
