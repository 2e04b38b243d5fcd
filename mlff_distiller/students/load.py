"""Reading a student from whatever holds one: run directory, checkpoint or exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.config import ModelConfig, from_dict
from mlff_distiller.errors import InputError
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.file import check_path, load_exported, read_metadata
from mlff_distiller.students.stored import StoredStudent
from mlff_distiller.students.versions import upgrade_state


def read_student(path: str | Path) -> StoredStudent:
    """The student in a run directory (the best one), a checkpoint or an exported file.

    Raises:
        InputError: missing, truncated or foreign file, or one of a newer format.
    """
    check_path(path)
    path = Path(path)
    if path.is_dir() or path.suffix == ".ckpt":
        content = read_checkpoint(path)
        state = content["model"]
    else:
        content = read_metadata(path)
        state = load_exported(path).state_dict()
        state = upgrade_state(state, content["elements"], content["format_version"])
        state.pop("species_of_z", None)
        # A loaded module may have been cast; the metadata keep every digit.
        state["reference_energies"] = _reference_energies(content, state, path)
    config = from_dict(ModelConfig, content["model_config"], where="model_config")
    return StoredStudent(config, list(content["elements"]), content["dtype"], state)


def read_training_metadata(path: str | Path) -> dict[str, Any]:
    """What a student says about its training, and its cutoff: of the files of :func:`read_student`."""
    path = Path(path)
    if path.is_dir() or path.suffix == ".ckpt":
        content = read_checkpoint(path)
        return {**content["metadata"], "cutoff": content["model_config"]["cutoff"]}
    return read_metadata(path)


def _reference_energies(metadata: dict[str, Any], state: dict[str, Tensor], path: Path) -> Tensor:
    """Those of the metadata, which must be those of the module."""
    stored = state["reference_energies"]
    try:
        energies = torch.tensor(metadata["reference_energies"], dtype=torch.float64)
    except (KeyError, TypeError, ValueError):
        energies = torch.zeros(0, dtype=torch.float64)
    if energies.shape != stored.shape or not bool((energies.to(stored.dtype) == stored).all()):
        raise InputError(
            f"the metadata of {path} have other reference energies than its parameters; export the "
            "student again"
        )
    return energies
