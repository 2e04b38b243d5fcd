"""The names of :mod:`mlff_distiller.students` under which scripts know its evaluation."""

from mlff_distiller.constants import DEFAULT_SKIN
from mlff_distiller.students.portable import PortablePotential
from mlff_distiller.students.potential import (
    Potential,
    dtype_name,
    native_is_built,
    open_potential,
    resolve_backend,
)

__all__ = [
    "DEFAULT_SKIN",
    "PortablePotential",
    "Potential",
    "dtype_name",
    "native_is_built",
    "open_potential",
    "resolve_backend",
]
