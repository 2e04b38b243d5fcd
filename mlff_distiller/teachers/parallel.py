"""A teacher in several processes."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from mlff_distiller.data.structure import Structure, check_structure, without_labels
from mlff_distiller.energy_model import Labels
from mlff_distiller.teachers.base import Teacher
from mlff_distiller.teachers.registry import get_teacher
from mlff_distiller.workers import run_all

#: Name, device and options (JSON) of a teacher, for other processes.
Recipe = tuple[str, str, str]


class ParallelTeacher(Teacher):
    """Labels by worker processes of one thread each; everything else by this process.

    Args:
        name: see :func:`get_teacher`.
        device: ``cpu`` or ``cuda``; on a GPU this process labels alone.
        workers: processes; 0 for as many as there are CPUs.
        options: of the teacher, plain types.

    Raises:
        InputError: see :func:`get_teacher`.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        workers: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._recipe = (name, device, json.dumps(options or {}, sort_keys=True))
        self._one = teacher_of(*self._recipe)
        self.workers = workers if device == "cpu" else 1
        self.name, self.versions, self.elements = (
            self._one.name,
            self._one.versions,
            self._one.elements,
        )
        self.calculator = self._one.calculator

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise InputError for what the teacher cannot label."""
        self._one.check(structures)

    def compute(self, structure: Structure) -> Labels:
        """Labels of one structure, in this process."""
        return self._one.compute(structure)

    def label(self, structures: Sequence[Structure]) -> list[Structure]:
        """Labels by the workers, in order. Raises InputError."""
        self.check(structures)
        bare = [without_labels(s) for s in structures]
        # One structure is not worth a start of processes.
        workers = self.workers if len(bare) > 1 else 1
        if workers == 1:
            return self._one.label(structures)
        found = run_all(_label, [(self._recipe, s) for s in bare], workers)
        return [
            check_structure(s.with_labels(*labels), f"{s.formula} labelled by {self.name}")
            for s, labels in zip(structures, found, strict=True)
        ]


@functools.lru_cache(maxsize=1)
def teacher_of(name: str, device: str, options: str) -> Teacher:
    """Of a recipe; loaded once for all rounds."""
    return get_teacher(name, device=device, **json.loads(options))


def _label(argument: tuple[Recipe, Structure]) -> Labels:
    recipe, structure = argument
    return teacher_of(*recipe).compute(structure)
