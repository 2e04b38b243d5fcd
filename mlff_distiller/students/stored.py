"""What a student is made of, apart from the class that computes with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mlff_distiller.config import ModelConfig


@dataclass(frozen=True)
class StoredStudent:
    """A student as files hold it."""

    config: ModelConfig
    elements: list[int]
    """Atomic numbers, in the order of the embedding."""
    dtype: str
    """``float32`` or ``float64``; reference energies are float64 in either case."""
    state: dict[str, Tensor]
    """``StudentForceField.state_dict()``, on the CPU."""
