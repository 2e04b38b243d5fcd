"""Teachers: the slow, accurate potentials that label structures."""

from mlff_distiller.teachers.base import CalculatorTeacher, Teacher
from mlff_distiller.teachers.label import LabelReport, label_dataset
from mlff_distiller.teachers.registry import (
    as_teacher,
    get_teacher,
    list_teachers,
    teacher_calculator,
)

__all__ = [
    "CalculatorTeacher",
    "LabelReport",
    "Teacher",
    "as_teacher",
    "get_teacher",
    "label_dataset",
    "list_teachers",
    "teacher_calculator",
]
