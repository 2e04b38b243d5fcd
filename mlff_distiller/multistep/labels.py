"""What the teacher says of a corrected run is training data: frames of the target distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mlff_distiller.data import Structure
from mlff_distiller.data.hdf5 import HDF5Writer
from mlff_distiller.energy_model import EnergyModel

# Frames between two writes; the journal of the writer is synced to the disk at each.
_BATCH = 8
# Frames that follow each other resemble each other, so that splits keep these together.
_RELATIVES = 16


class KeptLabels:
    """Adds labelled frames to an HDF5 file, in batches; a context manager.

    Ctrl-C and errors keep every frame. A killed process loses at most the last, unfinished batch.

    Args:
        path: HDF5 file, made or extended.
        teacher: who labelled them.
        temperature: K, of the run; in ``info``.
        skip_first: the first frame is the last one of the run before.
        batch: frames between two writes.

    Raises:
        InputError: the file was written by something else (another teacher, MismatchError), or
            another process is writing to it.
    """

    def __init__(
        self,
        path: str | Path,
        teacher: EnergyModel,
        temperature: float,
        *,
        skip_first: bool = False,
        batch: int = _BATCH,
    ) -> None:
        self.path = Path(path)
        self._writer = HDF5Writer(path, teacher=teacher.name, versions=dict(teacher.versions))
        self._info: dict[str, Any] = {"source": "multistep", "temperature": temperature}
        self._skip, self._batch = skip_first, batch
        self._waiting: list[Structure] = []

    def append(self, structure: Structure) -> None:
        """One frame with labels; its ``info`` has ``step`` where the engine knows it."""
        if self._skip:
            self._skip = False
            return
        count = len(self._writer) + len(self._waiting)
        info = {**self._info, "group": f"multistep {structure.formula} {count // _RELATIVES}"}
        if "step" in structure.info:
            info["step"] = structure.info["step"]
        self._waiting.append(replace(structure, info=info, fixed=None, momenta=None, masses=None))
        if len(self._waiting) >= self._batch:
            self._flush()

    def _flush(self) -> None:
        waiting: Sequence[Structure] = self._waiting
        if waiting:
            self._writer.append(waiting)
            self._waiting = []

    def close(self) -> None:
        """Write what waits, and merge all into the file."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def __enter__(self) -> KeptLabels:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
