"""``history.csv`` and TensorBoard: the numbers of each epoch, written and read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_path


class History:
    """``history.csv``, one row an epoch in eV, Å and seconds, and TensorBoard if installed.

    Args:
        folder: run directory.
        columns: of the table.
        epochs: keep this many rows of an earlier run, 0 to start anew.
        tensorboard: write event files as well.
    """

    def __init__(self, folder: Path, columns: list[str], epochs: int, tensorboard: bool) -> None:
        self.path = folder / "history.csv"
        self._columns = columns
        self.warning: str | None = None
        kept: list[dict[str, str]] = []
        if epochs and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["epoch"]) < epochs]
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.warning = (
                    "tensorboard is not installed, history.csv holds the same numbers; "
                    "pip install tensorboard, or set training.tensorboard to false"
                )
            else:
                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs)

    def add(self, row: dict[str, Any]) -> None:
        """Append one epoch."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror or error}; make room and resume"
            ) from None
        if self._events is not None:
            for key, value in row.items():
                if key not in ("epoch", "step", "seconds") and value == value:
                    self._events.add_scalar(key.replace("_", "/", 1), value, row["epoch"])

    def close(self) -> None:
        """Flush the event file."""
        if self._events is not None:
            self._events.close()


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Columns of a ``history.csv``; what is not a number becomes NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(f"{path} holds no epochs; train for longer")
    return {key: np.array([_number(row.get(key)) for row in rows]) for key in rows[0]}


def _number(text: str | None) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return float("nan")
