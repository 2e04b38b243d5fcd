"""Sampling that was interrupted: finished pieces are kept, and read when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mlff_distiller import __version__
from mlff_distiller.data.hdf5 import HDF5Dataset, HDF5Writer
from mlff_distiller.data.journal import journal_path
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError


class Segment(NamedTuple):
    """A piece of a trajectory."""

    frames: list[Structure]
    rejected: dict[str, int]
    """Reason -> number."""


class PartialFrames:
    """Segments of dynamics and pieces of walks on disk, each as soon as it is finished.

    Use as a context manager. A segment depends on its seed and on those before it, so a run that
    reads what is here and makes the rest ends with the frames of one that was never interrupted.

    Args:
        path: HDF5 file, beside what is written in the end.
        inputs: plain JSON of all that decides the frames. Segments of other inputs, and a file
            that cannot be read, are discarded.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any]) -> None:
        content = json.dumps({"version": __version__, **inputs}, sort_keys=True)
        self._key = hashlib.sha256(content.encode()).hexdigest()
        self.path = path
        self._segments: dict[tuple[int | str, int], Segment] = {}
        self._table: list[list[Any]] = []  # index, segment, frames, rejected
        if path.exists() or journal_path(path).exists():
            try:
                self._read()
            except InputError:
                self.remove()
        self._writer = HDF5Writer(path)

    def __len__(self) -> int:
        """Number of frames."""
        return sum(int(row[2]) for row in self._table)

    def get(self, trajectory: int | str, segment: int) -> Segment | None:
        """A segment that was finished earlier."""
        return self._segments.get((trajectory, segment))

    def put(
        self,
        trajectory: int | str,
        segment: int,
        frames: Sequence[Structure],
        rejected: Counter[str],
    ) -> None:
        """Commit a finished segment: on return it is on disk."""
        table = [*self._table, [trajectory, segment, len(frames), dict(rejected)]]
        self._writer.append(frames, progress={"inputs": self._key, "segments": table})
        self._table = table

    def remove(self) -> None:
        """Delete the file: its frames lie elsewhere now, or nobody wants them."""
        self.path.unlink(missing_ok=True)
        journal_path(self.path).unlink(missing_ok=True)

    def __enter__(self) -> PartialFrames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        if not self._table:
            self.remove()

    def _read(self) -> None:
        data = HDF5Dataset(self.path, require_labels=False)
        if data.progress.get("inputs") != self._key:
            raise InputError(f"{self.path} holds frames of other settings")
        frames = list(data)
        self._table = data.progress["segments"]
        begin = 0
        for trajectory, segment, number, rejected in self._table:
            end = begin + number
            self._segments[trajectory, segment] = Segment(frames[begin:end], rejected)
            begin = end
