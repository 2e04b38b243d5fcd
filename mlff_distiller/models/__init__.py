"""The student: PaiNN plus reference energies and optional short-range repulsion."""

from mlff_distiller.models.painn import PaiNN
from mlff_distiller.models.student_model import StudentForceField

__all__ = ["PaiNN", "StudentForceField"]
