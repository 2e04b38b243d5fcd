"""[2] [3] Frames -> ``labels.h5``: the teacher's labels, and the splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlff_distiller.config import DataConfig, DistillConfig
from mlff_distiller.data import HDF5Dataset, ensure_splits
from mlff_distiller.pipeline.contacts import Asked, asked_about
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station
from mlff_distiller.teachers import label_dataset
from mlff_distiller.teachers.parallel import ParallelTeacher

LABELS = "labels.h5"


@dataclass(frozen=True)
class Inputs:
    """What labels and splits depend on."""

    frames: Hashed[Path]
    teacher: str
    options: dict[str, Any]
    max_force: float
    """eV/Å; frames with a larger force are left out."""
    splits: DataConfig | None
    """None: of a round, whose splits follow from why a frame was chosen."""
    seed: int
    """Of the sampling, remembered in the file."""
    device: str = field(default="cpu", metadata=EXECUTION)
    batch_size: int = field(default=8, metadata=EXECUTION)
    workers: int = field(default=0, metadata=EXECUTION)


def inputs_of(config: DistillConfig, frames: Hashed[Path], splits: DataConfig | None) -> Inputs:
    """Labels of ``frames`` by the teacher of a run."""
    return Inputs(
        frames=frames,
        teacher=config.teacher.name,
        options=config.teacher.options,
        max_force=config.sampling.max_force,
        splits=splits,
        seed=config.sampling.seed,
        device=config.teacher.device,
        batch_size=config.teacher.batch_size,
        workers=config.teacher.workers,
    )


@dataclass(frozen=True)
class Result:
    """What is in the file."""

    num_frames: dict[str, int]
    """Split -> number of structures."""
    rejected: dict[str, int]
    """Reason -> number of frames."""
    num_labelled: int
    seconds_per_structure: float
    data_hash: str
    """Of structures and labels."""
    splits_hash: str
    asked: list[Asked] = field(default_factory=list)


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Label the frames; what an earlier run of the same labels has done is kept."""
    path, c = output / LABELS, inputs.splits
    teacher = ParallelTeacher(inputs.teacher, inputs.device, inputs.workers, inputs.options)
    frames = list(HDF5Dataset(inputs.frames.value, require_labels=False))
    report = label_dataset(
        frames,
        teacher,
        path,
        batch_size=inputs.batch_size,
        max_force=inputs.max_force,
        seed=inputs.seed,
        on_mismatch="restart",
    )
    say(str(report))
    splits = {}
    if c is not None:
        splits = ensure_splits(path, c.valid_fraction, c.test_fraction, c.split_seed, anew=True)
    digest = hashlib.sha256()
    for indices in splits.values():
        digest.update(indices.tobytes() + b";")
    return Result(
        num_frames={name: len(indices) for name, indices in splits.items()},
        rejected=report.rejected,
        num_labelled=report.num_labelled,
        seconds_per_structure=report.seconds_per_structure,
        data_hash=HDF5Dataset(path).hash(),
        splits_hash=digest.hexdigest(),
        asked=asked_about(frames, {i for i, _ in report.refused}),
    )


STATION = Station("label", work, Result, [LABELS])
