"""Importing a file, whichever program wrote it.

The file is read by :mod:`~mlff_distiller.importers.inert_pickle`: no code of it runs and the program
need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mlff_distiller.constants import PRECISIONS
from mlff_distiller.errors import InputError
from mlff_distiller.files import sha256
from mlff_distiller.importers.graph_pes import graph_pes_network
from mlff_distiller.importers.inert_pickle import InertObject, read_torch_file, type_name
from mlff_distiller.importers.network import Network, build_student
from mlff_distiller.importers.schnetpack import schnetpack_network
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.export import export_student
from mlff_distiller.units import energy_in_ev, length_in_angstrom


def import_model(
    path: str | Path,
    *,
    energy_unit: str,
    length_unit: str = "Ang",
    elements: str | Sequence[str | int] | None = None,
) -> StudentForceField:
    """Read a PaiNN that SchNetPack or graph-pes trained.

    Args:
        path: a saved module (``best_model`` of SchNetPack, ``model.pt`` of graph-pes), a saved
            ``state_dict()`` or a Lightning checkpoint.
        energy_unit: of the training data; the file does not record it. ``eV``, ``kcal/mol``, ...
        length_unit: of the training data, ``Ang``, ``Bohr`` or ``nm``.
        elements: which elements to keep, ``"C,H,O"`` or a list of symbols or atomic numbers. The
            file has weights for every element, trained or not. None keeps those that training has
            left its marks on, or all with a warning where none can be told.

    Returns:
        The student in float64, energies in eV, lengths in Å.

    Raises:
        InputError: no PaiNN of these programs, or one with an option that the student lacks.
    """
    energy, length = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    return build_student(read_network(path), energy, length, elements)


def convert_model(
    source: str | Path,
    target: str | Path,
    energy_unit: str,
    length_unit: str = "Ang",
    elements: str | Sequence[str | int] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Import and write as an exported student; arguments of :func:`import_model`.

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
    if dtype not in PRECISIONS:
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}; pass one of them")
    energy, length = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    network = read_network(source)
    student = build_student(network, energy, length, elements)
    origin = {
        "program": network.program,
        "version": network.version,
        "file_sha256": sha256(source),
        "energy_unit": energy_unit,
        "length_unit": length_unit,
    }
    return export_student(student.to(getattr(torch, dtype)), target, {"imported_from": origin})


def read_network(path: str | Path) -> Network:
    """Recognise the program by what the file names, and read it.

    Raises:
        InputError: see :func:`import_model`.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = _without_task({k: v for k, v in content["state_dict"].items() if type(k) is str})
    if isinstance(content, InertObject):
        if content.type_name.startswith("graph_pes."):
            return graph_pes_network(content, path)
        if content.get("representation") is not None:
            return schnetpack_network(content, path)
    elif isinstance(content, dict):
        if any(isinstance(v, dict) and "_GRAPH_PES_VERSION" in v for v in content.values()):
            return graph_pes_network(content, path)
        if "representation.embedding.weight" in content:
            return schnetpack_network(content, path)
        raise InputError(
            f"{path} holds a dict without the embedding of a PaiNN, expected a trained PaiNN of "
            "SchNetPack (best_model) or graph-pes (model.pt); give that file"
        )
    raise InputError(
        f"{path} holds a {type_name(content)}, expected a trained PaiNN of SchNetPack (best_model) "
        "or graph-pes (model.pt); give that file"
    )


def _without_task(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of Lightning holds a task, and in it the model as ``model``."""
    prefix = "model."
    of_model = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return of_model or state


__all__ = ["convert_model", "import_model", "read_network"]
