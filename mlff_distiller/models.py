"""The names of :mod:`mlff_distiller.students` under which scripts know the network."""

from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.student import StudentForceField

__all__ = ["PaiNN", "StudentForceField"]
