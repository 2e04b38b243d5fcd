"""PaiNN trained with SchNetPack 2 -> :class:`StudentForceField`, exact and in eV and Å.

Schütt, Hessmann, Gebauer, Lederer, Gastegger, J. Chem. Phys. 158, 144801 (2023).

Both networks have the same layout, so weights are copied. What is folded in on the way:

- energy unit: the last layer of the readout and all offsets are multiplied by its size in eV;
- length unit: cutoff and radial basis are rescaled (Bessel functions ``sin(f d)/d`` also gain the
  factor ``1/length``, which goes into the filters);
- ``ScaleProperty`` and ``AddOffsets`` of the energy, in their order;
- one filter network or one interaction block shared by all layers becomes copies;
- a width F that is no multiple of 8 is padded with channels that stay zero.

The file is read by :mod:`~mlff_distiller.importers.inert_pickle`: no code of it runs and SchNetPack
need not be installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers as number_of_symbol
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.files import sha256
from mlff_distiller.importers.schnetpack_file import Trained, read_trained, require
from mlff_distiller.students.export import export_student
from mlff_distiller.students.student import StudentForceField
from mlff_distiller.units import energy_in_ev, length_in_angstrom


def import_schnetpack(
    path: str | Path,
    *,
    energy_unit: str,
    length_unit: str = "Ang",
    elements: str | Sequence[str | int] | None = None,
) -> StudentForceField:
    """Read a PaiNN that SchNetPack trained.

    Args:
        path: ``best_model`` (a saved module), a saved ``state_dict()`` or a Lightning checkpoint.
        energy_unit: of the training data; the file does not record it. ``eV``, ``kcal/mol``, ...
        length_unit: of the training data, ``Ang``, ``Bohr`` or ``nm``.
        elements: which elements to keep, ``"C,H,O"`` or a list of symbols or atomic numbers. The
            file has an embedding for every element up to 99, trained or not, and does not say
            which ones were in the data. None keeps those with an atomic reference energy, or
            all with a warning where there are none.

    Returns:
        The student in float64, energies in eV, lengths in Å.

    Raises:
        InputError: not a PaiNN of SchNetPack, or one with an option that the student lacks.
    """
    energy, length = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    return _build(read_trained(path), energy, length, elements)


def convert_schnetpack(
    source: str | Path,
    target: str | Path,
    energy_unit: str,
    length_unit: str = "Ang",
    elements: str | Sequence[str | int] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Import and write as an exported student; arguments of :func:`import_schnetpack`.

    Args:
        source: see ``path`` there.
        target: file to write.
        energy_unit: see there.
        length_unit: see there.
        elements: see there.
        dtype: ``float32`` or ``float64``.

    Returns:
        The metadata as written.

    Raises:
        InputError: see there; or an unknown dtype.
    """
    if dtype not in ("float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}; pass one of them")
    energy, length = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    trained = read_trained(source)
    student = _build(trained, energy, length, elements)
    origin = {
        "program": "SchNetPack",
        "version": trained.version,
        "file_sha256": sha256(source),
        "energy_unit": energy_unit,
        "length_unit": length_unit,
    }
    return export_student(student.to(getattr(torch, dtype)), target, {"imported_from": origin})


