"""Teacher minus student at one configuration: the outer force of a multiple-time-step integrator.

Every engine asks the same object, so that what a call costs, what is kept of it and what an error
says is the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlff_distiller.data import Structure, check_structure
from mlff_distiller.energy_model import EnergyModel, Labels
from mlff_distiller.errors import InputError


class Difference(NamedTuple):
    """Teacher minus student at one configuration."""

    energy: float
    """eV."""
    forces: np.ndarray
    """(n, 3), eV/Å."""
    stress: np.ndarray | None
    """(3, 3), eV/Å^3, ASE's sign; None where one of the two has none or there is no volume."""
    teacher: Labels
    student: Labels


class Correction:
    """What the teacher says less what the student says.

    Args:
        teacher: the surface to sample; see :func:`~mlff_distiller.teachers.registry.get_teacher`.
        student: the one that gives the inner forces,
            see :class:`~mlff_distiller.students.energy_model.ExportedModel`.
        keep: told each configuration with the teacher's labels, e.g. ``append`` of a writer.

    Attributes:
        calls: of the teacher so far.
        seconds: that they took, in all.
    """

    def __init__(
        self,
        teacher: EnergyModel,
        student: EnergyModel,
        *,
        keep: Callable[[Structure], None] | None = None,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.calls, self.seconds = 0, 0.0
        self._keep = keep
        self._last: tuple[bytes, Difference] | None = None

    def check(self, structure: Structure) -> None:
        """Raise InputError where teacher or student cannot compute it, before the first step."""
        self.teacher.check([structure])
        self.student.check([structure])

    def compute(self, structure: Structure) -> Difference:
        """The difference at ``structure``; of the configuration computed last without a call.

        Raises:
            InputError: the teacher or the student fails, or gives what is not finite.
        """
        key = structure.positions.tobytes() + np.ascontiguousarray(structure.cell).tobytes()
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        begin = time.perf_counter()
        teacher = self.teacher.compute(structure)
        self.seconds += time.perf_counter() - begin
        self.calls += 1
        labelled = structure.with_labels(*teacher)
        where = f"{structure.formula} labelled by {self.teacher.name}"
        check_structure(labelled, where)
        student = self.student.compute(structure)
        difference = Difference(
            teacher.energy - student.energy,
            teacher.forces - student.forces,
            None
            if teacher.stress is None or student.stress is None
            else teacher.stress - student.stress,
            teacher,
            student,
        )
        if not (np.isfinite(difference.energy) and np.isfinite(difference.forces).all()):
            raise InputError(
                f"{self.student.name} gives no finite energy and forces for {structure.formula}; "
                "atoms are too close: shorten the time step or the outer step"
            )
        if self._keep is not None:
            self._keep(labelled)
        self._last = key, difference
        return difference
