"""PaiNN trained with graph-pes, in the student's order.

github.com/jla-gardner/graph-pes; the student of Gardner et al. 2025, arXiv:2506.10956, is one.

A file holds a PaiNN, or a sum of a PaiNN, a ZBL core repulsion and energies of the elements. What
differs from the student:

- the update block gives (vectors, scalars, product) where the student has (scalars, vectors, product);
- U and V are two matrices, the student's are the rows [V; U] of one;
- the factor before its Bessel functions goes into the filters.

graph-pes leaves the edges of each term at the term's own cutoff. PaiNN's filters are zero there; the
repulsion is not: it is cut off with a jump, here as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.importers.graph_pes_file import (
    EXPECTED,
    OFFSETS,
    RADIAL,
    Term,
    check_layers,
    read_radial,
    read_terms,
    registered_elements,
)
from mlff_distiller.importers.network import Network, Repulsion, require

# The constants of its ZBLCoreRepulsion, in Å and eV Å.
_BOHR = 0.529177249
_COULOMB = 14.3996

#: Added under the root of its vector norm.
_EPSILON = 1e-8


def graph_pes_network(content: Any, path: str | Path) -> Network:
    """The network of a saved module or state dict.

    Args:
        content: of the file, see :func:`~mlff_distiller.importers.inert_pickle.read_torch_file`.
        path: for messages.

    Raises:
        InputError: no PaiNN of graph-pes, or one with a term or option that the student lacks.
    """
    terms, version = read_terms(content, path)
    networks = [t for t in terms if t.kind == "PaiNN"]
    repulsions = [t for t in terms if t.kind == "ZBLCoreRepulsion"]
    require(
        len(networks) == 1 and len(repulsions) <= 1,
        f"{path} adds up {', '.join(t.kind for t in terms) or 'nothing'}, expected one PaiNN and at "
        f"most one ZBLCoreRepulsion; only {EXPECTED} can be imported",
    )
    (painn,) = networks
    embedding = painn.take("z_embedding._embeddings")
    require(embedding.ndim == 2, "the embedding is no matrix; only graph-pes' own can be imported")
    rows, width = embedding.shape
    depth = len({n.split(".")[1] for n in painn.tensors if n.startswith("interactions.")})
    require(depth >= 1, "PaiNN has no interactions, expected at least one; import another")
    check_layers(painn, depth)
    radial = read_radial(painn, depth)

    used = {"z_embedding._embeddings", "scaler.per_element_scaling"}
    interactions = []
    for k in range(depth):
        names, parameters = _interaction(painn, k, width)
        parameters["filter.weight"] = parameters["filter.weight"] * radial.bessel_factors[k]
        interactions.append(parameters)
        used |= names
    frequencies = [painn.take(f"interactions.{k}.{RADIAL}0.0.frequencies") for k in range(depth)]
    readout = {f"read_out.linear_layers.{k}.{x}" for k in (0, 1) for x in ("weight", "bias")}
    painn.refuse_others(used | readout)

    scales = _per_element(painn, "scaler.per_element_scaling", rows)
    offsets = torch.zeros(rows, dtype=torch.float64)
    for term in terms:
        if term.kind in OFFSETS:
            offsets += _per_element(term, "_offsets", rows)
            term.refuse_others({"_offsets"})
    elements = _elements(painn, scales, offsets)
    return Network(
        program="graph-pes",
        version=version,
        embedding=embedding,
        interactions=interactions,
        readout={
            f"{2 * k}.{x}": painn.take(f"read_out.linear_layers.{k}.{x}")
            for k in (0, 1)
            for x in ("weight", "bias")
        },
        basis="bessel",
        bases=[{"frequencies": f} for f in frequencies],
        basis_trainable=True,
        cutoff=radial.cutoff,
        cutoff_function="polynomial",
        cutoff_exponent=radial.exponent,
        epsilon=_EPSILON,
        scales=scales,
        offsets=offsets,
        elements=elements,
        elements_certain=bool(elements),
        repulsion=_repulsion(repulsions[0], rows, radial.cutoff) if repulsions else None,
    )


def _elements(painn: Term, scales: Tensor, offsets: Tensor) -> list[int]:
    """What training registered; else those whose scale, or energy, it has moved."""
    if registered := registered_elements(painn):
        return registered
    for moved in (scales != 1.0, offsets != 0.0):
        if found := [z for z in torch.nonzero(moved[:119]).flatten().tolist() if z >= 1]:
            return found
    return []


def _interaction(painn: Term, k: int, width: int) -> tuple[set[str], dict[str, Tensor]]:
    """Names in the file, and parameters of layer k under the student's names."""
    interaction, update = f"interactions.{k}.", f"updates.{k}."
    names = {
        "filter.weight": f"{interaction}{RADIAL}0.1.weight",
        "filter.bias": f"{interaction}{RADIAL}0.1.bias",
    }
    for ours, theirs in (("message", f"{interaction}Phi"), ("update", f"{update}mlp")):
        for layer in (0, 1):
            for kind in ("weight", "bias"):
                name = f"{theirs}.linear_layers.{layer}.{kind}"
                names[f"{ours}.{2 * layer}.{kind}"] = name
    parameters = {ours: painn.take(theirs) for ours, theirs in names.items()}
    matrices = [f"{update}{x}._linear.weight" for x in ("V", "U")]
    both = [painn.take(name) for name in matrices]
    require(
        all(m.shape == (width, width) for m in both)
        and all(len(parameters[f"update.2.{x}"]) == 3 * width for x in ("weight", "bias")),
        f"update {k} has {[tuple(m.shape) for m in both]}, expected matrices of {width} channels; "
        "only graph-pes' own can be imported",
    )
    parameters["mix.weight"] = torch.cat(both)
    for name in ("update.2.weight", "update.2.bias"):
        vectors, scalars, products = parameters[name].split(width)
        parameters[name] = torch.cat([scalars, vectors, products])
    rest = ("0.0.frequencies", "0.0.cutoff", "1.coefficients", "1.powers")
    extra = {f"{interaction}{RADIAL}{name}" for name in rest}
    return {*names.values(), *matrices, *extra}, parameters


def _per_element(term: Term, name: str, rows: int) -> Tensor:
    """One number for each element, (rows,)."""
    value = term.take(name)
    require(
        value.shape == (rows, 1),
        f"{term.kind} {term.name!r}: {name} has shape {tuple(value.shape)}, expected ({rows}, 1); "
        "only graph-pes' own can be imported",
    )
    return value.flatten()


def _repulsion(term: Term, rows: int, cutoff: float) -> Repulsion:
    """Pair energies of its ZBLCoreRepulsion; ``cutoff`` is PaiNN's."""
    reach = float(term.take("cutoff"))
    require(
        reach <= cutoff * (1 + 1e-6),
        f"{term.kind} {term.name!r} has the cutoff {reach}, beyond PaiNN's {cutoff}; the student "
        "has no pairs there: train both with one cutoff",
    )
    numbers = ("pre_factor", "exponent", "ZBL_coeff", "ZBL_exp")
    factor, exponent, amplitudes, decays = (term.take(name) for name in numbers)
    term.refuse_others(set(numbers))
    z = torch.arange(rows, dtype=torch.float64)
    power = z**exponent
    return Repulsion(
        charge=_COULOMB * z.unsqueeze(1) * z,
        inverse_length=(power.unsqueeze(1) + power) / (factor * _BOHR),
        range=min(reach, cutoff),
        amplitudes=amplitudes,
        decays=-decays,
    )


__all__ = ["graph_pes_network"]
