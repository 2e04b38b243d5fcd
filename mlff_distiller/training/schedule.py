"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

from mlff_distiller.config import TrainingConfig


class Schedule:
    """Linear warm-up, then a cosine over the run or a drop whenever validation stagnates.

    The cosine follows the part of the run that is done: the larger of the fractions of epochs and
    of minutes, so a run that is limited by time ends with the small steps that it needs as well.

    Besides, the rate is at most ``long_run_rate`` over the root of the steps. Where gradients are
    noise weights make random walks, whose length goes with the root of the sum of squared rates:
    as the logarithm of the steps, so, and not as their root.

    Args:
        config: schedule, limits and learning rate.
        steps_per_epoch: optimiser steps.
    """

    def __init__(self, config: TrainingConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.total_steps = config.max_epochs * steps_per_epoch
        self.factor = 1.0  # of plateau
        #: Share of the learning rate after the run has blown up and gone back.
        self.lowered = 1.0
        self.stagnation = 0  # epochs since the best loss or the last drop
        self.best = math.inf

    def progress(self, step: int, seconds: float) -> float:
        """Part of the run that is done after ``step`` steps and ``seconds``, at most 1."""
        minutes = self.config.max_minutes
        by_time = seconds / (60.0 * minutes) if minutes else 0.0
        return min(1.0, max(step / self.total_steps, by_time))

    def learning_rate(self, step: int, seconds: float) -> float:
        """Learning rate of the step after ``step`` steps and ``seconds``."""
        c = self.config
        if c.schedule == "cosine":
            half = 0.5 * (1.0 + math.cos(math.pi * self.progress(step, seconds)))
            factor = c.final_lr_fraction + (1.0 - c.final_lr_fraction) * half
        else:
            factor = max(self.factor, c.final_lr_fraction)
        warmup = min(1.0, (step + 1) / c.warmup_steps) if c.warmup_steps > 0 else 1.0
        bound = c.long_run_rate / math.sqrt(step + 1) if c.long_run_rate else math.inf
        return min(c.learning_rate, bound) * self.lowered * factor * warmup

    def end_epoch(self, loss: float) -> None:
        """Tell the validation loss, on which plateau acts."""
        if loss < self.best:
            self.best, self.stagnation = loss, 0
        else:
            self.stagnation += 1
        if self.stagnation > self.config.plateau_patience:
            self.factor *= self.config.plateau_factor
            self.stagnation = 0

    def state_dict(self) -> dict[str, Any]:
        """What is remembered; the rest follows from step and time."""
        return {
            "factor": self.factor,
            "stagnation": self.stagnation,
            "best": self.best,
            "lowered": self.lowered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.factor, self.stagnation = state["factor"], state["stagnation"]
        self.best = state["best"]
        self.lowered = state.get("lowered", 1.0)  # older files never went back
