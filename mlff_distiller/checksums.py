"""Checksums of what files hold: a flipped bit is a message, not another number.

zip files (exported students, checkpoints) have a CRC-32 of every entry, which torch does not look
at; :func:`check_zip` does. Beside it, files hold SHA-256 sums of what was meant to be written.
Files of older versions have none and are read as before.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.errors import DamagedFileError, InputError


def of_bytes(data: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def of_state(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and every bit of the tensors of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_mapping(entries: Mapping[str, Any]) -> str:
    """Of plain JSON, independent of the order of keys."""
    plain = json.loads(json.dumps(entries))
    return of_bytes(json.dumps(plain, sort_keys=True).encode())


def check_zip(path: str | Path, what: str) -> None:
    """Compare every entry of a zip file with its CRC-32.

    Args:
        path: the file.
        what: it should be, for messages: ``an exported student``.

    Raises:
        DamagedFileError: or a truncated one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # zipfile raises whatever the damaged field leads to
        raise damaged(path, what, f"{type(error).__name__}") from None
    if bad is not None:
        raise damaged(path, what, f"checksum of {bad!r} differs")


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise InputError for a tensor with NaN or infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: {name} holds NaN or infinity; the training diverged or the file is "
                "damaged, take another"
            )


def damaged(path: str | Path, what: str, reason: str) -> DamagedFileError:
    """One line for a file whose content is not what was written."""
    return DamagedFileError(
        f"{path} must be {what}, got a damaged file ({reason}); copy or make it again", path
    )