def _build(
    trained: Trained, energy: float, length: float, elements: str | Sequence[str | int] | None
) -> StudentForceField:
    """The student; ``energy`` and ``length`` are the file's units in eV and Å."""
    tensors = trained.tensors
    kept = _elements(elements, trained)
    embedding = tensors["representation.embedding.weight"]
    width = embedding.shape[1]
    padded = -(-width // 8) * 8
    depth = _count(tensors, "representation.interactions.")
    basis, rbf_state = _radial_basis(tensors, length)
    config = ModelConfig(
        hidden_dim=padded,
        num_interactions=depth,
        num_rbf=len(next(iter(rbf_state.values()))),
        cutoff=float(tensors["representation.cutoff_fn.cutoff"]) * length,
        rbf=basis,
    )
    offsets = [
        energy * (trained.mean_per_atom + (0 if trained.atomrefs is None else _row(trained, z)))
        for z in kept
    ]
    student = StudentForceField(config, kept, offsets).to(torch.float64)

    state: dict[str, Tensor] = {f"rbf.{name}": value for name, value in rbf_state.items()}
    state["embedding.weight"] = _grow(embedding[kept], 1, 1, padded)
    for k in range(depth):
        state.update(_interaction(tensors, k, depth, width, padded, basis, length))
    state.update(_readout(trained, width, padded, energy))
    student.painn.load_state_dict(state)
    return student


def _elements(elements: str | Sequence[str | int] | None, trained: Trained) -> list[int]:
    rows = min(trained.tensors["representation.embedding.weight"].shape[0], MAX_Z + 1)
    if elements is None:
        if trained.atomrefs is not None:
            known = torch.nonzero(trained.atomrefs[:rows]).flatten().tolist()
            if kept := [z for z in known if z >= 1]:
                return kept
        warnings.warn(
            "the file does not say which elements it was trained on, so all are kept and the "
            "student will not refuse untrained ones; pass elements (--elements C,H,O)",
            stacklevel=3,
        )
        return list(range(1, rows))
    given = elements.split(",") if isinstance(elements, str) else list(elements)
    kept = []
    for item in given:
        z = item if isinstance(item, int) else number_of_symbol.get(item.strip().capitalize(), 0)
        if not 1 <= z < rows:
            raise InputError(
                f"element {item!r} is not among the {rows - 1} that the model has; "
                "pass symbols such as C,H,O"
            )
        kept.append(int(z))
    return sorted(set(kept))


def _row(trained: Trained, z: int) -> float:
    assert trained.atomrefs is not None
    if z >= len(trained.atomrefs):
        raise InputError(f"no atomic reference energy for Z={z}; leave it out of elements")
    return float(trained.atomrefs[z])


def _radial_basis(tensors: dict[str, Tensor], length: float) -> tuple[str, dict[str, Tensor]]:
    prefix = "representation.radial_basis."
    names = {k.removeprefix(prefix) for k in tensors if k.startswith(prefix)}
    if names == {"widths", "offsets"}:
        return "gaussian", {
            "centers": tensors[prefix + "offsets"] * length,
            "widths": tensors[prefix + "widths"] * length,
        }
    if names == {"freqs"}:
        return "bessel", {"frequencies": tensors[prefix + "freqs"] / length}
    raise InputError(
        f"the radial basis has {sorted(names)}, expected GaussianRBF or BesselRBF; "
        "only these can be imported"
    )


def _interaction(
    tensors: dict[str, Tensor],
    k: int,
    depth: int,
    width: int,
    padded: int,
    basis: str,
    length: float,
) -> dict[str, Tensor]:
    """Parameters of layer k under the student's names."""
    weight = tensors["representation.filter_net.weight"]
    bias = tensors["representation.filter_net.bias"]
    if weight.shape[0] != 3 * width:  # else one network is shared by all layers
        _expect("filter_net", weight, (depth * 3 * width, weight.shape[1]))
        weight, bias = (t[3 * width * k : 3 * width * (k + 1)] for t in (weight, bias))
    if basis == "bessel":
        weight = weight * length
    message = f"representation.interactions.{k}.interatomic_context_net."
    mixing = f"representation.mixing.{k}."
    update = f"{mixing}intraatomic_context_net."

    def take(name: str, rows: int, columns: int) -> Tensor:
        return _take(tensors, name, rows, columns, width, padded)

    values = {
        "filter.weight": _grow(weight, 0, 3, padded),
        "filter.bias": _grow(bias, 0, 3, padded),
        "message.0.weight": take(f"{message}0.weight", 1, 1),
        "message.0.bias": take(f"{message}0.bias", 1, 0),
        "message.2.weight": take(f"{message}1.weight", 3, 1),
        "message.2.bias": take(f"{message}1.bias", 3, 0),
        "mix.weight": take(f"{mixing}mu_channel_mix.weight", 2, 1),
        "update.0.weight": take(f"{update}0.weight", 1, 2),
        "update.0.bias": take(f"{update}0.bias", 1, 0),
        "update.2.weight": take(f"{update}1.weight", 3, 1),
        "update.2.bias": take(f"{update}1.bias", 3, 0),
    }
    return {f"interactions.{k}.{name}": value for name, value in values.items()}


def _readout(trained: Trained, width: int, padded: int, energy: float) -> dict[str, Tensor]:
    hidden, last = (trained.tensors[f"{trained.readout}{i}.weight"] for i in (0, 1))
    size = hidden.shape[0]
    require(
        hidden.shape == (size, width) and last.shape == (1, size) and size <= padded // 2,
        f"the readout has layers {width} -> {size} -> {last.shape[0]}, expected {width} -> "
        f"{width // 2} -> 1; only n_hidden up to half the width can be imported",
    )
    factor = trained.scale * energy
    weight = hidden.new_zeros(padded // 2, padded)
    weight[:size, :width] = hidden
    bias = hidden.new_zeros(padded // 2)
    bias[:size] = trained.tensors[f"{trained.readout}0.bias"]
    out = hidden.new_zeros(1, padded // 2)
    out[:, :size] = last * factor
    return {
        "readout.0.weight": weight,
        "readout.0.bias": bias,
        "readout.2.weight": out,
        "readout.2.bias": trained.tensors[f"{trained.readout}1.bias"] * factor,
    }


def _take(
    tensors: dict[str, Tensor], name: str, rows: int, columns: int, width: int, padded: int
) -> Tensor:
    """A weight of (rows * width, columns * width), or a bias when ``columns`` is 0."""
    if name not in tensors:
        raise InputError(f"the model lacks {name}; only SchNetPack's own PaiNN can be imported")
    shape = (rows * width, columns * width) if columns else (rows * width,)
    _expect(name, tensors[name], shape)
    value = _grow(tensors[name], 0, rows, padded)
    return _grow(value, 1, columns, padded) if columns else value


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


def _expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}, expected {shape}; "
            "only SchNetPack's own PaiNN can be imported"
        )


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in tensors if k.startswith(prefix)})


__all__ = ["convert_schnetpack", "import_schnetpack"]
