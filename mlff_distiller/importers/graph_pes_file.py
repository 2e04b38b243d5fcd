"""Reading a model of graph-pes: the terms it adds up, and whether the student can be their sum.

A saved module holds everything. A ``state_dict()`` lacks two numbers per interaction, which graph-pes
derives from the cutoff: see :func:`_decimal` and :attr:`Painn.bessel_factors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.errors import InputError
from mlff_distiller.importers.inert_pickle import InertObject, type_name
from mlff_distiller.importers.network import require

OFFSETS = ("EnergyOffset", "FixedOffset", "LearnableOffset")
EXPECTED = f"PaiNN, ZBLCoreRepulsion and offsets ({', '.join(OFFSETS)})"

#: Where an interaction keeps its radial part, and buffers that take no part in the energy.
RADIAL = "filter_generator.components."
_IDLE = {"cutoff", "three_body_cutoff", "_has_been_pre_fit", "_pre_specified_Zs"}
_IDLE_OF_SUMS = _IDLE | {"_all_models_same_properties"}


@dataclass(frozen=True)
class Term:
    """One of the models whose energies are added."""

    kind: str
    name: str
    """In the file, for messages."""
    tensors: dict[str, Tensor]
    """float64, named as in its ``state_dict()``."""
    module: InertObject | None
    """None where the file is a state dict."""

    def take(self, name: str) -> Tensor:
        """A tensor by name."""
        require(
            name in self.tensors,
            f"{self.kind} {self.name!r} lacks {name}; only graph-pes' own can be imported",
        )
        return self.tensors[name]

    def refuse_others(self, used: set[str]) -> None:
        """Refuse tensors beside ``used``, whose part in the energy is unknown."""
        others = sorted(set(self.tensors) - used - _IDLE)
        require(
            not others,
            f"{self.kind} {self.name!r} has {', '.join(others[:3])}, which graph-pes' own does not; "
            "only graph-pes' own can be imported",
        )


@dataclass(frozen=True)
class Radial:
    """What the filters of a PaiNN share beside their weights."""

    cutoff: float
    exponent: int
    bessel_factors: list[float]
    """In front of the Bessel functions of each interaction."""


def read_terms(content: InertObject | dict[Any, Any], path: str | Path) -> tuple[list[Term], str]:
    """Terms of a saved module or ``state_dict()``, and the version of graph-pes.

    Raises:
        InputError: a term that the student lacks.
    """
    if isinstance(content, InertObject):
        version = str(content.get("_GRAPH_PES_VERSION", "unknown"))
        terms = list(_terms_of_module(content, "model"))
    else:
        version = next(
            str(v["_GRAPH_PES_VERSION"])
            for v in content.values()
            if isinstance(v, dict) and "_GRAPH_PES_VERSION" in v
        )
        terms = _terms_of_state(content, path)
    for term in terms:
        for name, value in term.tensors.items():
            require(
                bool(value.isfinite().all()),
                f"{term.kind} {term.name!r}: {name} has numbers that are not finite; the training "
                "diverged, take another file",
            )
    return terms, version


def _terms_of_module(module: InertObject, name: str) -> Iterator[Term]:
    kind = module.type_name.rsplit(".", 1)[-1]
    own = module.type_name.startswith("graph_pes.")
    if own and kind == "AdditionModel":
        models = module.get("models")
        for key, child in (models.modules if isinstance(models, InertObject) else {}).items():
            yield from _terms_of_module(child, key)
        return
    if own and kind == "SmoothedPairPotential":
        raise InputError(
            f"{name!r} is a {kind}, whose switch the student lacks, expected a plain "
            "ZBLCoreRepulsion; train with that"
        )
    if not own or kind not in ("PaiNN", "ZBLCoreRepulsion", *OFFSETS):
        raise InputError(
            f"{name!r} is a {module.type_name}, expected {EXPECTED}, alone or in an AdditionModel; "
            "use it as a teacher and distil it"
        )
    properties = module.get("implemented_properties", ["local_energies"])
    require(
        properties == ["local_energies"],
        f"{kind} {name!r} predicts {properties}, expected local_energies alone, whose gradient the "
        "forces are; use it as a teacher and distil it",
    )
    yield Term(kind, name, _as_float64(module.tensors()), module)


def _terms_of_state(content: dict[Any, Any], path: str | Path) -> list[Term]:
    """A state dict names no classes: they are told by the parameters that they alone have."""
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    marks = {
        "z_embedding._embeddings": "PaiNN",
        "ZBL_coeff": "ZBLCoreRepulsion",
        "_offsets": "EnergyOffset",
    }
    kinds: dict[str, str] = {}
    for name in tensors:
        prefix, mark = re.fullmatch(r"((?:models\.[^.]+\.)*)(.*)", name).groups()  # type: ignore
        if mark in marks:
            kinds[prefix] = marks[mark]
    found: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in kinds}
    for name, value in tensors.items():
        owner = max((p for p in kinds if name.startswith(p)), key=len, default=None)
        if owner is not None:
            found[owner][name.removeprefix(owner)] = value
        elif name.rsplit(".", 1)[-1] not in _IDLE_OF_SUMS:
            raise InputError(
                f"{path} has {name}, which is no part of {EXPECTED}; "
                "only these can be imported, use the model as a teacher and distil it"
            )
    return [
        Term(kind, prefix.split(".")[-2] if prefix else "model", _as_float64(found[prefix]), None)
        for prefix, kind in kinds.items()
    ]


def read_radial(term: Term, depth: int) -> Radial:
    """Cutoff, envelope and factors of a PaiNN's filters, checked.

    Raises:
        InputError: filters that are not Bessel functions, a linear layer and the polynomial
            envelope, the same in all interactions.
    """
    envelopes, factors = set(), []
    for k in range(depth):
        cutoff, factor = _decimal(term.take("cutoff")), None
        if term.module is not None:
            cutoff, factor = _radial_attributes(term, k)
        if factor is None:
            factor = float(torch.tensor(2.0 / cutoff, dtype=torch.float32).sqrt())
        coefficients = term.take(f"interactions.{k}.{RADIAL}1.coefficients").tolist()
        powers = term.take(f"interactions.{k}.{RADIAL}1.powers").tolist()
        p = powers[0] if powers else 0.0
        require(
            powers == [p, p + 1, p + 2]
            and p == int(p)
            and 3 <= p <= 64
            and coefficients == [-(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2],
            f"the envelope has powers {powers} and coefficients {coefficients}, expected "
            "PolynomialEnvelope with p of 3 to 64; only that can be imported",
        )
        envelopes.add((cutoff, int(p)))
        factors.append(factor)
    require(
        len(envelopes) == 1,
        f"the envelopes differ between interactions (cutoff in Å and p: {sorted(envelopes)}), "
        "expected one; only that can be imported",
    )
    cutoff, exponent = envelopes.pop()
    reach = float(term.take("cutoff"))
    require(
        reach >= cutoff * (1 - 1e-6),
        f"PaiNN {term.name!r} has the cutoff {reach}, less than its envelope's {cutoff}, so that "
        "filters end with a jump; only a smooth end can be imported",
    )
    return Radial(cutoff, exponent, factors)


def check_layers(term: Term, depth: int) -> None:
    """Refuse other activations and layers than those of graph-pes' own PaiNN."""
    if term.module is None:
        return
    names = ["read_out", *(f"interactions.{k}.Phi" for k in range(depth))]
    for name in (*names, *(f"updates.{k}.mlp" for k in range(depth))):
        network = _descend(term.module, name)
        activation = type_name(network.get("activation"))
        require(
            activation == "torch.nn.modules.activation.SiLU"
            and network.get("activate_last") is False,
            f"{name} has the activation {activation}, expected SiLU, after the first of two layers; "
            "only that can be imported",
        )


