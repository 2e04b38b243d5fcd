"""One network of the ANI-1x architecture, random weights (the trained ones are a download)."""

import warnings
from importlib.metadata import version as package_version
from pathlib import Path

warnings.simplefilter("ignore")

import torch  # noqa: E402
from torchani.arch import Assembler  # noqa: E402


def calculator(atoms, folder: Path, threads: int, options: dict):
    torch.manual_seed(0)
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(("H", "C", "N", "O"))
    assembler.set_atomic_networks(ctor="ani1x")
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular="ani1x", radial="ani1x", strategy="pyaev")
    # Its own choice by size: all pairs for molecules, a cell list beyond.
    assembler.set_neighborlist("adaptive")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    model = assembler.assemble(1).to(torch.float32)
    model.requires_grad_(False)
    return model.ase()


def version() -> str:
    return f"{package_version('torchani')}, torch {torch.__version__}"
