"""Runs on the teacher's surface: who corrects, how often, and what it cost (docs/multistep.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.settings import MDSettings, check_multiple
from mlff_distiller.dynamics.state import RunState
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.multistep.correction import Correction
from mlff_distiller.multistep.interval import (
    MOST,
    choose_every,
    fastest_period,
    resonance_warning,
)
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.teachers import as_teacher

if TYPE_CHECKING:
    from mlff_distiller.dynamics.record import Begin

# Steps of a run for which twelve calls more are nothing.
_WORTH_A_CHECK = 1000


@dataclass(frozen=True)
class CorrectionCost:
    """What the teacher cost in one run."""

    teacher: str
    every: int
    outer_step: float
    """fs."""
    calls: int
    """Of the teacher, the first included."""
    seconds_per_call: float
    share: float
    """Of the wall time of the run that passed in the teacher."""

    @classmethod
    def of(
        cls,
        correction: Correction,
        before: tuple[int, float],
        every: int,
        timestep: float,
        seconds: float,
    ) -> CorrectionCost:
        """Of a run whose clock says ``seconds``; ``before`` it, the calls and their seconds."""
        spent = correction.seconds - before[1]
        per_call = correction.seconds / correction.calls if correction.calls else 0.0
        return cls(
            teacher=correction.teacher.name,
            every=every,
            outer_step=every * timestep,
            calls=correction.calls,
            seconds_per_call=per_call,
            share=min(1.0, spent / seconds) if seconds > 0 else 0.0,
        )

    def summary(self, seconds_per_step: float) -> dict[str, Any]:
        """Plain numbers; the teacher alone would need a call in each step."""
        return {
            "teacher": self.teacher,
            "every": self.every,
            "outer_step_fs": self.outer_step,
            "teacher_calls": self.calls,
            "seconds_per_teacher_call": self.seconds_per_call,
            "teacher_share": self.share,
            "speedup_over_teacher": self.seconds_per_call / max(seconds_per_step, 1e-12),
        }


def teacher_of(
    settings: MDSettings, teacher: EnergyModel | Calculator | None, resume: RunState | None
) -> tuple[MDSettings, EnergyModel | None]:
    """Who corrects, None for nobody, and settings that name it.

    Args:
        settings: of the run.
        teacher: in place of the name in ``settings``.
        resume: the state to go on from, with its number of steps between two corrections.

    Raises:
        InputError: a teacher that cannot be had, or options that need one and have none.
    """
    s = settings
    if teacher is None and s.correct_with is None:
        _same_surface(resume, None)
        if s.every or s.keep_labels is not None:
            what = "--keep-labels" if s.keep_labels is not None else "--every"
            raise InputError(
                f"{what} needs a teacher, got none; add e.g. --correct-with sevennet-0"
            )
        return s, None
    chosen = s.correct_with if teacher is None else teacher
    assert chosen is not None
    found = as_teacher(chosen, device=s.teacher_device)
    _same_surface(resume, found.name)
    every = s.every
    if not every and resume is not None:
        every = int(resume.extra.get("every", 0))
    return replace(s, correct_with=found.name, every=every), found


def _same_surface(resume: RunState | None, teacher: str | None) -> None:
    """Raise InputError where a run would go on, in the same file, on another surface."""
    if resume is None or (was := resume.extra.get("teacher")) == teacher:
        return
    before, now = (
        f"--correct-with {name}" if name else "no --correct-with" for name in (was, teacher)
    )
    raise InputError(
        f"the run to go on with had {before}, got {now}: its energies would be of another surface; "
        "name the same, or start a new run from its last frame"
    )


@contextmanager
def plan(
    model: Path,
    structure: Structure,
    settings: MDSettings,
    begin: Begin,
    teacher: EnergyModel | None,
) -> Iterator[tuple[MDSettings, Begin]]:
    """Settings with the number of steps between two corrections, and a start that knows them.

    Args:
        model: exported student.
        structure: the start, without momenta.
        settings: of :func:`teacher_of`.
        begin: says what is decided, and where the run stands.
        teacher: of :func:`teacher_of`.

    Raises:
        InputError: elements or periodicity that the teacher lacks, an interval that is no multiple
            of the outer step, a file for labels that belongs to another teacher.
    """
    s = settings
    if teacher is None:
        yield s, begin
        return
    correction = Correction(teacher, ExportedModel(model, dtype=s.dtype, threads=s.threads))
    correction.check(structure)
    if not teacher.conservative:
        begin.say(
            f"warning: {teacher.name} predicts forces that are not the gradient of its energy: "
            "there is no surface that the run samples, and its energy is not conserved"
        )
    correction.student.compute(structure)  # two atoms at one point are what is said, no period
    period = fastest_period(correction.student, structure)
    if not s.every:
        s = replace(s, every=_chosen(model, correction, structure, s, begin, period))
    _check_interval(s)
    hydrogen = bool((structure.atomic_numbers == 1).any()) and s.hydrogen_mass is None
    line = resonance_warning(s.every, s.timestep, period, hydrogen)
    if line is not None:
        begin.say(line)
    with ExitStack() as stack:
        if s.keep_labels is not None:
            from mlff_distiller.multistep.labels import KeptLabels

            run = f"{structure.formula} {s.ensemble} {s.temperature:g} {s.pressure:g} {s.seed}"
            kept = KeptLabels(s.keep_labels, teacher, s.temperature, run, resumed=begin.resumed)
            correction.keep = stack.enter_context(closing(kept)).append
        yield s, replace(begin, correction=correction)


def _chosen(
    model: Path,
    correction: Correction,
    structure: Structure,
    settings: MDSettings,
    begin: Begin,
    period: float,
) -> int:
    """Inner steps in an outer step, a divisor of the interval; says which and why."""
    from mlff_distiller.dynamics.ase_engine import student_at_work

    s = settings
    atoms = student_at_work(model, structure, s)
    atoms.set_velocities(begin.velocities / units.fs)
    # Calls and labels of this trial are not those of the run.
    trial = Correction(correction.teacher, correction.student)
    found = choose_every(
        atoms,
        trial,
        s.timestep,
        temperature=s.temperature,
        period=period,
        allowed=[n for n in range(1, MOST + 1) if s.interval % n == 0],
        thermostat=s.ensemble != "nve",
        check=s.steps > _WORTH_A_CHECK,
        rng=np.random.default_rng(s.seed),
    )
    begin.say(f"correcting {found.text}")
    return found.every


def _check_interval(settings: MDSettings) -> None:
    s = settings
    for name, value in (("--interval", s.interval), ("--steps", s.steps)):
        check_multiple(name, value, "--every", s.every)
