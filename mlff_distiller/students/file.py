"""[6] The exported file: one TorchScript archive that every engine runs. Here it is read.

The file is what ``torch.jit.save`` writes (an uncompressed zip) with two extra files:

``metadata.json``
    format version, elements, cutoff, units, dtype, config, teacher, data hash, accuracy; and
    checksums (SHA-256) of native.bin, of the parameters and of these entries themselves.
``native.bin``
    the same parameters for the native engine, see native_parameters.py.

export.py writes it. TorchScript is deprecated upstream since torch 2.11; these two files and
portable.py know it, no other does.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mlff_distiller import __version__, checksums
from mlff_distiller.constants import PRECISIONS
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import DamagedFileError, InputError
from mlff_distiller.students.versions import upgrade_config

#: Raised when a reader of the old number could not use a new file; versions.py reads old ones.
FORMAT_VERSION = 2
METADATA = "metadata.json"
NATIVE = "native.bin"
#: Keys of the metadata entry ``checksums``; files written before it have none.
CHECKSUMS, PARAMETERS = "checksums", "parameters"
#: Key of the metadata entry about uncertainties of atoms, which only some files have.
UNCERTAINTY = "uncertainty"
_WHAT = "an exported student"


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
            name = next((n for n in archive.namelist() if n.endswith(f"extra/{METADATA}")), None)
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
    except InputError:
        raise
    except Exception:
        # Damaged archives and JSON raise whatever the damaged byte leads to: BadZipFile,
        # UnicodeDecodeError, NotImplementedError (compression), RuntimeError (encryption) ...
        raise DamagedFileError(
            f"{path} is no exported student or is truncated or damaged; export or copy it again",
            path,
        ) from None
    if not isinstance(metadata, dict) or "format_version" not in metadata:
        raise InputError(f"{path} is no exported student; its metadata has no format_version")
    version = metadata["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version!r}, this mlff_distiller {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade mlff_distiller"
        )
    _check_metadata(metadata, path)
    found = {k: v for k, v in metadata.items() if k != CHECKSUMS}
    if _expected(metadata, METADATA) not in (None, checksums.of_mapping(found)):
        raise checksums.damaged(path, _WHAT, f"checksum of {METADATA} differs")
    try:
        metadata["model_config"] = upgrade_config(metadata["model_config"], version)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return metadata


def _expected(metadata: dict[str, Any], what: str) -> str | None:
    """Checksum of a part of the file as it was written; None in older files."""
    if CHECKSUMS not in metadata:
        return None
    sums = metadata[CHECKSUMS]
    return str(sums.get(what)) if isinstance(sums, dict) else ""


def _check_metadata(metadata: dict[str, Any], path: str | Path) -> None:
    elements, cutoff = metadata.get("elements"), metadata.get("cutoff")
    good = (
        isinstance(elements, list)
        and bool(elements)
        and all(type(z) is int and 1 <= z <= MAX_Z for z in elements)
        and isinstance(cutoff, (int, float))
        and not isinstance(cutoff, bool)
        and 0 < cutoff < math.inf
        and metadata.get("dtype") in PRECISIONS
        and isinstance(metadata.get("model_config"), dict)
        and metadata["model_config"].get("cutoff") == cutoff
    )
    if not good:
        raise InputError(
            f"the metadata of {path} contradict themselves (elements {elements!r}, cutoff "
            f"{cutoff!r}, dtype {metadata.get('dtype')!r}); export the student again"
        )


def check_uncertainty(metadata: dict[str, Any], path: str | Path) -> None:
    """Raises InputError for a file that has no data for uncertainties of atoms."""
    if not metadata.get(UNCERTAINTY):
        raise InputError(
            f"{path} must have data for uncertainties, it has none; export the run again with "
            "`mlff-distiller export` where its training data are"
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
    metadata = read_metadata(path)
    checksums.check_zip(path, _WHAT)  # torch does not, and runs what it finds
    _check_native(path, metadata)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location=device)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"torch {torch.__version__} cannot load {path} ({reason}); export it again"
        ) from None
    state = module.state_dict()
    checksums.check_finite(state, path)
    if _expected(metadata, PARAMETERS) not in (None, checksums.of_state(state)):
        raise checksums.damaged(path, _WHAT, "checksum of the parameters differs")
    if dtype is not None:
        # Total energies of 1e5 eV/atom have no digits left for 1 meV in float32; they are summed
        # in float64, as in the native engine.
        energies = module.reference_energies
        module = module.to(dtype)
        module.reference_energies = energies
    return module.eval()


def _check_native(path: str | Path, metadata: dict[str, Any]) -> None:
    """What the native engine compares when it opens the file."""
    if (expected := _expected(metadata, NATIVE)) is None:
        return
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(f"extra/{NATIVE}")), None)
        if name is None or checksums.of_bytes(archive.read(name)) != expected:
            raise checksums.damaged(path, _WHAT, f"checksum of {NATIVE} differs")
