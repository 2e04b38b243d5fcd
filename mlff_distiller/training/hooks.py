"""What a caller may do while a student is trained."""

from __future__ import annotations

from typing import Any, Protocol

from mlff_distiller.students import StudentForceField


class Run(Protocol):
    """What hooks see of a training run.

    Attributes:
        student: the weights that the optimiser moves.
        epoch: validated epochs.
        step: steps of the optimiser.
    """

    student: StudentForceField
    epoch: int
    step: int

    def stop(self) -> None:
        """Write ``last.ckpt`` and raise KeyboardInterrupt at the next step, as Ctrl-C does."""

    def finish(self, reason: str) -> None:
        """End the run after this epoch; ``reason`` becomes ``stopped`` of the result."""


class Hooks:
    """Called by the training loop, in every process; derive and override what is needed.

    With several processes an object of this class is pickled, and all must do the same.
    """

    def before_step(self, run: Run) -> None:
        """Before the optimiser's step number ``run.step``."""

    def after_step(self, run: Run, loss: float) -> None:
        """After a step; ``loss`` is that of its batch."""

    def after_epoch(self, run: Run, row: dict[str, Any]) -> None:
        """After a validation; ``row`` is the one of ``history.csv``."""
