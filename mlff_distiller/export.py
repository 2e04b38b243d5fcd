"""The names of :mod:`mlff_distiller.students` under which scripts know the exported file."""

from mlff_distiller.students.export import export_student
from mlff_distiller.students.file import FORMAT_VERSION, load_exported, read_metadata
from mlff_distiller.students.student import load_student

__all__ = ["FORMAT_VERSION", "export_student", "load_exported", "load_student", "read_metadata"]
