"""Reading a model of SchNetPack 2: what is in the file, and whether the student can be it.

Every option that the student lacks is refused by name; nothing is dropped silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.errors import InputError
from mlff_distiller.importers.inert_pickle import InertObject, read_torch_file, type_name
from mlff_distiller.students.painn import NORM_EPSILON


@dataclass(frozen=True)
class Trained:
    """What a file says, in its own units.

    Its energy is ``scale * network + Σ_i (mean_per_atom + atomrefs[Z_i])``.
    """

    tensors: dict[str, Tensor]
    """float64, under the names of SchNetPack's ``state_dict()``."""
    readout: str
    """Prefix of the layers that give the energy."""
    scale: float
    mean_per_atom: float
    atomrefs: Tensor | None
    """(number of elements,), by atomic number."""
    version: str
    """Of SchNetPack."""


def read_trained(path: str | Path) -> Trained:
    """Read a saved module, a saved ``state_dict()`` or a Lightning checkpoint.

    Raises:
        InputError: none of these, or a model with an option that the student lacks.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {  # Lightning: the task holds the model as `model`
            name.removeprefix("model."): value
            for name, value in content["state_dict"].items()
            if isinstance(name, str)
        }
    if isinstance(content, InertObject):
        return _read_module(content, path)
    if isinstance(content, dict):
        return _read_state_dict(content, path)
    raise InputError(
        f"{path} holds a {type_name(content)}, expected a trained SchNetPack model; "
        "give its best_model"
    )


def _read_module(root: InertObject, path: str | Path) -> Trained:
    representation = root.get("representation")
    kind = type_name(representation)
    if not isinstance(representation, InertObject) or kind.rsplit(".", 1)[-1] != "PaiNN":
        raise InputError(
            f"{path} holds {root.type_name} with the representation {kind}, expected SchNetPack's "
            "PaiNN; only PaiNN can be imported"
        )
    _check_representation(representation)
    heads = _children(root, "output_modules")
    name, energy_key = _energy_head(heads)
    tensors = _as_float64(root.tensors())
    scale, mean, atomrefs = 1.0, 0.0, None
    if root.get("do_postprocessing", True):
        for step in _children(root, "postprocessors").values():
            short = step.type_name.rsplit(".", 1)[-1]
            if short in ("CastTo32", "CastTo64", "CastMap"):
                continue
            if short == "ScaleProperty" and step.get("input_key") == energy_key:
                if step.get("output_key", energy_key) != energy_key:
                    continue  # writes another property
                factor = float(_tensor(step, "scale"))
                scale, mean = scale * factor, mean * factor
                atomrefs = None if atomrefs is None else atomrefs * factor
            elif short == "AddOffsets" and step.get("_property") == energy_key:
                require(
                    bool(step.get("is_extensive", True)),
                    "AddOffsets with is_extensive=False adds the same energy to every structure; "
                    "a force field needs one per atom: train with is_extensive=True",
                )
                if step.get("add_mean"):
                    mean += float(_tensor(step, "mean"))
                if step.get("add_atomrefs"):
                    added = _tensor(step, "atomref").flatten()
                    atomrefs = added if atomrefs is None else atomrefs + added
            elif short not in ("ScaleProperty", "AddOffsets"):
                raise InputError(
                    f"the model has the postprocessor {step.type_name}, which is not known; "
                    "save it without"
                )
    version = str(root.get("spk_version", "unknown"))
    return _checked(tensors, f"output_modules.{name}.outnet.", scale, mean, atomrefs, version)


def _read_state_dict(content: dict[Any, Any], path: str | Path) -> Trained:
    """A state dict has no options, so offsets are taken as extensive and SiLU as the activation."""
    named = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    tensors = _as_float64(named)
    if "representation.embedding.weight" not in tensors:
        raise InputError(
            f"{path} has no representation.embedding.weight, expected the state_dict of a "
            "SchNetPack PaiNN; give its best_model"
        )
    heads = sorted({k.split(".")[1] for k in tensors if k.startswith("output_modules.")})
    heads = [h for h in heads if f"output_modules.{h}.outnet.0.weight" in tensors]
    require(
        len(heads) == 1,
        f"expected one readout in the state_dict, got {len(heads)}; give the whole best_model, "
        "which names the energy",
    )
    mean, atomrefs = 0.0, None
    for name, value in tensors.items():
        if name.startswith("postprocessors.") and name.endswith(".mean"):
            mean += float(value)
        elif name.startswith("postprocessors.") and name.endswith(".atomref") and value.any():
            atomrefs = value.flatten() if atomrefs is None else atomrefs + value.flatten()
        elif name.startswith("postprocessors."):
            require(
                name.endswith(".atomref"),
                f"the state_dict has {name}, whose place in the energy it does not tell; "
                "give the whole best_model",
            )
    return _checked(tensors, f"output_modules.{heads[0]}.outnet.", 1.0, mean, atomrefs, "unknown")


def _checked(
    tensors: dict[str, Tensor],
    readout: str,
    scale: float,
    mean: float,
    atomrefs: Tensor | None,
    version: str,
) -> Trained:
    """Checks that need only names and shapes."""
    extra = {k for k in tensors if k.startswith("representation.cutoff_fn.")}
    require(
        extra == {"representation.cutoff_fn.cutoff"},
        f"the cutoff function has {sorted(extra)}, expected CosineCutoff's cutoff alone; "
        "only the cosine cutoff can be imported",
    )
    require(
        not any(k.startswith("representation.electronic_embeddings.") for k in tensors),
        "the model has electronic embeddings (charge or spin); only plain PaiNN can be imported",
    )
    layers = sorted(k.removeprefix(readout) for k in tensors if k.startswith(readout))
    require(
        layers == ["0.bias", "0.weight", "1.bias", "1.weight"],
        f"the readout has {layers}, expected two layers with bias (n_layers=2)",
    )
    for name, value in tensors.items():
        if name.startswith(("representation.", readout)) and not bool(value.isfinite().all()):
            raise InputError(f"{name} has numbers that are not finite; the training diverged")
    return Trained(tensors, readout, scale, mean, atomrefs, version)


def _check_representation(representation: InertObject) -> None:
    cutoff = type_name(representation.get("cutoff_fn")).rsplit(".", 1)[-1]
    require(
        cutoff == "CosineCutoff",
        f"the model uses the cutoff function {cutoff}, expected CosineCutoff; "
        "only the cosine cutoff can be imported",
    )
    basis = type_name(representation.get("radial_basis")).rsplit(".", 1)[-1]
    require(
        basis in ("GaussianRBF", "GaussianRBFCentered", "BesselRBF"),
        f"the model uses the radial basis {basis}, expected GaussianRBF or BesselRBF; "
        "only these can be imported",
    )
    embedding = type_name(representation.get("embedding")).rsplit(".", 1)[-1]
    require(
        embedding == "Embedding",
        f"the model uses the embedding {embedding}, expected torch's Embedding; "
        "only plain PaiNN can be imported",
    )
    require(
        not _children(representation, "electronic_embeddings"),
        "the model has electronic embeddings (charge or spin); only plain PaiNN can be imported",
    )
    for block in _children(representation, "interactions").values():
        _check_mlp(block.get("interatomic_context_net"))
    for block in _children(representation, "mixing").values():
        _check_mlp(block.get("intraatomic_context_net"))
        epsilon = block.get("epsilon", NORM_EPSILON)
        require(
            epsilon == NORM_EPSILON,
            f"the model has epsilon {epsilon}, expected {NORM_EPSILON}; only that can be imported",
        )


def _check_mlp(network: Any) -> None:
    """Two Dense layers, SiLU after the first, nothing after the second."""
    layers = list(network.modules.values()) if isinstance(network, InertObject) else []
    require(
        len(layers) == 2,
        f"expected networks of two layers, got {len(layers)}; only plain PaiNN can be imported",
    )
    first, second = (type_name(layer.get("activation")) for layer in layers)
    require(
        first.rsplit(".", 1)[-1].lower() == "silu",
        f"the model uses the activation {first}, expected silu; only SiLU can be imported",
    )
    require(
        second.rsplit(".", 1)[-1] in ("Identity", "NoneType"),
        f"the model uses {second} after the last layer of a network, expected nothing",
    )


def _energy_head(heads: dict[str, InertObject]) -> tuple[str, str]:
    """Name of the module that gives the energy, and its key."""
    atomwise = {n: m for n, m in heads.items() if m.type_name.rsplit(".", 1)[-1] == "Atomwise"}
    keys = {m.get("energy_key") for m in heads.values() if m.get("energy_key") is not None}
    if len(atomwise) > 1 and len(keys) == 1:
        atomwise = {n: m for n, m in atomwise.items() if m.get("output_key") in keys}
    if len(atomwise) != 1:
        raise InputError(
            f"expected one Atomwise module that gives the energy, got {len(atomwise)} in "
            f"{[m.type_name.rsplit('.', 1)[-1] for m in heads.values()]}; "
            "import a model with a plain energy readout"
        )
    ((name, head),) = atomwise.items()
    key = str(head.get("output_key"))
    require(
        not keys or keys == {key},
        f"forces come from {sorted(map(str, keys))} but the readout gives {key!r}; energies made "
        "of several terms cannot be imported",
    )
    mode = head.get("aggregation_mode", "sum")
    require(
        mode == "sum",
        f"the readout has aggregation_mode {mode!r}, expected 'sum'; a mean over atoms is no energy",
    )
    _check_mlp(head.get("outnet"))
    return name, key


def _children(module: InertObject, name: str) -> dict[str, InertObject]:
    """Members of a ModuleList."""
    container = module.get(name)
    return container.modules if isinstance(container, InertObject) else {}


def _tensor(module: InertObject, name: str) -> Tensor:
    value = module.get(name)
    if not isinstance(value, Tensor):
        raise InputError(f"{module.type_name} lacks {name}; save the model again")
    return value.to(torch.float64)


def _as_float64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(torch.float64) for name, value in tensors.items()}


def require(condition: bool, message: str) -> None:
    """Raise InputError unless the condition holds."""
    if not condition:
        raise InputError(message)


__all__ = ["Trained", "read_trained", "require"]
