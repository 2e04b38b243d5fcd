"""[6] One TorchScript file that every engine runs, and reading it back.

The file is what ``torch.jit.save`` writes (an uncompressed zip) with two extra files:

``metadata.json``
    format version, elements, cutoff, units, dtype, config, teacher, data hash, accuracy.
``native.bin``
    the same parameters for the native engine, which reads them straight from the zip and so
    needs no libtorch. See :func:`_native_parameters` for the layout.

TorchScript is deprecated upstream since torch 2.11; it is used in this file alone.
"""

import json
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlff_distiller import __version__
from mlff_distiller.config import ModelConfig, from_dict, to_dict
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_path
from mlff_distiller.models.student_model import StudentForceField
from mlff_distiller.models.versions import upgrade_config, upgrade_state
from mlff_distiller.ops.reference import neighbor_list_reference

#: Raised when a reader of the old number could not use a new file; models/versions.py reads old ones.
FORMAT_VERSION = 2
_METADATA = "metadata.json"
_NATIVE = "native.bin"


class ExportedStudent(nn.Module):
    """The portable form: plain TorchScript, no custom operator, runs in any libtorch.

    Args:
        student: what to export; parameters are shared, not copied.
    """

    reference_energies: Tensor
    species_of_z: Tensor

    def __init__(self, student: StudentForceField) -> None:
        super().__init__()
        self.cutoff = student.cutoff
        self.painn = student.painn
        self.repulsion = student.repulsion
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
        valid = (atomic_numbers >= 1) & (atomic_numbers <= 118)
        species = self.species_of_z[atomic_numbers * valid.to(atomic_numbers.dtype)]
        if bool((species < 0).any()):
            raise ValueError("an element that the model was not trained on")
        dtype = self.painn.embedding.weight.dtype
        vectors = edge_vectors.to(dtype)
        energies = self.painn(species, edge_index, vectors)
        if self.repulsion is not None:
            energies = energies + self.repulsion(species, edge_index, vectors)
        return energies.to(torch.float64) + self.reference_energies[species].to(torch.float64)


