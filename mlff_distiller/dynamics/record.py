"""Records of a run, as the engines make them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import units

from mlff_distiller.data import Structure
from mlff_distiller.data.structure import without_labels
from mlff_distiller.dynamics.corrected import CorrectionCost
from mlff_distiller.dynamics.freedom import kinetic_energy, masses_of, temperature_of
from mlff_distiller.dynamics.settings import MDSettings
from mlff_distiller.dynamics.state import RunState
from mlff_distiller.dynamics.trajectory import RunInterrupted, Trajectory
from mlff_distiller.dynamics.watch import RunStoppedError, Watch
from mlff_distiller.errors import InputError
from mlff_distiller.multistep.correction import Correction

_BAR = 1e5 * units.Pascal


@dataclass(frozen=True)
class Begin:
    """Where a run begins, and who looks after it."""

    velocities: np.ndarray
    """(n, 3), Å/fs."""
    watch: Watch
    step: int = 0
    time: float = 0.0
    """fs."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Of the same engine and ensemble, to go on exactly; else empty."""
    say: Callable[[str], None] = lambda text: None
    resumed: bool = False
    correction: Correction | None = None
    """Teacher minus student, an impulse every ``settings.every`` steps; None: the student alone."""


class Recorder:
    """Collects the records of one run, watches them, and makes the trajectory of them."""

    def __init__(
        self, engine: str, structure: Structure, settings: MDSettings, begin: Begin
    ) -> None:
        self._engine, self._structure, self._settings = engine, structure, settings
        self._begin = begin
        self._rows: list[tuple[float, ...]] = []
        self._frames: list[Structure] = []
        self._masses = masses_of(structure)
        self._extra: dict[str, Any] = {}
        self._start = time.perf_counter()
        self._paused = 0.0
        self.warnings = begin.watch.warnings
        self._called = (0, 0.0)

    def start(self) -> None:
        """The clock starts here."""
        self._start = time.perf_counter()
        if self._begin.correction is not None:
            self._called = self._begin.correction.calls, self._begin.correction.seconds

    def add(self, frame: Structure, **extra: Any) -> None:
        """One record.

        Args:
            frame: with momenta and energy.
            extra: what this engine needs to go on exactly, see :class:`RunState`.

        Raises:
            RunStoppedError: see :class:`Watch`.
        """
        frame = replace(frame, masses=self._structure.masses)
        if self._begin.correction is not None:
            frame = self._begin.correction.labelled(frame)
        began = time.perf_counter()
        assert frame.energy is not None
        assert frame.momenta is not None
        step = self._begin.step + len(self._rows) * self._settings.interval
        elapsed = (
            self._begin.time + len(self._rows) * self._settings.interval * self._settings.timestep
        )
        kinetic = kinetic_energy(frame.momenta, self._masses)
        temperature = temperature_of(frame.momenta, frame)
        volume = abs(float(np.linalg.det(frame.cell))) if frame.pbc.all() else 0.0
        pressure = np.nan
        if volume > 0 and frame.stress is not None:
            virial = -float(np.trace(frame.stress)) / 3
            pressure = (virial + 2 * kinetic / (3 * volume)) / _BAR
        info = {"step": step, "time_fs": elapsed, "temperature_k": temperature}
        potential = frame.energy
        frame = replace(frame, info={**frame.info, **info})
        self._rows.append((potential, potential + kinetic, temperature, volume, pressure, elapsed))
        self._frames.append(frame)
        self._extra = extra
        self._begin.watch.check(step, frame, temperature)
        self._paused += time.perf_counter() - began

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C in here becomes :class:`RunInterrupted` once there is a record to keep. A run that
        the watch stopped, or that the engine gave up between two records, gets its trajectory."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._rows:
                raise
            raise RunInterrupted(self.trajectory()) from None
        except RunStoppedError as stopped:
            stopped.trajectory = self.trajectory()
            raise
        except InputError as error:  # atoms were lost or at one point: what came before is kept
            if not self._rows:
                raise
            dead = RunStoppedError(f"after step {self._frames[-1].info['step']}: {error}")
            dead.trajectory = self.trajectory()
            raise dead from None

    def trajectory(self, seconds: float | None = None, steps: int | None = None) -> Trajectory:
        """What was recorded. ``seconds`` are those of ``steps``; None: of the clock, and those
        between the first and the last record."""
        if seconds is None:
            seconds = time.perf_counter() - self._start - self._paused
        s = self._settings
        columns = np.array(self._rows).T
        steps = steps or max(1, (len(self._rows) - 1) * s.interval)
        last = self._frames[-1]
        cost, extra = None, self._extra
        if self._begin.correction is not None:
            extra = {**extra, "every": s.every, "teacher": self._begin.correction.teacher.name}
            cost = CorrectionCost.of(
                self._begin.correction, self._called, s.every, s.timestep, seconds
            )
        return Trajectory(
            engine=self._engine,
            ensemble=s.ensemble,
            num_atoms=len(self._structure),
            time=columns[5],
            potential_energy=columns[0],
            total_energy=columns[1],
            temperature=columns[2],
            volume=columns[3],
            seconds_per_step=seconds / steps,
            frames=self._frames,
            pressure=None if np.isnan(columns[4]).any() else columns[4],
            warnings=self.warnings,
            uncertainty=np.array(self._begin.watch.largest) if self._begin.watch.largest else None,
            state=RunState(
                without_labels(last),
                self._engine,
                s.ensemble,
                last.info["step"],
                last.info["time_fs"],
                extra,
            ),
            correction=cost,
        )
