"""What a run starts from: data, device and a student with sensible first weights."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mlff_distiller.config import TrainConfig, TrainingConfig, to_dict
from mlff_distiller.data import HDF5Dataset, Structure, collate, elements_of, ensure_splits
from mlff_distiller.elements import symbols
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.student import load_student
from mlff_distiller.training.coverage import coverage
from mlff_distiller.training.reference import (
    fit_reference_energies,
    repulsion_energies,
    scale_readout,
)
from mlff_distiller.training.resume import difference

# Structures from which the first scale of the readout is estimated.
_SCALE_SAMPLE = 8


@dataclass(frozen=True)
class TrainingData:
    """Labelled structures of a run.

    Attributes:
        train: trained on.
        valid: measured after each epoch.
        elements: atomic numbers that occur in ``train``.
        metadata: teacher, data_hash, min_distance (Å), coverage and numbers of frames, for the
            checkpoint.
    """

    train: list[Structure]
    valid: list[Structure]
    elements: list[int]
    metadata: dict[str, Any]


def make_fabric(config: TrainingConfig) -> Fabric:
    """Fabric for the device and the number of processes. Raises InputError without the device."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InputError(
            "device is cuda, but this torch finds no CUDA device; set training.device to cpu"
        )
    on_gpu = available and config.device != "cpu"
    most = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if config.devices > most:
        raise InputError(
            f"devices must be 1..{most} ({'GPUs' if on_gpu else 'cores'} of this machine), got "
            f"{config.devices}; set training.devices"
        )
    accelerator = "cuda" if available and config.device != "cpu" else "cpu"
    strategy = "ddp_spawn" if config.devices > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=config.devices, strategy=strategy)


def load_data(config: TrainConfig, cutoff: float) -> TrainingData:
    """Read the labelled file and its splits, drawn and stored if there are none.

    Raises:
        InputError: no file named, no labels, an empty training split, or elements in the
            validation split that the training split lacks.
    """
    if config.data.path is None:
        raise InputError("training needs labelled data, got none; set data.path to an HDF5 file")
    path = Path(config.data.path)
    c = config.data
    HDF5Dataset(path)  # complain about missing labels before splits are drawn
    ensure_splits(path, c.valid_fraction, c.test_fraction, c.split_seed)
    dataset = HDF5Dataset(path)
    train = dataset.subset("train")
    if not train:
        raise InputError(
            f"{path} has an empty training split of {len(dataset)} structures; add structures"
        )
    valid = dataset.subset("valid") or train
    elements = elements_of(train)
    unknown = sorted(set(elements_of(valid)) - set(elements))
    if unknown:
        raise InputError(
            f"{path}: the validation split holds {symbols(unknown, ', ')}, which the training split lacks; add "
            "structures with it, or draw the splits with another data.split_seed"
        )
    covered = coverage(train, cutoff)
    metadata = {
        "teacher": dataset.teacher,
        "data_hash": dataset.hash(),
        "min_distance": min(covered["closest_pairs"].values(), default=None),
        "coverage": covered,
        "num_train": len(train),
        "num_valid": len(valid) if valid is not train else 0,
    }
    return TrainingData(train, valid, elements, metadata)


def first_student(
    config: TrainConfig, data: TrainingData, start_from: str | Path | None
) -> StudentForceField:
    """The student whose weights training starts with: a new one, or that of a file.

    Raises:
        InputError: a file that holds another network, or a student that lacks an element.
    """
    if start_from is None:
        return new_student(config, data)
    student = load_student(start_from)
    if student.config != config.model:
        found = difference(to_dict(student.config), to_dict(config.model))
        raise InputError(
            f"{start_from} holds another network ({found}); give the model section that it was "
            "trained with, or start without --from"
        )
    unknown = sorted(set(data.elements) - set(student.elements))
    if unknown:
        raise InputError(
            f"{start_from} knows {symbols(student.elements)}, the data holds {symbols(unknown)}; "
            "leave these structures out, or start without --from"
        )
    return student.train().to(getattr(torch, config.training.precision))


def new_student(config: TrainConfig, data: TrainingData) -> StudentForceField:
    """A student with seeded weights, fitted reference energies and a scaled readout, on the CPU."""
    dtype = getattr(torch, config.training.precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        student = StudentForceField(config.model, data.elements).to(dtype)
    if config.training.reference_energies == "least-squares":
        repulsion = repulsion_energies(student, data.train)
        energies = fit_reference_energies(data.train, data.elements, repulsion)
        student.set_reference_energies(energies.tolist())
    stride = -(-len(data.train) // _SCALE_SAMPLE)
    scale_readout(student, collate(data.train[::stride], student.cutoff, dtype))
    return student


class AveragedStudent:
    """Exponential moving average of a student's weights.

    Averaging over the last steps takes the noise of small batches out of the weights that are
    validated and exported. Early on the window is shorter, so that the first weights are forgotten.

    Args:
        student: followed by the average, which starts at its weights.
        decay: share of the old average kept in each step; 0 follows the student exactly.
    """

    def __init__(self, student: StudentForceField, decay: float) -> None:
        self.student = copy.deepcopy(student).requires_grad_(False)
        self._decay = decay
        self._mine: list[torch.Tensor] = list(self.student.parameters())
        self._theirs: list[torch.Tensor] = list(student.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the optimiser's step number ``step``, counted from 0."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1.0 - decay)