def export_student(
    student: StudentForceField, path: str | Path, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a student for LAMMPS, OpenMM and ASE. The write is atomic.

    Args:
        student: the model; exported in the dtype that it has.
        path: file to write, ``.pt`` by custom.
        metadata: what to record beside the fixed entries (teacher, data hash, accuracy,
            ``min_distance`` in Å of the closest pair in training, ...).

    Returns:
        The metadata as written.
    """
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
    if student.repulsion is not None and not student.repulsion.switched:
        entries["repulsion_step"] = student.repulsion.jump()  # eV
    exported = ExportedStudent(student).eval()
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore")  # TorchScript's deprecation, see the head of this file
        scripted = torch.jit.script(exported)
        extra = {
            _METADATA: json.dumps(entries, indent=1),
            _NATIVE: _native_parameters(student, float(entries.get("min_distance") or 0.0)),
        }
        torch.jit.save(scripted, str(temporary), _extra_files=extra)
    return entries


def check_path(path: object) -> None:
    """Raises InputError for what names no file, such as None."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"the model must be the path of a file, got {path!r}; make one with "
            "`mlff-distiller export RUN_DIR -o student.pt`"
        )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of an exported student, without loading torch code.

    Raises:
        InputError: missing, truncated or foreign file, or one of a newer format.
    """
    check_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(f"extra/{_METADATA}")), None)
            if name is None:
                raise InputError(
                    f"{path} is a zip file but no exported student; "
                    "make one with `mlff-distiller export RUN_DIR -o student.pt`"
                )
            metadata = json.loads(archive.read(name))
    except FileNotFoundError:
        raise InputError(f"no such model file: {path}; check the path") from None
    except IsADirectoryError:
        raise InputError(
            f"a model is a file, got the directory {path}; make one of a run directory with "
            "`mlff-distiller export RUN_DIR -o student.pt`"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read the model {path}: {error.strerror or error}; check its permissions"
        ) from None
    except (zipfile.BadZipFile, json.JSONDecodeError, EOFError, struct.error):
        raise InputError(
            f"{path} is no exported student or is truncated; export or copy it again"
        ) from None
    if not isinstance(metadata, dict) or "format_version" not in metadata:
        raise InputError(f"{path} is no exported student; its metadata has no format_version")
    version = metadata["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, this mlff_distiller {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade mlff_distiller"
        )
    _check_metadata(metadata, path)
    metadata["model_config"] = upgrade_config(metadata["model_config"], version)
    return metadata


def _check_metadata(metadata: dict[str, Any], path: str | Path) -> None:
    elements, cutoff = metadata.get("elements"), metadata.get("cutoff")
    good = (
        isinstance(elements, list)
        and bool(elements)
        and all(isinstance(z, int) and 1 <= z <= 118 for z in elements)
        and isinstance(cutoff, (int, float))
        and cutoff > 0
        and metadata.get("dtype") in ("float32", "float64")
        and isinstance(metadata.get("model_config"), dict)
        and metadata["model_config"].get("cutoff") == cutoff
    )
    if not good:
        raise InputError(
            f"the metadata of {path} contradict themselves (elements {elements!r}, cutoff "
            f"{cutoff!r}, dtype {metadata.get('dtype')!r}); export the student again"
        )


def load_exported(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> torch.jit.ScriptModule:
    """Load the portable TorchScript form.

    Args:
        path: exported student.
        device: where to put it.
        dtype: float32 or float64; None keeps the one it was exported with.

    Returns:
        Module with ``forward(atomic_numbers, positions, cell, pbc)`` and
        ``atomic_energies(atomic_numbers, edge_index, edge_vectors)``.

    Raises:
        InputError: see :func:`read_metadata`.
    """
    read_metadata(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"torch {torch.__version__} cannot load {path} ({reason}); export it again"
        ) from None
    if dtype is not None:
        module = module.to(dtype)
    return module.eval()


def load_student(path: str | Path) -> StudentForceField:
    """Rebuild the Python student from a run directory, a checkpoint or an exported file.

    Raises:
        InputError: missing, truncated or foreign file, or one of a newer format.
    """
    check_path(path)
    path = Path(path)
    if path.is_dir() or path.suffix == ".ckpt":
        from mlff_distiller.training.checkpoint import load_student_from_checkpoint

        return load_student_from_checkpoint(path)
    metadata = read_metadata(path)
    state = upgrade_state(
        load_exported(path).state_dict(), metadata["elements"], metadata["format_version"]
    )
    config = from_dict(ModelConfig, metadata["model_config"], where="model_config")
    student = StudentForceField(config, metadata["elements"])
    student.to(getattr(torch, metadata["dtype"]))
    state.pop("species_of_z", None)
    student.load_state_dict(state)
    # A loaded module may have been cast; the metadata keep every digit.
    student.set_reference_energies(metadata["reference_energies"])
    return student


def _native_parameters(student: StudentForceField, min_distance: float) -> bytes:
    """Parameters for the native engine: a text header, then raw little-endian numbers.

    The header has one item a line: ``mlff-native 2``, then ``key value...``, then
    ``tensor NAME f32|f64 NDIM DIM... BYTE_OFFSET``, then ``end DATA_BYTES``. The data follow the
    last newline; offsets count from there. Keys that are not as their names say:

    ``norm EPSILON SHIFT``
        the norm of vectors v is ``sqrt(|v|^2 + EPSILON) - SHIFT``.
    ``filter K BASIS NUM_RBF CUTOFF_FUNCTION [PARAMETER]``
        of interaction K; the parameter is the exponent of a polynomial or the onset of a switch.
    ``repulsion none|switched|cut``
        see :class:`~mlff_distiller.models.repulsion.PairRepulsion`.
    """
    config, painn = student.config, student.painn
    tensors: dict[str, Tensor] = {
        name: value for name, value in painn.state_dict().items() if not name.startswith("bases.")
    }
    for k in range(config.num_interactions):
        basis = painn.bases[min(k, len(painn.bases) - 1)]
        for name, value in basis.state_dict().items():
            tensors[f"interactions.{k}.rbf.{name}"] = value
    tensors["reference_energies"] = student.reference_energies
    repulsion = "none"
    if student.repulsion is not None:
        repulsion = "switched" if student.repulsion.switched else "cut"
        for name, value in student.repulsion.state_dict().items():
            tensors[f"repulsion.{name}"] = value
    dtype = "float64" if painn.embedding.weight.dtype == torch.float64 else "float32"
    epsilon, shift = config.norm_numbers
    parameter = {"polynomial": config.cutoff_exponent, "switch": config.cutoff_onset}
    lines = [
        f"mlff-native {FORMAT_VERSION}",
        f"hidden_dim {config.hidden_dim}",
        f"num_interactions {config.num_interactions}",
        f"readout_dim {painn.readout[0].out_features}",
        f"cutoff {student.cutoff!r}",
        f"norm {epsilon!r} {shift!r}",
        *(
            f"filter {k} {config.rbf} {config.num_rbf} {config.cutoff_function} "
            f"{parameter.get(config.cutoff_function, '')}".rstrip()
            for k in range(config.num_interactions)
        ),
        f"repulsion {repulsion}",
        f"dtype {dtype}",
        "elements " + " ".join(str(z) for z in student.elements),
        f"min_distance {min_distance!r}",
        "units_energy eV",
        "units_length Ang",
    ]
    blocks: list[bytes] = []
    offset = 0
    for name, value in tensors.items():
        kind = "f64" if value.dtype == torch.float64 else "f32"
        array = value.detach().cpu().contiguous().numpy().astype(f"<{kind[0]}{int(kind[1:]) // 8}")
        dims = " ".join(str(n) for n in array.shape)
        lines.append(f"tensor {name} {kind} {array.ndim} {dims} {offset}")
        blocks.append(array.tobytes())
        offset += len(blocks[-1])
    lines.append(f"end {offset}\n")
    return "\n".join(lines).encode("ascii") + b"".join(blocks)
