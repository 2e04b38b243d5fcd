"""Reading a student from whatever holds one: run directory, checkpoint or exported file."""

from __future__ import annotations

from pathlib import Path

import torch

from mlff_distiller.config import ModelConfig, from_dict
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
        energies = torch.tensor(content["reference_energies"], dtype=torch.float64)
        state["reference_energies"] = energies
    config = from_dict(ModelConfig, content["model_config"], where="model_config")
    return StoredStudent(config, list(content["elements"]), content["dtype"], state)
