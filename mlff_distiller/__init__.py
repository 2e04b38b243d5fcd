"""Distil a slow, accurate potential into a small PaiNN student and run it in production MD.

The names below are imported on first use, so that ``import mlff_distiller`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlff_distiller.errors import InputError

if TYPE_CHECKING:
    from mlff_distiller.calculator import StudentCalculator
    from mlff_distiller.students.student import StudentForceField
    from mlff_distiller.teachers import teacher_calculator

__version__ = "0.1.0"

_LAZY = {
    "StudentCalculator": "mlff_distiller.calculator",
    "StudentForceField": "mlff_distiller.students.student",
    "teacher_calculator": "mlff_distiller.teachers",
}

__all__ = [
    "InputError",
    "StudentCalculator",
    "StudentForceField",
    "__version__",
    "teacher_calculator",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
