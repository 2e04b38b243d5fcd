"""Going on from a student: which weights move and how fast, and the energies of other labels.

Fine-tuning on few labels of another method keeps what the old ones taught: early layers are frozen
or move slowly (Howard and Ruder 2018, arXiv:1801.06146), and the different zero of energy of the
new method goes into the reference energies instead of the network.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.checksums import of_state
from mlff_distiller.config import TrainingConfig
from mlff_distiller.data import Structure, collate
from mlff_distiller.elements import symbols
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.load import read_training_metadata
from mlff_distiller.students.student import load_student
from mlff_distiller.training.reference import ReferenceFit, note_isolated

# eV/atom; a step between old and new labels that composition explains and that is larger than
# this would bend the network before it is learned.
_STEP = 0.1
# Structures that tell whether there is such a step.
_SAMPLE = 64
_BATCH = 8


def parameter_groups(
    student: StudentForceField, settings: TrainingConfig
) -> tuple[list[dict[str, Any]], list[float]]:
    """Groups for the optimiser, and the factor of the learning rate of each.

    Parameters that ``training.frozen`` names no longer require gradients and are in no group.

    Args:
        student: its parameters are frozen in place.
        settings: ``frozen`` and ``learning_rate_factors``: patterns of names as of a shell, with or
            without ``painn.`` before them; the name of a module stands for all that it holds. Of
            several factors for one parameter the last counts.

    Raises:
        InputError: a pattern that fits no name, or nothing left to train.
    """
    names = dict(student.named_parameters())
    frozen = {n for p in settings.frozen for n in _matching(p, names, "training.frozen")}
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in settings.learning_rate_factors.items():
        matching = _matching(pattern, names, "training.learning_rate_factors")
        factors.update(dict.fromkeys(matching, factor))
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in names.items():
        parameter.requires_grad_(name not in frozen)
        if name not in frozen:
            groups.setdefault(factors[name], []).append(parameter)
    if not groups:
        raise InputError(
            f"training.frozen must leave something to train, got {settings.frozen}, which names all "
            f"of {_listed(names)}; freeze less"
        )
    return [{"params": members} for members in groups.values()], list(groups)


class Untaught:
    """Embeddings of elements that the training frames lack.

    They have no gradients, and weight decay shall not change what the student knows of them.

    Args:
        student: whose weights are kept.
        elements: atomic numbers of the training frames.
    """

    def __init__(self, student: StudentForceField, elements: Sequence[int]) -> None:
        self._table = student.painn.embedding.weight
        rows = [i for i, z in enumerate(student.elements) if z not in elements]
        self._rows = torch.tensor(rows, dtype=torch.long, device=self._table.device)
        self._kept = self._table.detach()[self._rows].clone()

    @torch.no_grad()
    def restore(self) -> None:
        """After a step of the optimiser."""
        if len(self._rows):
            self._table[self._rows] = self._kept


def _matching(pattern: str, names: Mapping[str, Tensor], key: str) -> list[str]:
    found = [
        name
        for name in names
        for form in (name, name.removeprefix("painn."))
        if fnmatch.fnmatchcase(form, pattern) or fnmatch.fnmatchcase(form, pattern + ".*")
    ]
    if not found:
        raise InputError(
            f"{key} must name parameters of the network, got {pattern!r}, which fits none of "
            f"{_listed(names)}; correct the pattern"
        )
    return found


def _listed(names: Mapping[str, Tensor]) -> str:
    return ", ".join(name.removeprefix("painn.") for name in names)


def refit_reference_energies(student: StudentForceField, structures: Sequence[Structure]) -> None:
    """Move the reference energies by what composition explains of labels minus student.

    The network and with it all energy differences at equal composition stay as they are. Where
    isolated atoms are marked, the student has their labelled energies afterwards. Elements that
    the structures lack keep their energies.

    Args:
        student: changed in place.
        structures: those without an energy do not count.

    Raises:
        InputError: no structure has an energy.
    """
    energies = student.reference_energies.cpu() + _shift(student, structures)
    student.set_reference_energies(energies.tolist())


def _shift(student: StudentForceField, structures: Sequence[Structure]) -> Tensor:
    """What the reference energies lack, (n_elements,) float64, eV."""
    fit, isolated = ReferenceFit(), dict[int, float]()
    for start in range(0, len(structures), _BATCH):
        frames = structures[start : start + _BATCH]
        batch = collate(frames, student.cutoff, student.painn.embedding.weight.dtype)
        batch = batch.to(student.reference_energies.device)
        found = student.compute(batch, forces=False, stress=False)["energy"].tolist()
        for s, energy in zip(frames, found, strict=True):
            if s.energy is not None:
                fit.add(s.atomic_numbers, s.energy - energy)
                note_isolated(isolated, s.with_labels(s.energy - energy))
    if not fit.num_energies:
        raise InputError(
            "refitting reference energies needs structures with an energy, got none; label them, or "
            "leave training.reference_energies out to keep those of the student"
        )
    return torch.from_numpy(fit.solve(student.elements, isolated))


def doubts(
    student: StudentForceField,
    elements: Sequence[int],
    structures: Sequence[Structure],
    *,
    kept: bool,
) -> list[str]:
    """What a user should know before a student is trained on structures other than its own.

    Args:
        student: as it starts.
        elements: atomic numbers in the training split.
        structures: of the training split.
        kept: whether the reference energies are those of the student.
    """
    stride = -(-len(structures) // _SAMPLE)
    sample = structures[::stride]
    notes = []
    if lost := [z for z in student.elements if z not in elements]:
        notes.append(
            f"warning: the student knows {symbols(lost, ', ')}, which the training frames lack: what "
            "it says of them will drift; train with some of the old frames as well"
        )
    if kept and any(s.energy is not None for s in sample):
        shift = dict(zip(student.elements, _shift(student, sample).tolist(), strict=True))
        steps = [np.mean([shift[int(z)] for z in s.atomic_numbers]) for s in sample]
        if abs(step := float(np.mean(steps))) > _STEP:
            notes.append(
                f"warning: the labels lie {step:+.3g} eV/atom from the student; if they have another "
                "zero of energy, set training.reference_energies to refit (--refit-energies)"
            )
    return notes


def first_weights(path: str | Path, precision: str) -> StudentForceField:
    """The student of a run directory, checkpoint or exported file, as a training begins with it."""
    student = load_student(path)
    student.uncertainty = None  # of the weights that are about to change
    return student.train().to(getattr(torch, precision))


def origin(student: StudentForceField, path: str | Path) -> dict[str, Any]:
    """Where the first weights of a run came from, for the checkpoints; plain JSON types."""
    metadata = read_training_metadata(path)
    return {
        "path": str(path),
        "state": of_state(student.stored().state),
        "teacher": metadata.get("teacher"),
        "data_hash": metadata.get("data_hash"),
        **({"imported_from": metadata["imported_from"]} if "imported_from" in metadata else {}),
    }
