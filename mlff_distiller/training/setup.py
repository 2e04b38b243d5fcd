"""What a run starts from: data, device and a student with sensible first weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlff_distiller.config import TrainConfig, TrainingConfig, to_dict
from mlff_distiller.data import collate
from mlff_distiller.data.batch import NeighborMemory
from mlff_distiller.data.frames import DataFiles, Frames, open_files
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.training import fine_tune
from mlff_distiller.training.reference import scale_readout
from mlff_distiller.training.resume import difference
from mlff_distiller.training.soap import SOAP
from mlff_distiller.training.statistics import Statistics, gather

# Structures from which the first scale of the readout is estimated.
_SCALE_SAMPLE = 8
# Larger learning rates leave little of the weights that training starts from.
_GENTLE_RATE = 5e-3


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
        files: that ``train`` and ``valid`` are read from, with their weights.
        statistics: what one pass over them found.
    """

    train: Frames
    valid: Frames
    elements: list[int]
    metadata: dict[str, Any]
    notes: list[str]
    files: DataFiles
    statistics: Statistics


def load_data(
    config: TrainConfig, cutoff: float, statistics: Statistics | None = None
) -> TrainingData:
    """Open the labelled files and their splits, drawn and stored where there are none.

    Args:
        config: files, splits and memory.
        cutoff: Å.
        statistics: of another process that has gone through the same files.

    Raises:
        InputError: no file named, a file missing or without labels, an empty training split,
            elements in the validation split that the training split lacks, or atoms on top of each
            other.
    """
    c = config.data
    files = open_files(c.files, c.memory * 2**30, c.valid_fraction, c.test_fraction, c.split_seed)
    files.neighbors = NeighborMemory(c.neighbor_memory * 2**30 if files.in_memory else 0.0)
    train, valid = files.frames("train"), files.frames("valid")
    for data, count in zip(files.datasets, train.counts, strict=True):
        if not count and (len(files.datasets) == 1 or not len(data.splits.get("valid", []))):
            raise InputError(
                f"{data.path} has an empty training split of {len(data)} structures; add structures"
            )
    found = statistics or gather(files, cutoff, config.model)
    notes = [
        f"{missing} of {count} structures in the {split} split have no labels and are not used"
        for split, (missing, count) in found.unlabelled.items()
        if missing
    ]
    elements = sorted(found.elements["train"])
    _check_elements(files, found, notes)
    if text := found.states.warning():
        notes.append(f"warning: {text}")
    notes += _teachers(files)
    notes += _shared(files, found)
    if config.training.reference_energies != "none":
        notes += _doubts(files, found)
    for overlap in found.overlaps.values():
        raise InputError(
            f"{overlap.path}, structure {overlap.structure} has two atoms at one point (images "
            f"included, {overlap.distance:.2g} Å apart); leave it out with 'mlff-distiller convert "
            f"{overlap.path} clean.h5 --drop-bad'"
        )
    if not train.in_memory:
        notes.append(
            f"frames are read in blocks while training goes on: more than data.memory = {c.memory:g} "
            "GiB"
        )
    covered = found.coverage.result()
    metadata = {
        "teacher": _teacher(files),
        "data_hash": files.combined_hash(found.hashes),
        "min_distance": min(covered["closest_pairs"].values(), default=None),
        "coverage": covered,
        "num_train": len(train),
        "num_valid": len(valid),
    }
    return TrainingData(
        train, valid if len(valid) else train, elements, metadata, notes, files, found
    )


def _check_elements(files: DataFiles, found: Statistics, notes: list[str]) -> None:
    for split, name in (("valid", "validation"), ("test", "test")):
        unknown = unknown_elements(sorted(found.elements[split]), sorted(found.elements["train"]))
        if not unknown:
            continue
        text = f"the {name} split holds {symbols(unknown, ', ')}, which the training split lacks"
        first = files.datasets[0].path
        remedy = f"draw the splits anew: mlff-distiller convert {first} new.h5 --new-splits"
        if split == "valid":
            raise InputError(f"{files.name}: {text}; {remedy}")
        notes.append(f"warning: {text}, so the student will not know it; {remedy}")


def _shared(files: DataFiles, found: Statistics) -> list[str]:
    """A warning if frames that shall measure the student are trained on."""
    if (s := found.shared) is None:
        return []
    others = sum(len(files.frames(split)) for split in ("valid", "test"))
    sources = " ".join(str(data.path) for data in files.datasets)
    return [
        f"warning: {s.number} of the {others} frames of the validation and test splits are trained "
        f"on as well, first {s.path}, structure {s.structure} (like {s.trained_path}, structure "
        f"{s.trained_structure}): errors will look too small; leave them out with 'mlff-distiller "
        f"convert {sources} -o clean.h5 --drop-bad'"
    ]


def _teacher(files: DataFiles) -> str | None:
    names = dict.fromkeys(data.teacher for data in files.datasets)
    return " + ".join(name or "unknown" for name in names) if any(names) else None


def _teachers(files: DataFiles) -> list[str]:
    """A warning if the files were labelled by several teachers."""
    if len({data.teacher for data in files.datasets}) < 2:
        return []
    found = ", ".join(f"{data.path}: {data.teacher or 'unknown'}" for data in files.datasets)
    return [
        f"warning: labels of several teachers, which need not agree in their level ({found}); the "
        "student learns their mean: label all files with one of them, or leave files out"
    ]


def _doubts(files: DataFiles, found: Statistics) -> list[str]:
    """Warnings about what reference energies cannot mean."""
    open_ones = found.fit.undetermined()
    if not open_ones:
        return []
    return [
        f"warning: the compositions in {files.name} do not tell the energies of "
        f"{symbols(open_ones, ', ')} apart: energies of other compositions and of lone atoms will be "
        "arbitrary; add frames of lone atoms with info config_type=IsolatedAtom"
    ]


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
    student = fine_tune.first_weights(start_from, config.training.precision)
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
    data.metadata["started_from"] = fine_tune.origin(student, start_from)
    if (rate := config.training.learning_rate) > _GENTLE_RATE:
        data.notes.append(
            f"training.learning_rate {rate:g} is one for new students: a smaller one, such as 0.001, "
            "keeps more of what this one knows"
        )
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
        fit, isolated = data.statistics.fit, data.statistics.isolated
        energies = fit.solve(data.elements, isolated)
        student.set_reference_energies(energies.tolist())
        if isolated:  # the network has the binding energy to learn, and starts at its mean
            binding = fit.binding(data.elements, energies)
    stride = -(-len(data.train) // _SCALE_SAMPLE)
    scale_readout(student, collate(data.train[::stride], student.cutoff, dtype), binding)
    return student


def new_optimizer(groups: list[dict[str, Any]], settings: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser of the configuration, for groups of parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "soap":
        return SOAP(groups, lr=rate, weight_decay=decay)
    # Fused: one pass over all weights, a tenth of the time on a CPU.
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)


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
