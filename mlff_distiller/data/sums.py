"""Checksums of an HDF5 file: of every dataset and of the attributes, in the attribute ``checksums``.

HDF5 itself compares nothing with a sum but the chunks of datasets with ``fletcher32``, which the
numeric datasets of our files have. Files of other programs and of older versions have neither.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlff_distiller.errors import InputError

NAME = "checksums"
_ATTRIBUTES = "attributes"
_ROWS = 65536  # read at once
# Too large to be read only for this, where a file is not read whole; they have fletcher32.
_LARGE = ("structures/positions", "labels/forces", "structures/atomic_numbers")


def store(file: h5py.File) -> None:
    """Note the checksums of all that the file holds now."""
    file.attrs[NAME] = json.dumps(_sums(file, everything=True))


def check(file: h5py.File, path: Path, *, everything: bool) -> None:
    """Compare a file with the checksums that it notes, if any.

    Args:
        file: opened.
        path: of it, for messages.
        everything: False passes over the datasets with numbers of each atom.

    Raises:
        InputError: they differ.
    """
    if NAME not in file.attrs:
        return
    try:
        noted = dict(json.loads(str(file.attrs[NAME])))
        found = _sums(file, everything=everything)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__} while its checksums were compared") from None
    if not everything:
        noted = {k: v for k, v in noted.items() if k not in _LARGE}
    for name in sorted(set(noted) | set(found)):
        if noted.get(name) != found.get(name):
            raise _damaged(path, f"checksum of {name!r} differs")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} must be a complete HDF5 file, got one that was damaged, or changed by another "
        f"program ({reason}); copy or write it again, or delete its attribute {NAME!r} if it is "
        "meant so"
    )


def _sums(file: h5py.File, *, everything: bool) -> dict[str, int]:
    sums = {_ATTRIBUTES: zlib.crc32(_attributes(file))}
    for name in _datasets(file):
        if everything or name not in _LARGE:
            sums[name] = _of_dataset(file[name])
    return sums


def _attributes(file: h5py.File) -> bytes:
    return "\n".join(f"{k}={v!s}" for k, v in sorted(file.attrs.items()) if k != NAME).encode()


def _datasets(file: h5py.File) -> Iterator[str]:
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    yield from names


def _of_dataset(dataset: h5py.Dataset) -> int:
    total = zlib.crc32(f"{dataset.shape} {dataset.dtype}".encode())
    if dataset.ndim == 0:
        return zlib.crc32(_raw(np.asarray(dataset[()])), total)
    for start in range(0, len(dataset), _ROWS):
        total = zlib.crc32(_raw(dataset[start : start + _ROWS]), total)
    return total


def _raw(values: Any) -> bytes:
    if values.dtype.kind != "O":
        return bytes(np.ascontiguousarray(values).tobytes())
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in values.reshape(-1)]
    return b"".join(len(t).to_bytes(8, "little") + t for t in texts)
