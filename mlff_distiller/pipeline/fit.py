"""[5] Labelled data -> ``training/``: checkpoints and history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlff_distiller.config import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station
from mlff_distiller.training import train
from mlff_distiller.training.resume import settings_of_the_result

TRAINING = "training"
BEST = f"{TRAINING}/best.ckpt"
HISTORY = f"{TRAINING}/history.csv"


@dataclass(frozen=True)
class Inputs:
    """What the weights depend on."""

    data: Hashed[Path]
    model: ModelConfig
    training: TrainingConfig
    start_from: Hashed[Path] | None = None
    """Weights to begin with; None for new ones."""
    splits: DataConfig = field(default_factory=DataConfig, metadata=EXECUTION)
    """How the stored splits of ``data`` were drawn, for the record."""
    resume: bool = field(default=True, metadata=EXECUTION)
    """Go on with an earlier training of the same data, network and loss."""

    def identity(self) -> dict[str, Any]:
        """Without threads, device and the like."""
        training = settings_of_the_result(self.training)
        given = {"data": self.data, "model": self.model, "training": training}
        return given if self.start_from is None else {**given, "start_from": self.start_from}


@dataclass(frozen=True)
class Result:
    """See :class:`mlff_distiller.training.TrainingResult`."""

    training: dict[str, Any]


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Train, or go on where an earlier run stopped."""
    data = replace(inputs.splits, path=str(inputs.data.value))
    config = TrainConfig(data=data, model=inputs.model, training=inputs.training)
    result = train(
        config,
        output / TRAINING,
        resume="auto" if inputs.resume else False,
        start_from=None if inputs.start_from is None else inputs.start_from.value,
    )
    return Result({**result})


STATION = Station("train", work, Result, [BEST, HISTORY])
