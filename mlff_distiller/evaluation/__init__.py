"""[8] How good a student is: against its teacher, in every engine, over time; and the report."""

from mlff_distiller.evaluation.metrics import accuracy, predict

__all__ = ["accuracy", "predict"]
