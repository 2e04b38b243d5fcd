"""What the teacher says of a corrected run is training data: frames of the target distribution."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlff_distiller.data import Structure
from mlff_distiller.data.hdf5 import HDF5Writer
from mlff_distiller.energy_model import EnergyModel

# Frames, or seconds, between two writes; the journal of the writer is synced to the disk at each.
_BATCH, _SECONDS = 16, 1.0
# Frames that follow each other resemble each other, so that splits keep these together.
_RELATIVES = 16


class KeptLabels:
    """Adds labelled frames to an HDF5 file, in batches; :meth:`close` it.

    Ctrl-C and errors keep every frame. A killed process loses those of the last second.

    Args:
        path: HDF5 file, made or extended.
        teacher: who labelled them.
        temperature: K, of the run; in ``info``.
        run: names the run; one that goes on does not store what it stored before.
        resumed: this run goes on from an earlier part.

    Raises:
        InputError: the file was written by something else (another teacher, MismatchError), or
            another process is writing to it.
    """

    def __init__(
        self,
        path: str | Path,
        teacher: EnergyModel,
        temperature: float,
        run: str = "",
        *,
        resumed: bool = False,
    ) -> None:
        self.path = Path(path)
        self._writer = HDF5Writer(path, teacher=teacher.name, versions=dict(teacher.versions))
        self._info: dict[str, Any] = {"source": "multistep", "temperature": temperature}
        self._run = run
        self._steps: dict[str, int] = dict(self._writer.progress.get("multistep", {}))
        # The first frame of a run that goes on is the last of the part before; after Ctrl-C some
        # more were stored than recorded.
        self._until = self._steps.get(run, -1) if resumed else -1
        self._first = not resumed
        self._waiting: list[Structure] = []
        self._written = time.monotonic()

    def append(self, structure: Structure) -> None:
        """One frame with labels; its ``info`` has ``step`` where the engine knows it."""
        step = structure.info.get("step")
        first, self._first = self._first, True
        if not first or (step is not None and step <= self._until):
            return
        count = len(self._writer) + len(self._waiting)
        info = {**self._info, "group": f"multistep {structure.formula} {count // _RELATIVES}"}
        if step is not None:
            info["step"] = step
            self._steps[self._run] = int(step)
        self._waiting.append(replace(structure, info=info, fixed=None, momenta=None, masses=None))
        if len(self._waiting) >= _BATCH or time.monotonic() - self._written > _SECONDS:
            self._flush()

    def _flush(self) -> None:
        waiting: Sequence[Structure] = self._waiting
        if waiting:
            progress = {**self._writer.progress, "multistep": self._steps}
            self._writer.append(waiting, progress=progress)
            self._waiting = []
        self._written = time.monotonic()

    def close(self) -> None:
        """Write what waits, and merge all into the file."""
        try:
            self._flush()
        finally:
            self._writer.close()
