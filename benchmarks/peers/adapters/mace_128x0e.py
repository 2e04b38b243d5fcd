"""MACE with 128 invariant channels, two interactions, 5 Å; random weights, float32."""

import warnings
from importlib.metadata import version as package_version
from pathlib import Path

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mace.calculators import MACECalculator  # noqa: E402  (first: it lets e3nn 0.4 load its constants)
from mace.modules import ScaleShiftMACE, interaction_classes  # noqa: E402

from e3nn import o3  # noqa: E402  isort: skip


def calculator(atoms, folder: Path, threads: int, options: dict):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    elements = sorted({int(z) for z in atoms.numbers})
    model = ScaleShiftMACE(
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps("128x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=50.0,
        atomic_numbers=elements,
        correlation=3,
        gate=torch.nn.functional.silu,
    )
    return MACECalculator(
        models=[model], device=options.get("device", "cpu"), default_dtype="float32"
    )


def version() -> str:
    return f"{package_version('mace-torch')}, torch {torch.__version__}"
