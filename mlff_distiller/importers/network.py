"""What an importer reads, whichever program wrote it, and the student that is made of it.

A reader hands over a :class:`Network`: weights under the student's names, in the units and the width
of the file. :func:`build_student` does the rest, the same for all programs:

- energy unit: the last layer of the readout, offsets and repulsion are multiplied by its size in eV;
- length unit: cutoff and radial basis are rescaled (Bessel functions ``sin(f d)/d`` also gain the
  factor ``1/length``, which goes into the filters);
- a width F that is no multiple of 8 is padded with channels that stay zero;
- only the chosen elements keep their rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField

#: Blocks of F numbers along the axes of each parameter of an interaction; 0: not of size F.
_INTERACTION = {
    "filter.weight": (3, 0),
    "filter.bias": (3,),
    "message.0.weight": (1, 1),
    "message.0.bias": (1,),
    "message.2.weight": (3, 1),
    "message.2.bias": (3,),
    "mix.weight": (2, 1),
    "update.0.weight": (1, 2),
    "update.0.bias": (1,),
    "update.2.weight": (3, 1),
    "update.2.bias": (3,),
}
_READOUT = {"0.weight": (0, 1), "0.bias": (0,), "2.weight": (0, 0), "2.bias": (0,)}


@dataclass(frozen=True)
class Repulsion:
    """``charge/d Σ_k amplitudes_k exp(-decays_k d inverse_length)``, cut off with a jump.

    Rows and columns of the two matrices are atomic numbers.
    """

    charge: Tensor
    inverse_length: Tensor
    range: float
    amplitudes: Tensor
    decays: Tensor


@dataclass(frozen=True)
class Network:
    """A PaiNN of some program, float64, in its own units.

    Its energy is ``Σ_i scales[Z_i] readout_i + offsets[Z_i]`` and the repulsion.
    """

    program: str
    version: str
    embedding: Tensor
    """(n_rows, F), a row for each atomic number from 0 on."""
    interactions: list[dict[str, Tensor]]
    """Parameters of each interaction under the student's names, not padded."""
    readout: dict[str, Tensor]
    basis: str
    """``gaussian`` or ``bessel``."""
    bases: list[dict[str, Tensor]]
    """State of the radial basis: one for all interactions, or one for each."""
    basis_trainable: bool
    cutoff: float
    cutoff_function: str
    epsilon: float
    """Added under the root of the vector norm."""
    scales: Tensor
    """(n_rows,)."""
    offsets: Tensor
    """(n_rows,); not a number where the file has none."""
    elements: list[int]
    """Those it was trained on as far as the file shows; empty when it does not."""
    elements_certain: bool = False
    """Whether it was surely trained on no others."""
    cutoff_exponent: int = 6
    cutoff_onset: float | None = None
    repulsion: Repulsion | None = None


