"""SchNetPack's PaiNN (F=128, 3 interactions, 20 Gaussians, 5 Å) through its own ASE calculator."""

from importlib.metadata import version as package_version
from pathlib import Path

import torch
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
from schnetpack.interfaces import SpkCalculator
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import PaiNN
from schnetpack.transform import AddOffsets, CastTo64, VesinNeighborList

CUTOFF = 5.0


def make(path: Path) -> None:
    """Random weights, saved as its trainer saves them, so that ours can import the very same."""
    torch.manual_seed(0)
    model = NeuralNetworkPotential(
        representation=PaiNN(
            n_atom_basis=128,
            n_interactions=3,
            radial_basis=GaussianRBF(n_rbf=20, cutoff=CUTOFF),
            cutoff_fn=CosineCutoff(CUTOFF),
        ),
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=128, output_key="energy"), Forces()],
        postprocessors=[
            CastTo64(),
            AddOffsets("energy", add_mean=True, property_mean=torch.tensor([-2.5])),
        ],
    )
    torch.save(model, path)


def calculator(atoms, folder: Path, threads: int, options: dict):
    path = folder / "best_model"
    if not path.exists():
        make(path)
    model = torch.load(path, weights_only=False).eval()
    # A compiled backward pass computes the gradients of all that requires one: without this line the
    # weights' too, which nobody uses here and which cost more than the rest.
    model.requires_grad_(False)
    if options.get("compile"):
        model.representation = torch.compile(model.representation)
    return SpkCalculator(
        model,
        neighbor_list=VesinNeighborList(cutoff=CUTOFF),  # its fastest
        energy_unit="eV",
        position_unit="Ang",
        device=options.get("device", "cpu"),
    )


def version() -> str:
    return f"{package_version('schnetpack')}, torch {torch.__version__}"
