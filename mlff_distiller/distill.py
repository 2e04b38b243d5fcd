"""The names of :mod:`mlff_distiller.pipeline` and its stations under which scripts know them."""

from mlff_distiller.pipeline.distill import run_distillation
from mlff_distiller.sampling import starting_structures
from mlff_distiller.students.export import export_run
from mlff_distiller.training.history import read_history

__all__ = ["export_run", "read_history", "run_distillation", "starting_structures"]
