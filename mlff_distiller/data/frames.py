"""The labelled files of a run, several at once, and the frames of their splits.

Files whose structures fit into the memory that is given to them are held there; larger ones are
read in blocks while training goes on. Nothing else depends on it: order and numbers are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.data.arrays import IN_MEMORY_BYTES
from mlff_distiller.data.batch import NeighborMemory
from mlff_distiller.data.hdf5 import HDF5Dataset, ensure_splits
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError

# Frames that are read together when all are gone through.
_BLOCK = 256


class Frames(Sequence[Structure]):
    """Frames of one or several files, one after another.

    Args:
        parts: a file and the indices of its structures, in order.
    """

    def __init__(self, parts: Sequence[tuple[HDF5Dataset, np.ndarray]]) -> None:
        self._parts = [(data, np.asarray(rows, dtype=np.int64)) for data, rows in parts]
        counts = [len(rows) for _, rows in self._parts]
        self._starts = np.cumsum([0, *counts])
        sizes = [data.sizes()[rows] for data, rows in self._parts]
        self.sizes: np.ndarray = np.concatenate([np.zeros(0, np.int64), *sizes])
        """Atoms of each frame, (n,) int64."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        i = int(index)
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} frames, got index {index}")
        return self.take(np.array([i]))[0]

    def __iter__(self) -> Iterator[Structure]:
        for start in range(0, len(self), _BLOCK):
            yield from self.take(np.arange(start, min(start + _BLOCK, len(self))))

    @property
    def in_memory(self) -> bool:
        """Whether every frame is held in memory."""
        return all(data.in_memory for data, _ in self._parts)

    @property
    def counts(self) -> list[int]:
        """Frames of each file."""
        return np.diff(self._starts).tolist()

    def take(self, places: Sequence[int] | np.ndarray) -> list[Structure]:
        """Frames in the order of ``places``, each 0 to n - 1."""
        chosen = np.asarray(places, dtype=np.int64)
        part = np.searchsorted(self._starts, chosen, side="right") - 1
        found: list[Any] = [None] * len(chosen)
        for p in np.unique(part).tolist():
            data, rows = self._parts[p]
            mine = np.flatnonzero(part == p)
            structures = data.take(rows[chosen[mine] - self._starts[p]])
            for place, structure in zip(mine.tolist(), structures, strict=True):
                found[place] = structure
        return found


class DataFiles:
    """Labelled files that are used together, each with its own splits.

    Args:
        files: path -> weight, how often a frame of the file is shown in an epoch.
        memory: bytes up to which all structures are held in memory.

    Attributes:
        datasets: the open files, in order.
        weights: one for each.

    Raises:
        InputError: a file is missing, named twice, has no labels or is damaged.
    """

    def __init__(self, files: Mapping[str, float], memory: float = IN_MEMORY_BYTES) -> None:
        if not files:
            raise InputError(
                "training needs labelled data, got none; set data.path to an HDF5 file"
            )
        places = [os.path.realpath(path) for path in files]
        if len(set(places)) < len(places):
            twice = next(
                path for path, at in zip(files, places, strict=True) if places.count(at) > 1
            )
            raise InputError(
                f"data.path must name each file once, got {twice} twice; give it a weight instead"
            )
        missing = [path for path in files if not Path(path).exists()]
        if len(files) > 1 and missing:
            raise InputError(
                f"data.path must name HDF5 files, got {', '.join(missing)} of which there is no "
                "such file; check the path"
            )
        self.weights = [float(weight) for weight in files.values()]
        self.datasets = [HDF5Dataset(path, in_memory=False) for path in files]
        if sum(data.held_bytes() for data in self.datasets) <= memory:
            self.datasets = [HDF5Dataset(path, in_memory=True) for path in files]
        self.neighbors: NeighborMemory | None = None
        """Of the neighbour lists of frames in memory; no limit when None."""
        self._stamps = [_stamp(data.path) for data in self.datasets]

    @property
    def name(self) -> str:
        """The files in words, for messages."""
        return ", ".join(str(data.path) for data in self.datasets)

    @property
    def in_memory(self) -> bool:
        """Whether all structures are held in memory."""
        return all(data.in_memory for data in self.datasets)

    def frames(self, split: str) -> Frames:
        """Frames with labels of the stored split of every file."""
        parts = []
        for data in self.datasets:
            rows = data.splits.get(split, np.zeros(0, np.int64))
            parts.append((data, rows[data.labelled()[rows]]))
        return Frames(parts)

    def combined_hash(self, hashes: Sequence[str]) -> str:
        """One hash of those of all files; weights count where they are not 1."""
        if len(hashes) == 1 and self.weights == [1.0]:
            return hashes[0]
        parts = [f"{h} {w!r}" for h, w in zip(hashes, self.weights, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def hash(self) -> str:
        """SHA-256 over all structures of all files, see :func:`~mlff_distiller.data.structures_hash`."""
        return self.combined_hash([data.hash() for data in self.datasets])

    def check_unchanged(self) -> None:
        """Raise InputError if a file that is still being read was written to meanwhile.

        Our own writers put a new file in its place: what is open stays as it was.
        """
        for data, before in zip(self.datasets, self._stamps, strict=True):
            now = _stamp(data.path)
            if not data.in_memory and now is not None and before is not None and now != before:
                if now[0] != before[0]:
                    continue
                raise InputError(
                    f"{data.path} must stay as it is while training reads it, got a file that was "
                    "changed in place; start anew (or put the old file back and use --resume)"
                )


def open_files(
    files: Mapping[str, float],
    memory: float,
    valid_fraction: float,
    test_fraction: float,
    split_seed: int,
) -> DataFiles:
    """Open labelled files, with splits drawn and stored where there are none.

    Raises:
        InputError: see :class:`DataFiles` and :func:`~mlff_distiller.data.ensure_splits`.
    """
    DataFiles(files, memory=-1.0)  # complain about missing labels before splits are drawn
    for path in files:
        ensure_splits(path, valid_fraction, test_fraction, split_seed)
    return DataFiles(files, memory)


def weighted_files(texts: Sequence[str]) -> str | list[str] | dict[str, float] | None:
    """``data.path`` of ``FILE`` or ``FILE=WEIGHT`` on a command line; None of nothing.

    A file whose name ends like a weight is taken as that file where it exists.
    """
    files: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        weight = 1.0
        if name and not Path(text).exists():
            try:
                weight = float(number)
            except ValueError:
                name = text
        else:
            name = text
        if name in files:
            raise InputError(f"--data must name each file once, got {name} twice; give it a weight")
        files[name] = weight
    if not files:
        return None
    if any(weight != 1.0 for weight in files.values()):
        return files
    return next(iter(files)) if len(files) == 1 else list(files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
