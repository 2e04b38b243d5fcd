"""[5] Losses, metrics, checkpoints and the training loop."""

from mlff_distiller.training.hooks import Hooks
from mlff_distiller.training.metrics import evaluate
from mlff_distiller.training.reference import fit_reference_energies
from mlff_distiller.training.trainer import TrainingResult, train

__all__ = ["Hooks", "TrainingResult", "evaluate", "fit_reference_energies", "train"]