def build_student(
    network: Network, energy: float, length: float, elements: str | Sequence[str | int] | None
) -> StudentForceField:
    """The student, in float64.

    Args:
        network: what was read.
        energy: the file's unit of energy in eV.
        length: the file's unit of length in Å.
        elements: which to keep; None for those that the file shows.

    Raises:
        InputError: numbers that are not finite, sizes that do not fit, an unknown element.
    """
    kept = _elements(elements, network)
    width = network.embedding.shape[1]
    padded = -(-width // 8) * 8
    bases = [_rescaled(network.basis, state, length) for state in network.bases]
    num_rbf = len(next(iter(bases[0].values())))
    lone = num_rbf == 1  # the student has two functions at least: the second gets no weight
    if lone:
        bases = [{name: v.repeat(2) for name, v in basis.items()} for basis in bases]
        num_rbf = 2
    repulsion = network.repulsion
    onset = network.cutoff_onset
    config = ModelConfig(
        hidden_dim=padded,
        num_interactions=len(network.interactions),
        num_rbf=num_rbf,
        cutoff=network.cutoff * length,
        rbf=network.basis,
        rbf_trainable=network.basis_trainable,
        rbf_per_interaction=len(bases) > 1,
        cutoff_function=network.cutoff_function,
        cutoff_exponent=network.cutoff_exponent,
        cutoff_onset=None if onset is None else onset * length,
        norm="paper",
        norm_epsilon=network.epsilon,
        readout_dim=len(network.readout["0.bias"]),
        zbl=repulsion is not None,
        zbl_switched=False,
    )
    student = StudentForceField(config, kept, _offsets(network, kept, energy)).to(torch.float64)

    state: dict[str, Tensor] = {
        f"bases.{k}.{name}": value for k, basis in enumerate(bases) for name, value in basis.items()
    }
    state["embedding.weight"] = _grow(network.embedding[kept], 1, 1, padded)
    state["scales"] = network.scales[kept]
    for k, parameters in enumerate(network.interactions):
        for name, blocks in _INTERACTION.items():
            value = _padded(f"interactions.{k}.{name}", parameters[name], blocks, width, padded)
            state[f"interactions.{k}.{name}"] = value
        filter_weight = f"interactions.{k}.filter.weight"
        if network.basis == "bessel":
            state[filter_weight] = state[filter_weight] * length
        if lone:
            zeros = torch.zeros_like(state[filter_weight])
            state[filter_weight] = torch.cat([state[filter_weight], zeros], dim=1)
    for name, blocks in _READOUT.items():
        value = _padded(f"readout.{name}", network.readout[name], blocks, width, padded)
        state[f"readout.{name}"] = value * energy if name.startswith("2.") else value
    for name, value in state.items():
        require(
            bool(value.isfinite().all()),
            f"{name} has numbers that are not finite; the training diverged, take another file",
        )
    _load(student, state)
    if repulsion is not None:
        _set_repulsion(student, repulsion, kept, energy, length)
    return student


def require(condition: bool, message: str) -> None:
    """Raise InputError unless the condition holds."""
    if not condition:
        raise InputError(message)


def _load(student: StudentForceField, state: dict[str, Tensor]) -> None:
    for name, own in student.painn.state_dict().items():
        require(
            name in state and state[name].shape == own.shape,
            f"{name} has shape {tuple(state[name].shape) if name in state else None}, expected "
            f"{tuple(own.shape)}; only a plain PaiNN can be imported",
        )
    student.painn.load_state_dict(state)


def _set_repulsion(
    student: StudentForceField, repulsion: Repulsion, kept: list[int], energy: float, length: float
) -> None:
    own = student.repulsion
    assert own is not None  # config.zbl
    pairs = torch.tensor(kept).unsqueeze(1), torch.tensor(kept)
    values = {
        "charge": repulsion.charge[pairs] * energy * length,
        "inverse_length": repulsion.inverse_length[pairs] / length,
        "range": torch.full_like(own.range, repulsion.range * length),
        "amplitudes": repulsion.amplitudes,
        "decays": repulsion.decays,
    }
    for name, value in values.items():
        require(
            bool(value.isfinite().all()) and value.shape == getattr(own, name).shape,
            f"the repulsion's {name} is not finite or of shape {tuple(value.shape)}, expected "
            f"{tuple(getattr(own, name).shape)}; take another file",
        )
        getattr(own, name).copy_(value)


def _offsets(network: Network, kept: list[int], energy: float) -> list[float]:
    values = network.offsets[kept]
    for z, value in zip(kept, values.tolist(), strict=True):
        require(
            value == value,
            f"no atomic reference energy for {chemical_symbols[z]}; leave it out of elements",
        )
    return (values * energy).tolist()


def _rescaled(basis: str, state: dict[str, Tensor], length: float) -> dict[str, Tensor]:
    factor = length if basis == "gaussian" else 1.0 / length
    return {name: value * factor for name, value in state.items()}


def _elements(elements: str | Sequence[str | int] | None, network: Network) -> list[int]:
    rows = min(network.embedding.shape[0], MAX_Z + 1)
    if elements is None:
        if network.elements:
            return network.elements
        warnings.warn(
            "the file does not say which elements it was trained on, so all are kept and the "
            "student will not refuse untrained ones; pass elements (--elements C,H,O)",
            stacklevel=4,
        )
        return list(range(1, rows))
    known = network.elements if network.elements_certain else list(range(1, rows))
    given = elements.split(",") if isinstance(elements, str) else list(elements)
    kept = set()
    for item in given:
        z = item if isinstance(item, int) else number_of_symbol.get(item.strip().capitalize(), 0)
        if z not in known:
            names = " ".join(chemical_symbols[k] for k in known)
            raise InputError(
                f"element {item!r} is not among those of the model, "
                f"{names if network.elements_certain else f'1..{rows - 1}'}; pass symbols such as "
                f"{','.join(chemical_symbols[k] for k in known[:3])}"
            )
        kept.add(int(z))
    require(bool(kept), "elements must name at least one, got none; pass symbols such as C,H,O")
    return sorted(kept)


def _padded(name: str, value: Tensor, blocks: tuple[int, ...], width: int, padded: int) -> Tensor:
    """Check the shape and add the zero channels."""
    expected = tuple(
        count * width if count else size for count, size in zip(blocks, value.shape, strict=False)
    )
    require(
        tuple(value.shape) == expected and value.ndim == len(blocks),
        f"{name} has shape {tuple(value.shape)}, expected blocks of {width} channels; "
        "only a plain PaiNN can be imported",
    )
    for axis, count in enumerate(blocks):
        if count:
            value = _grow(value, axis, count, padded)
    return value


def _grow(value: Tensor, axis: int, blocks: int, padded: int) -> Tensor:
    """Zero channels at the end of each block of an axis, so that a block has ``padded``."""
    width = value.shape[axis] // blocks
    shape = list(value.shape)
    shape[axis : axis + 1] = [blocks, width]
    blocked = value.reshape(shape)
    shape[axis + 1] = padded
    grown = value.new_zeros(shape)
    grown.narrow(axis + 1, 0, width).copy_(blocked)
    return grown.flatten(axis, axis + 1)


__all__ = ["Network", "Repulsion", "build_student", "require"]
