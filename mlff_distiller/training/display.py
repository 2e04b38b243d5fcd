"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

# Seconds between two lines where there is no terminal.
_LINE_INTERVAL = 15.0


class Display:
    """Shows progress on stderr, so that stdout stays clean for scripts.

    Args:
        enabled: show anything at all.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._last_line = -_LINE_INTERVAL
        self._errors = ""

    def note(self, text: str) -> None:
        """One line that stays."""
        if self.enabled:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Keep the bar on the screen while the block runs."""
        if not self.enabled or not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:.0f} % {task.fields[left]}"),
        )
        # Two refreshes a second: drawing takes time from training.
        bar = Progress(*columns, console=self.console, refresh_per_second=2, transient=True)
        with bar:
            bar.add_task("training", total=1.0, left="")
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def step(self, epoch: int, fraction: float, seconds: float, loss: float) -> None:
        """After a training step: part of the run done, seconds so far, loss of the batch."""
        if self._bar is not None:
            left = _duration(seconds * (1.0 - fraction) / fraction) if fraction > 0 else "?"
            self._bar.update(
                self._bar.task_ids[0],
                completed=fraction,
                description=f"epoch {epoch + 1}  loss {loss:.3g}  {self._errors}",
                left=left,
            )

    def epoch(self, row: dict[str, Any], fraction: float, best: bool, *, last: bool) -> None:
        """After a validation: a row of the history."""
        self._errors = _short_errors(row)  # the bar must fit into 80 columns
        now = time.monotonic()
        due = last or now - self._last_line >= _LINE_INTERVAL
        if self.enabled and self._bar is None and due:
            self._last_line = now
            seconds = row["seconds"]
            left = _duration(seconds * (1.0 - fraction) / fraction) if fraction > 0 else "?"
            self.note(
                f"epoch {row['epoch'] + 1:4d}  {100 * fraction:3.0f} %  loss {row['train_loss']:.3g}"
                f"  {error_text(row)}{' (best)' if best else ''}  {left} left"
            )


_SHOWN = (
    ("valid_force_mae", "force", "meV/Å", 1e3),
    ("valid_energy_mae", "energy", "meV/atom", 1e3),
    ("valid_stress_mae", "stress", "GPa", EV_PER_ANGSTROM3_IN_GPA),
)


def error_text(row: dict[str, Any]) -> str:
    """Validation errors of a row of the history, for people."""
    parts = [
        f"{name} {row[k] * size:.3g} {unit}" for k, name, unit, size in _SHOWN if row[k] == row[k]
    ]
    return "MAE " + ", ".join(parts)


def _short_errors(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{row[k] * size:.3g} {unit}" for k, _, unit, size in _SHOWN if row[k] == row[k]
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
