"""Checkpoints: dictionaries of tensors and plain types, written whole or not at all.

| key                       | content                                                          |
|---------------------------|------------------------------------------------------------------|
| format, format_version    | what wrote the file                                              |
| model_config, elements    | what ``StudentForceField`` is built from                         |
| dtype, model              | state of the student: the averaged weights, those to be used     |
| metadata                  | teacher, data hash, closest pair, validation, package version    |
| config                    | the ``TrainConfig`` of the run                                   |
| checksum                  | SHA-256 of the state of the student; not in older files          |
| training                  | in ``last.ckpt`` only: all that resuming needs, see trainer.py   |
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from mlff_distiller import __version__, checksums
from mlff_distiller.config import to_dict
from mlff_distiller.errors import DamagedFileError, InputError
from mlff_distiller.files import atomic_path
from mlff_distiller.students.stored import StoredStudent
from mlff_distiller.students.versions import upgrade_config, upgrade_state, upgrade_training

FORMAT = "mlff-distiller checkpoint"
#: Raised when a reader of the old number could not use a new file; versions.py reads old ones.
FORMAT_VERSION = 2
BEST, LAST = "best.ckpt", "last.ckpt"
_REQUIRED = ("model_config", "elements", "dtype", "model", "metadata")


def save_checkpoint(
    path: str | Path,
    student: StoredStudent,
    *,
    metadata: dict[str, Any],
    config: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; the old file stays if anything goes wrong.

    Args:
        path: file to write, ``.ckpt``.
        student: ``stored()`` of the model to be used, that is with averaged weights.
        metadata: plain types; the package version is added.
        config: of the run, as plain types.
        training: state of the optimisation; tensors and plain types.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_config": to_dict(student.config),
        "elements": list(student.elements),
        "dtype": student.dtype,
        "model": student.state,
        "checksum": checksums.of_state(student.state),
        "metadata": {"package_version": __version__, **metadata},
        "config": config or {},
        "training": training,
    }
    # Given a path, torch reports a full disk in words of its own, or aborts the process.
    packed = io.BytesIO()
    torch.save(content, packed)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(packed.getbuffer())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; the checkpoint before it is kept, make "
            "room and resume"
        ) from None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: a file itself, or ``best.ckpt``, else ``last.ckpt``, of a
    run directory. Raises InputError if there is none."""
    path = Path(path)
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).exists():
                return path / name
        raise InputError(
            f"{path} must hold {BEST} or {LAST}, got neither; name a run directory of "
            "`mlff-distiller train`"
        )
    if not path.exists():
        raise InputError(f"no such checkpoint: {path}; check the path")
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint, see the table at the top of this file.

    Args:
        path: a checkpoint, or a run directory (its best one).

    Raises:
        InputError: missing, truncated or foreign file, or one of a newer version.
    """
    file = find_checkpoint(path)
    try:
        file.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}; check the file") from None
    what = "a complete checkpoint of mlff-distiller"
    if zipfile.is_zipfile(file):
        checksums.check_zip(file, what)  # torch does not
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        # What torch raises depends on where the file breaks off: RuntimeError, IndexError, OSError.
        raise DamagedFileError(
            f"{file} must be {what}, got a truncated or foreign file; copy it again or train again",
            file,
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{file} must be a checkpoint of mlff-distiller, got a file of another program; name "
            "a run directory of `mlff-distiller train`"
        )
    version = content.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{file} has checkpoint version {version!r}, this mlff_distiller {__version__} reads up "
            f"to {FORMAT_VERSION}; upgrade mlff_distiller"
        )
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}; it is damaged, train again")
    try:
        checksums.check_finite(content["model"], file)
        if content.get("checksum") not in (None, checksums.of_state(content["model"])):
            raise checksums.damaged(file, what, "checksum of the parameters differs")
        return _upgrade(content)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise checksums.damaged(file, what, type(error).__name__) from None


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    version, elements = content["format_version"], content["elements"]
    content["model_config"] = upgrade_config(content["model_config"], version)
    content["model"] = upgrade_state(content["model"], elements, version)
    config = content.get("config")
    if isinstance(config, dict) and "model" in config:
        config["model"] = upgrade_config(config["model"], version)
    if isinstance(config, dict) and "training" in config:
        config["training"] = upgrade_training(config["training"])
    if content.get("training"):
        student = content["training"]["student"]
        content["training"]["student"] = upgrade_state(student, elements, version)
    return content
