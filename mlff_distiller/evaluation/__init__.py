"""[8] How good a student is: against its teacher, in every engine, over time; and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlff_distiller.evaluation.metrics import accuracy, predict

__all__ = ["accuracy", "predict"]


def __getattr__(name: str) -> object:
    # Settings of this room are read by config.py, which the network needs, which these two need.
    if name in __all__:
        from mlff_distiller.evaluation import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
