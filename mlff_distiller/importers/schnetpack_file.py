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
from mlff_distiller.importers.inert_pickle import InertObject, type_name
from mlff_distiller.importers.network import require

#: SchNetPack's own, for a state_dict, which does not record it.
DEFAULT_EPSILON = 1e-8

#: Buffers of each cutoff function by its class, and what the student calls it.
_CUTOFF_FUNCTIONS = {
    "CosineCutoff": ({"cutoff"}, "cosine"),
    "MollifierCutoff": ({"cutoff", "eps"}, "mollifier"),
    "SwitchFunction": ({"switch_on", "switch_off"}, "switch"),
}


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
    epsilon: float
    cutoff: float
    cutoff_function: str
    """As the student calls it."""
    cutoff_onset: float | None


def read_trained(content: InertObject | dict[Any, Any], path: str | Path) -> Trained:
    """Look through a saved module or a ``state_dict()``.

    Raises:
        InputError: neither, or a model with an option that the student lacks.
    """
    if isinstance(content, InertObject):
        return _read_module(content, path)
    return _read_state_dict(content, path)


def _read_module(root: InertObject, path: str | Path) -> Trained:
    representation = root.get("representation")
    kind = type_name(representation)
    if not isinstance(representation, InertObject) or kind.rsplit(".", 1)[-1] != "PaiNN":
        raise InputError(
            f"{path} holds {root.type_name} with the representation {kind}, expected SchNetPack's "
            "PaiNN; only PaiNN can be imported"
        )
    epsilon = _check_representation(representation)
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
    readout = f"output_modules.{name}.outnet."
    return _checked(tensors, readout, scale, mean, atomrefs, version, epsilon)


def _read_state_dict(content: dict[Any, Any], path: str | Path) -> Trained:
    """A state dict has no options: offsets are taken as extensive, the rest as SchNetPack's own."""
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
    readout = f"output_modules.{heads[0]}.outnet."
    return _checked(tensors, readout, 1.0, mean, atomrefs, "unknown", DEFAULT_EPSILON)


def _checked(
    tensors: dict[str, Tensor],
    readout: str,
    scale: float,
    mean: float,
    atomrefs: Tensor | None,
    version: str,
    epsilon: float,
) -> Trained:
    """Checks that need only names and shapes."""
    cutoff, cutoff_function, onset = _cutoff(tensors)
    require(
        not any(k.startswith("representation.electronic_embeddings.") for k in tensors),
        "the model has electronic embeddings (charge or spin); only plain PaiNN can be imported",
    )
    layers = sorted(k.removeprefix(readout) for k in tensors if k.startswith(readout))
    require(
        layers == ["0.bias", "0.weight", "1.bias", "1.weight"],
        f"the readout has {layers}, expected two layers with bias (n_layers=2)",
    )
    last = tensors[f"{readout}1.weight"]
    require(
        last.shape[0] == 1,
        f"the readout gives {last.shape[0]} numbers an atom, expected one energy; import another",
    )
    return Trained(
        tensors, readout, scale, mean, atomrefs, version, epsilon, cutoff, cutoff_function, onset
    )


def _cutoff(tensors: dict[str, Tensor]) -> tuple[float, str, float | None]:
    """Radius, function and, for a switch, onset."""
    prefix = "representation.cutoff_fn."
    numbers = {
        k.removeprefix(prefix): v.flatten() for k, v in tensors.items() if k.startswith(prefix)
    }
    found = [name for buffers, name in _CUTOFF_FUNCTIONS.values() if buffers == set(numbers)]
    require(
        bool(found) and all(v.numel() == 1 for v in numbers.values()),
        f"the cutoff function has {sorted(numbers)}, expected one of "
        f"{', '.join(_CUTOFF_FUNCTIONS)}; only these can be imported",
    )
    if found == ["switch"]:
        return float(numbers["switch_off"]), "switch", float(numbers["switch_on"])
    cutoff = float(numbers["cutoff"])
    if found == ["mollifier"]:
        # It is cut off this far before the cutoff, where it has to be zero in all digits.
        require(
            0 <= float(numbers["eps"]) <= 1e-3 * cutoff,
            f"MollifierCutoff has eps {float(numbers['eps'])}, expected at most a thousandth of "
            f"the cutoff {cutoff}; only that can be imported",
        )
    return cutoff, found[0], None


def _check_representation(representation: InertObject) -> float:
    """Refuse what the student lacks; returns epsilon of the norms."""
    cutoff = type_name(representation.get("cutoff_fn")).rsplit(".", 1)[-1]
    require(
        cutoff in _CUTOFF_FUNCTIONS,
        f"the model uses the cutoff function {cutoff}, expected one of "
        f"{', '.join(_CUTOFF_FUNCTIONS)}; only these can be imported",
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
    epsilons = set()
    for block in _children(representation, "mixing").values():
        _check_mlp(block.get("intraatomic_context_net"))
        epsilons.add(block.get("epsilon", DEFAULT_EPSILON))
    require(
        len(epsilons) == 1 and all(isinstance(e, (int, float)) and 0 < e < 1e6 for e in epsilons),
        f"the model has epsilon {' and '.join(map(str, epsilons))}, expected one number > 0 for "
        "all layers; only that can be imported",
    )
    return epsilons.pop()


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


__all__ = ["Trained", "read_trained"]
