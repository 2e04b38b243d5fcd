"""[6] Writing a student as one file that every engine runs; file.py describes and reads it."""

import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller import __version__, checksums
from mlff_distiller.config import DataConfig, to_dict
from mlff_distiller.constants import PRECISIONS
from mlff_distiller.data import Structure
from mlff_distiller.data.frames import DataFiles, Frames
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_path
from mlff_distiller.ops.reference import neighbor_list_reference
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.file import (
    CHECKSUMS,
    FORMAT_VERSION,
    METADATA,
    NATIVE,
    PARAMETERS,
    UNCERTAINTY,
)
from mlff_distiller.students.native_parameters import native_parameters
from mlff_distiller.students.student import StudentForceField, load_student
from mlff_distiller.students.terms import EnergyTerms
from mlff_distiller.students.uncertainty import fit_uncertainty

# Of a validation split that is not held in memory.
_MOST_FRAMES = 10_000


class ExportedStudent(EnergyTerms):
    """The portable form: plain TorchScript, no custom operator, runs in any libtorch.

    Args:
        student: what to export; parameters are shared, not copied.
    """

    def __init__(self, student: StudentForceField) -> None:
        super().__init__(student.painn, student.repulsion, student.uncertainty)
        self.cutoff = student.cutoff
        self.register_buffer("species_of_z", student.species_of_z)
        self.register_buffer("reference_energies", student.reference_energies)

    def forward(
        self, atomic_numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor
    ) -> Tensor:
        """Energy of one structure, () float64 in eV; see ``StudentForceField.forward``."""
        edge_index, shifts = neighbor_list_reference(positions, cell, pbc, self.cutoff)
        vectors = positions[edge_index[0]] - positions[edge_index[1]]
        vectors = vectors + shifts.to(positions.dtype) @ cell
        return self.atomic_energies(atomic_numbers, edge_index, vectors).sum()

    @torch.jit.export
    def atomic_energies(
        self, atomic_numbers: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> Tensor:
        """Energy of each atom, (n_atoms,) float64 in eV."""
        species = self.species(atomic_numbers)
        return self.energies_of_species(species, edge_index, edge_vectors)

    @torch.jit.export
    def energies_and_uncertainties(
        self, atomic_numbers: Tensor, edge_index: Tensor, edge_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energy of each atom, and its uncertainty, (n_atoms,) in eV/Å; empty without such data."""
        species = self.species(atomic_numbers)
        return self.energies_and_uncertainties_of_species(species, edge_index, edge_vectors)

    def species(self, atomic_numbers: Tensor) -> Tensor:
        """Rows of the embedding, (n_atoms,)."""
        valid = (atomic_numbers >= 1) & (atomic_numbers <= 118)
        species = self.species_of_z[atomic_numbers * valid.to(atomic_numbers.dtype)]
        if bool((species < 0).any()):
            raise ValueError("an element that the model was not trained on")
        return species


def export_student(
    student: StudentForceField, path: str | Path, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a student for LAMMPS, OpenMM and ASE. The write is atomic.

    Args:
        student: the model; exported in the dtype that it has.
        path: file to write, ``.pt`` by custom.
        metadata: what to record beside the fixed entries (teacher, data hash, accuracy,
            ``min_distance`` in Å of the closest pair in training, ...). ``uncertainty`` says how
            it was fitted; without uncertainties in the student it is left out.

    Returns:
        The metadata as written.

    Raises:
        InputError: parameters that are not finite.
    """
    checksums.check_finite(student.state_dict(), path)
    dtype = student.painn.embedding.weight.dtype
    entries: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "torch_version": torch.__version__,
        "architecture": "PaiNN",
        "elements": student.elements,
        "cutoff": student.cutoff,
        "dtype": str(dtype).removeprefix("torch."),
        "units": {"energy": "eV", "length": "Ang", "forces": "eV/Ang", "stress": "eV/Ang^3"},
        "num_parameters": student.num_parameters,
        "reference_energies": student.reference_energies.tolist(),
        "model_config": to_dict(student.config),
        **(metadata or {}),
    }
    calibration = entries.pop(UNCERTAINTY, None) or {}
    if student.uncertainty is not None:
        entries[UNCERTAINTY] = {
            **calibration,
            "unit": "eV/Ang",
            "largest": float(student.uncertainty.largest),
            "largest_frame": float(student.uncertainty.largest_frame),
        }
    if student.repulsion is not None and not student.repulsion.switched:
        entries["repulsion_step"] = student.repulsion.jump()  # eV
    exported = ExportedStudent(student).eval()
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore")  # TorchScript's deprecation, see the head of this file
        scripted = torch.jit.script(exported)
        native = native_parameters(student, float(entries.get("min_distance") or 0.0))
        entries.pop(CHECKSUMS, None)  # of the file that the metadata were taken from
        entries[CHECKSUMS] = {
            NATIVE: checksums.of_bytes(native),
            PARAMETERS: checksums.of_state(scripted.state_dict()),
            METADATA: checksums.of_mapping(entries),
        }
        extra = {METADATA: json.dumps(entries, indent=1), NATIVE: native}
        # Given a path, torch aborts the process on a full disk.
        content = io.BytesIO()
        torch.jit.save(scripted, content, _extra_files=extra)
        temporary.write_bytes(content.getbuffer())
    return entries


def export_run(
    run_dir: str | Path,
    output: str | Path,
    dtype: str | None = None,
    *,
    uncertainty: bool = True,
    data: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Export the best student of a training run with all that is known about it.

    Args:
        run_dir: run directory or checkpoint.
        output: file to write.
        dtype: ``float32`` or ``float64``; None keeps that of training.
        uncertainty: fit uncertainties of atoms to the data of the run.
        data: that data, with its splits; None takes the file that the run was trained on.
        say: told in one line why there are no uncertainties: data that are not there any more, have
            changed or have no validation split with forces.

    Returns:
        The metadata as written.

    Raises:
        InputError: no usable checkpoint, an unknown dtype, or, without ``say``, ``data`` that
            cannot be used.
    """
    if dtype not in (None, *PRECISIONS):
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}; use --dtype float32")
    student = load_student(run_dir)
    if dtype is not None:
        student.to(getattr(torch, dtype))
    content = read_checkpoint(run_dir)
    metadata = dict(content["metadata"])
    metadata["accuracy"] = {"split": "valid", **metadata.pop("validation", {})}
    student.uncertainty = None
    if uncertainty:
        path = data or ((content.get("config") or {}).get("data") or {}).get("path")
        try:
            metadata[UNCERTAINTY] = _fit_to_data(student, path, metadata.get("data_hash"))
        except InputError as error:
            if say is not None:
                say(f"exported without uncertainties of atoms: {error}")
            elif data is not None:
                raise
    return export_student(student, output, metadata)


def _fit_to_data(
    student: StudentForceField,
    path: str | Path | list[str] | dict[str, float] | None,
    data_hash: str | None,
) -> dict[str, Any]:
    """Fit uncertainties to the training and validation splits of files; how, for the metadata."""
    if path is None:
        raise InputError("the checkpoint names no training data; name them with --data")
    files = DataFiles(DataConfig(path=path if isinstance(path, (list, dict)) else str(path)).files)
    if data_hash is not None and files.hash() != data_hash:
        raise InputError(
            f"{files.name} must hold the data that the student was trained on, it holds other; name "
            "them with --data"
        )
    calibration = fit_uncertainty(student, files.frames("train"), _few(files.frames("valid")))
    return dataclasses.asdict(calibration)


def _few(frames: Frames) -> Sequence[Structure]:
    """Those that fit into memory in any case; the fit thins them further."""
    return frames if frames.in_memory else frames[:: -(-len(frames) // _MOST_FRAMES) or 1]
