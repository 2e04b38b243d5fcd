"""Teacher minus student at one configuration: the outer force of a multiple-time-step integrator.

Every engine asks the same object, so that what a call costs, what is kept of it and what an error
says is the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mlff_distiller.data import Structure, check_structure
from mlff_distiller.data.structure import without_labels
from mlff_distiller.energy_model import EnergyModel, Labels
from mlff_distiller.errors import InputError

#: In ``info`` of frames of corrected runs, eV.
STUDENT_ENERGY = "student_ev"
# Å; positions that went through another program's units and back are still the same.
_SAME = 1e-10


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
        keep: told each configuration with the teacher's labels, e.g. ``append`` of
            :class:`~mlff_distiller.multistep.labels.KeptLabels`.

    Attributes:
        calls: of the teacher so far.
        seconds: that they took, in all.
        step: where the run stands; an engine sets it before it asks. Errors name it, and kept
            labels have it in ``info``.
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
        self.step: int | None = None
        self.keep = keep
        self._last: tuple[Structure, Difference] | None = None

    def check(self, structure: Structure) -> None:
        """Raise InputError where teacher or student cannot compute it, before the first step."""
        self.teacher.check([structure])
        self.student.check([structure])

    def compute(self, structure: Structure, student: Labels | None = None) -> Difference:
        """The difference at ``structure``; of the configuration computed last without a call.

        Args:
            structure: its labels and momenta do not matter.
            student: what the student says, where an engine knows it already. The difference is
                then from the very forces of the inner steps, to the last bit.

        Raises:
            InputError: the teacher or the student fails, or gives what is not finite.
        """
        if self._last is not None and _same(self._last[0], structure):
            return self._last[1]
        asked = without_labels(replace(structure, momenta=None))
        labelled = self._label(asked)
        assert labelled.energy is not None
        assert labelled.forces is not None
        teacher = Labels(labelled.energy, labelled.forces, labelled.stress)
        if student is None:
            student = self.student.compute(asked)
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
        if self.keep is not None:
            self.keep(labelled)
        self._last = asked, difference
        return difference

    def labelled(self, frame: Structure) -> Structure:
        """``frame`` with the teacher's labels, and the student's energy in ``info``.

        Costs a call of the teacher unless it is the configuration computed last.
        """
        found = self.compute(frame)
        labelled = frame.with_labels(*found.teacher)
        labelled.info[STUDENT_ENERGY] = found.student.energy
        return labelled

    def _label(self, structure: Structure) -> Structure:
        """With the teacher's labels, checked; counts and times the call."""
        begin = time.perf_counter()
        try:
            labels = self.teacher.follow(structure)
            labelled = structure.with_labels(*labels)
            if self.step is not None:
                labelled.info["step"] = self.step
            return check_structure(labelled, f"{structure.formula} labelled by {self.teacher.name}")
        except InputError as error:
            where = "" if self.step is None else f" at step {self.step}"
            reason = str(error).rpartition(";")[0] or str(error)
            raise InputError(
                f"the teacher failed{where}: {reason}; if atoms came too close, correct more often "
                "(a smaller --every), shorten the time step or run cooler"
            ) from error
        finally:
            self.seconds += time.perf_counter() - begin
            self.calls += 1


def _same(one: Structure, other: Structure) -> bool:
    return (
        np.array_equal(one.atomic_numbers, other.atomic_numbers)
        and bool((np.abs(one.positions - other.positions) < _SAME).all())
        and bool((np.abs(one.cell - other.cell) < _SAME).all())
    )