def registered_elements(term: Term) -> list[int]:
    """Elements that training registered with the embedding; often lost, as copies drop them."""
    embedding = None if term.module is None else _descend(term.module, "z_embedding")
    parameter = None if embedding is None else embedding.get("_embeddings")
    if not isinstance(parameter, InertObject) or len(parameter.args) < 3:
        return []
    state = parameter.args[2]
    registered = state.get("_accessed_Zs") if isinstance(state, dict) else None
    if not isinstance(registered, (set, frozenset, list)):
        return []
    return sorted(int(z) for z in registered if isinstance(z, int) and 1 <= z <= 118)


def _radial_attributes(term: Term, k: int) -> tuple[float, float]:
    """Cutoff of the envelope and factor of the Bessel functions, which are no buffers."""
    assert term.module is not None
    product = _descend(term.module, f"interactions.{k}.filter_generator")
    parts = product.get("components")
    found = [type_name(part).rsplit(".", 1)[-1] for part in _children(parts)]
    functions = _children(_children(parts)[0]) if found else []
    found += [type_name(part).rsplit(".", 1)[-1] for part in functions]
    require(
        found == ["Sequential", "PolynomialEnvelope", "Bessel", "Linear"]
        and product.get("left_aligned") is False,
        f"interaction {k} has filters of {', '.join(found)}, expected Bessel functions, a linear "
        "layer and PolynomialEnvelope; only these can be imported",
    )
    cutoff = _children(parts)[1].get("cutoff")
    factor = functions[0].get("pre_factor")
    require(
        isinstance(cutoff, (int, float)) and isinstance(factor, Tensor) and factor.numel() == 1,
        f"interaction {k} lacks the cutoff of its envelope or the factor of its Bessel functions; "
        "save the model with graph-pes 0.0.30 or newer",
    )
    return float(cutoff), float(factor)


def _decimal(value: Tensor) -> float:
    """The number that a person wrote: a buffer of 5.1 in float32 is 5.0999999."""
    number = float(value)
    single = np.float32(number)
    return float(str(single)) if float(single) == number else number


def _descend(module: InertObject, path: str) -> InertObject:
    found: Any = module
    for name in path.split("."):
        found = found.get(name) if isinstance(found, InertObject) else None
    if not isinstance(found, InertObject):
        raise InputError(f"{module.type_name} lacks {path}; only graph-pes' own can be imported")
    return found


def _children(module: Any) -> list[InertObject]:
    return list(module.modules.values()) if isinstance(module, InertObject) else []


def _as_float64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(torch.float64) for name, value in tensors.items()}


__all__ = [
    "EXPECTED",
    "OFFSETS",
    "RADIAL",
    "Radial",
    "Term",
    "check_layers",
    "read_radial",
    "read_terms",
    "registered_elements",
]
