"""What a run starts from: data, device and a student with sensible first weights."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mlff_distiller.config import TrainConfig, TrainingConfig, to_dict
from mlff_distiller.data import HDF5Dataset, Structure, collate, elements_of, ensure_splits
from mlff_distiller.data.coverage import closest_pair, coverage
from mlff_distiller.data.survey import charge_and_spin
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.student import load_student
from mlff_distiller.training import fine_tune
from mlff_distiller.training.reference import (
    fit_reference_energies,
    isolated_energies,
    mean_binding,
    repulsion_energies,
    scale_readout,
    undetermined_elements,
)
from mlff_distiller.training.resume import difference

# Forces of atoms that are closer have no meaning and no finite slope, Å.
_OVERLAP = 0.01
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
        notes: lines for the user about the data.
    """

    train: list[Structure]
    valid: list[Structure]
    elements: list[int]
    metadata: dict[str, Any]
    notes: list[str] = field(default_factory=list)


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
        InputError: no file named, no labels, an empty training split, elements in the validation
            split that the training split lacks, or atoms on top of each other.
    """
    if config.data.path is None:
        raise InputError("training needs labelled data, got none; set data.path to an HDF5 file")
    path = Path(config.data.path)
    c = config.data
    HDF5Dataset(path)  # complain about missing labels before splits are drawn
    ensure_splits(path, c.valid_fraction, c.test_fraction, c.split_seed)
    dataset = HDF5Dataset(path)
    notes: list[str] = []
    train = _labelled(dataset, "train", notes)
    if not train:
        raise InputError(
            f"{path} has an empty training split of {len(dataset)} structures; add structures"
        )
    valid = _labelled(dataset, "valid", notes) or train
    elements = elements_of(train)
    for split, frames in (("validation", valid), ("test", dataset.subset("test"))):
        unknown = unknown_elements(elements_of(frames), elements)
        if not unknown:
            continue
        found = f"the {split} split holds {symbols(unknown, ', ')}, which the training split lacks"
        remedy = f"draw the splits anew: mlff-distiller convert {path} new.h5 --new-splits"
        if split == "validation":
            raise InputError(f"{path}: {found}; {remedy}")
        notes.append(f"warning: {found}, so the student will not know it; {remedy}")
    if states := charge_and_spin(train):
        notes.append(f"warning: {states}")
    open_ones = undetermined_elements(train)
    if open_ones and config.training.reference_energies != "none":
        notes.append(
            f"warning: the compositions in {path} do not tell the energies of {symbols(open_ones, ', ')} "
            "apart: energies of other compositions and of lone atoms will be arbitrary; add frames "
            "of lone atoms with info config_type=IsolatedAtom"
        )
    _refuse_overlaps(dataset, valid is not train, cutoff)
    covered = coverage(train, cutoff)
    metadata = {
        "teacher": dataset.teacher,
        "data_hash": dataset.hash(),
        "min_distance": min(covered["closest_pairs"].values(), default=None),
        "coverage": covered,
        "num_train": len(train),
        "num_valid": len(valid) if valid is not train else 0,
    }
    return TrainingData(train, valid, elements, metadata, notes)


def _labelled(dataset: HDF5Dataset, split: str, notes: list[str]) -> list[Structure]:
    frames = dataset.subset(split)
    kept = [s for s in frames if s.energy is not None or s.forces is not None]
    if len(kept) < len(frames):
        notes.append(
            f"{len(frames) - len(kept)} of {len(frames)} structures in the {split} split have no "
            "labels and are not used"
        )
    return kept


def _refuse_overlaps(dataset: HDF5Dataset, with_valid: bool, cutoff: float) -> None:
    for split in ("train", "valid") if with_valid else ("train",):
        frames = dataset.subset(split)
        if closest_pair(frames, cutoff) > _OVERLAP:
            continue
        for i, frame in zip(dataset.splits[split], frames, strict=True):
            distance = closest_pair([frame], cutoff)
            if distance <= _OVERLAP:
                raise InputError(
                    f"{dataset.path}, structure {int(i)} has two atoms at one point (images "
                    f"included, {distance:.2g} Å apart); leave it out with 'mlff-distiller convert "
                    f"{dataset.path} clean.h5 --drop-bad'"
                )


def first_student(
    config: TrainConfig, data: TrainingData, start_from: str | Path | None
) -> StudentForceField:
    """The student whose weights training starts with: a new one, or that of a file.

    Raises:
        InputError: a file that holds another network, a student that lacks an element, or
            reference energies to refit without energies.
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
    student.uncertainty = None  # of the weights that are about to change
    student.train().to(getattr(torch, config.training.precision))
    data.metadata["started_from"] = fine_tune.origin(student, start_from)
    refit = config.training.reference_energies == "refit"
    data.notes.extend(fine_tune.doubts(student, data.elements, data.train, kept=not refit))
    if refit:
        fine_tune.refit_reference_energies(student, data.train)
    return student


def new_student(config: TrainConfig, data: TrainingData) -> StudentForceField:
    """A student with seeded weights, fitted reference energies and a scaled readout, on the CPU."""
    dtype = getattr(torch, config.training.precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        student = StudentForceField(config.model, data.elements).to(dtype)
    binding = 0.0
    if config.training.reference_energies != "none":
        repulsion = repulsion_energies(student, data.train)
        isolated = isolated_energies(data.train)
        energies = fit_reference_energies(data.train, data.elements, repulsion, isolated)
        student.set_reference_energies(energies.tolist())
        if isolated:  # the network has the binding energy to learn, and starts at its mean
            binding = mean_binding(data.train, data.elements, energies, repulsion)
    stride = -(-len(data.train) // _SCALE_SAMPLE)
    scale_readout(student, collate(data.train[::stride], student.cutoff, dtype), binding)
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
