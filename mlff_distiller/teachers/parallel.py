"""A teacher in several processes."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from mlff_distiller.cpus import usable_cpus
from mlff_distiller.data.structure import Structure, check_structure, without_labels
from mlff_distiller.energy_model import Labels
from mlff_distiller.teachers.ahead import Ahead
from mlff_distiller.teachers.base import Teacher
from mlff_distiller.teachers.registry import get_teacher
from mlff_distiller.workers import result_of, start

#: Name, device and options (JSON) of a teacher, for other processes.
Recipe = tuple[str, str, str]

# Announced structures that wait at each worker, so that none is idle while the last of a batch
# takes long.
_AHEAD = 2


class ParallelTeacher(Teacher):
    """Labels by worker processes of one thread each; everything else by this process.

    Structures that were announced are worked on ahead of being asked for.

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
        self._ahead = Ahead(self._begin)

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise InputError for what the teacher cannot label."""
        self._one.check(structures)

    def compute(self, structure: Structure) -> Labels:
        """Labels of one structure, in this process."""
        return self._one.compute(structure)

    def announce(self, structures: Sequence[Structure]) -> None:
        """These will be asked for, in this order."""
        for s, future in self._ahead:
            future.cancel()
            self._ahead.forget([s])
        self._ahead.announce(structures)

    def label(self, structures: Sequence[Structure]) -> list[Structure]:
        """Labels by the workers, in order. Raises InputError."""
        self.check(structures)
        # One structure is not worth a start of processes.
        alone = len(structures) == 1 and structures[0] not in self._ahead
        if self._workers == 1 or alone:
            return self._one.label(structures)
        futures = [self._ahead.future(s) for s in structures]
        self._ahead.fill(len(structures) + _AHEAD * self._workers)
        try:
            found = [result_of(future) for future in futures]
        except BaseException:
            self._drop_failed()
            raise
        self._ahead.forget(structures)
        return [
            check_structure(s.with_labels(*labels), f"{s.formula} labelled by {self.name}")
            for s, labels in zip(structures, found, strict=True)
        ]

    @property
    def _workers(self) -> int:
        return self.workers or usable_cpus()

    def _begin(self, structure: Structure) -> Future[Labels]:
        return start(_label, (self._recipe, without_labels(structure)), self._workers)

    def _drop_failed(self) -> None:
        """Whoever gets an error asks for the structures of the batch one by one."""
        for s, future in self._ahead:
            if future.cancelled() or (future.done() and future.exception() is not None):
                self._ahead.forget([s])


@functools.lru_cache(maxsize=1)
def teacher_of(name: str, device: str, options: str) -> Teacher:
    """Of a recipe; loaded once for all rounds."""
    return get_teacher(name, device=device, **json.loads(options))


def _label(argument: tuple[Recipe, Structure]) -> Labels:
    recipe, structure = argument
    return teacher_of(*recipe).compute(structure)
