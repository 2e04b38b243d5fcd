"""PaiNN trained with SchNetPack 2, in the student's order.

Schütt, Hessmann, Gebauer, Lederer, Gastegger, J. Chem. Phys. 158, 144801 (2023).

Both networks have the same layout, so weights are copied; one filter network or one interaction
block shared by all layers becomes copies. ``ScaleProperty`` and ``AddOffsets`` of the energy were
folded together, in their order, by :mod:`~mlff_distiller.importers.schnetpack_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.errors import InputError
from mlff_distiller.importers.network import Network, require
from mlff_distiller.importers.schnetpack_file import Trained, read_trained


def schnetpack_network(content: Any, path: str | Path) -> Network:
    """The network of a saved module or state dict.

    Args:
        content: of the file, see :func:`~mlff_distiller.importers.inert_pickle.read_torch_file`.
        path: for messages.

    Raises:
        InputError: not a PaiNN of SchNetPack, or one with an option that the student lacks.
    """
    trained = read_trained(content, path)
    tensors = trained.tensors
    embedding = _take(tensors, "representation.embedding.weight")
    depth = _count(tensors, "representation.interactions.")
    basis, basis_state = _radial_basis(tensors)
    offsets = torch.full((embedding.shape[0],), trained.mean_per_atom, dtype=torch.float64)
    elements: list[int] = []
    if trained.atomrefs is not None:
        references = trained.atomrefs[: len(offsets)]
        offsets[: len(references)] += references
        offsets[len(references) :] = torch.nan
        elements = [z for z in torch.nonzero(references[:119]).flatten().tolist() if z >= 1]
    return Network(
        program="SchNetPack",
        version=trained.version,
        embedding=embedding,
        interactions=[_interaction(tensors, k, depth, embedding.shape[1]) for k in range(depth)],
        readout=_readout(trained),
        basis=basis,
        bases=[basis_state],
        basis_trainable=False,
        cutoff=trained.cutoff,
        cutoff_function=trained.cutoff_function,
        cutoff_onset=trained.cutoff_onset,
        epsilon=trained.epsilon,
        scales=torch.ones(embedding.shape[0], dtype=torch.float64),
        offsets=offsets,
        elements=elements,
    )


def _radial_basis(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    prefix = "representation.radial_basis."
    names = {k.removeprefix(prefix) for k in tensors if k.startswith(prefix)}
    if names == {"widths", "offsets"}:
        return "gaussian", {
            "centers": tensors[prefix + "offsets"],
            "widths": tensors[prefix + "widths"],
        }
    if names == {"freqs"}:
        return "bessel", {"frequencies": tensors[prefix + "freqs"]}
    raise InputError(
        f"the radial basis has {sorted(names)}, expected GaussianRBF or BesselRBF; "
        "only these can be imported"
    )


def _interaction(tensors: dict[str, Tensor], k: int, depth: int, width: int) -> dict[str, Tensor]:
    """Parameters of layer k under the student's names."""
    weight = _take(tensors, "representation.filter_net.weight")
    bias = _take(tensors, "representation.filter_net.bias")
    if weight.shape[0] != 3 * width:  # else one network is shared by all layers
        require(
            weight.shape[0] == depth * 3 * width,
            f"filter_net has {weight.shape[0]} rows, expected {depth * 3 * width}; "
            "only SchNetPack's own PaiNN can be imported",
        )
        weight, bias = (t[3 * width * k : 3 * width * (k + 1)] for t in (weight, bias))
    mixing = f"representation.mixing.{k}."
    message = f"representation.interactions.{k}.interatomic_context_net."
    update = f"{mixing}intraatomic_context_net."
    parameters = {"filter.weight": weight, "filter.bias": bias}
    parameters["mix.weight"] = _take(tensors, f"{mixing}mu_channel_mix.weight")
    for ours, theirs in (("message", message), ("update", update)):
        for layer, name in ((0, "0"), (2, "1")):
            for kind in ("weight", "bias"):
                parameters[f"{ours}.{layer}.{kind}"] = _take(tensors, f"{theirs}{name}.{kind}")
    return parameters


def _readout(trained: Trained) -> dict[str, Tensor]:
    hidden, bias, last, constant = (
        _take(trained.tensors, f"{trained.readout}{name}")
        for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    return {
        "0.weight": hidden,
        "0.bias": bias,
        "2.weight": last * trained.scale,
        "2.bias": constant * trained.scale,
    }


def _take(tensors: dict[str, Tensor], name: str) -> Tensor:
    require(name in tensors, f"the model lacks {name}; only SchNetPack's own PaiNN can be imported")
    return tensors[name]


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in tensors if k.startswith(prefix)})


__all__ = ["schnetpack_network"]
