"""Frames from Langevin dynamics at a ladder of temperatures, with any ASE calculator."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from mlff_distiller.data.structure import Structure
from mlff_distiller.sampling.dynamics import (
    check_pressure,
    has_pressure,
    make_dynamics,
    run_steps,
    take_frame,
)
from mlff_distiller.sampling.geometry import random_strain, strained
from mlff_distiller.sampling.partial import PartialFrames

if TYPE_CHECKING:  # its sections are those of the kinds of sampling
    from mlff_distiller.config import SamplingConfig

# Frames of one segment are relatives. Short segments let a split take whole ones on each side.
SEGMENT_FRAMES = 10
_RESTARTS = 5


def run_md(
    base: Sequence[Structure],
    calculator: Calculator,
    config: SamplingConfig,
    *,
    rejected: Counter[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: PartialFrames | None = None,
) -> list[Structure]:
    """``config.num_md`` frames, shared out evenly over the temperatures.

    Each temperature is one trajectory in segments of at most 10 frames. A segment draws new
    velocities (and, when periodic, a new strain of up to half of ``config.max_strain``), runs
    ``md_warmup`` steps that are thrown away, and then keeps a frame every ``md_interval`` steps.
    A segment that runs away starts again from ``base``.

    With ``config.md_pressures`` each temperature and pressure is one trajectory, whose volume goes
    on from one segment to the next. Structures without three periodic directions or with held atoms
    keep their cell.

    Args:
        base: starting structures; segments take them in turn.
        calculator: any ASE calculator.
        config: num_md, md_temperatures, md_pressures, md_timestep, md_interval, md_warmup,
            min_distance, max_force, max_strain, seed.
        rejected: counts frames that were left out, by reason.
        progress: called with (frames, num_md).
        partial: where finished segments are kept and looked for.

    Returns:
        frames whose ``info`` names source, parent, temperature (K), pressure (GPa) and segment.

    Raises:
        InputError: a pressure, and no structure or no calculator that can have one.
    """
    rejected = Counter() if rejected is None else rejected
    if config.num_md and config.md_pressures:
        check_pressure(base, calculator, "sampling.md_pressures to []")
    pressures: Sequence[float | None] = config.md_pressures or [None]
    conditions = list(itertools.product(config.md_temperatures, pressures))
    frames: list[Structure] = []
    for t, (temperature, pressure) in enumerate(conditions):
        share = config.num_md // len(conditions) + (t < config.num_md % len(conditions))
        ladder = _Trajectory(
            base, calculator, config, t, float(temperature), pressure, rejected, partial
        )
        for frame in ladder.frames(share):
            frames.append(frame)
            if progress is not None:
                progress(len(frames), config.num_md)
    return frames


class _Trajectory:
    """One temperature, and one pressure or a fixed volume."""

    def __init__(
        self,
        base: Sequence[Structure],
        calculator: Calculator,
        config: SamplingConfig,
        index: int,
        temperature: float,
        pressure: float | None,
        rejected: Counter[str],
        partial: PartialFrames | None,
    ) -> None:
        self.base, self.calculator, self.config = base, calculator, config
        self.index, self.temperature, self.partial = index, temperature, partial
        self.pressure = pressure
        self.total_rejected, self.rejected = rejected, Counter[str]()  # of all, of this segment
        self.last: dict[int, Structure] = {}
        self.segment = 0
        self.failures = 0

    def frames(self, number: int):  # type: ignore[no-untyped-def]
        """Generate ``number`` frames, fewer when five segments in a row run away."""
        found = 0
        segments = -(-number // SEGMENT_FRAMES)
        while found < number and self.failures < _RESTARTS:
            # Even segments: 12 frames make 6 + 6, not 10 + 2.
            wanted = -(-(number - found) // max(segments - self.segment, 1))
            wanted = min(wanted, SEGMENT_FRAMES)
            before = found
            kept = self.partial.get(self.index, self.segment) if self.partial else None
            self.rejected = Counter(kept.rejected if kept else {})
            made = []
            for frame in self._repeat(kept.frames, wanted) if kept else self._segment(wanted):
                found += 1
                made.append(frame)
                yield frame
            if self.partial is not None and kept is None:
                self.partial.put(self.index, self.segment, made, self.rejected)
            self.total_rejected.update(self.rejected)
            self.failures = 0 if found > before else self.failures + 1
            self.segment += 1

    def _parent(self) -> int:
        return (self.index + self.segment) % len(self.base)

    def _repeat(self, frames: Sequence[Structure], number: int):  # type: ignore[no-untyped-def]
        """A segment that was finished earlier, with what it leaves to the next."""
        yield from frames
        if len(frames) < number:
            self.last.pop(self._parent(), None)
        else:
            self.last[self._parent()] = frames[-1]

    def _segment(self, number: int):  # type: ignore[no-untyped-def]
        config, segment = self.config, self.segment
        parent = self._parent()
        rng = np.random.default_rng([config.seed, 2, self.index, segment])
        atoms = self._start(parent, rng)
        dynamics = make_dynamics(
            atoms,
            self.config.md_timestep,
            self.temperature,
            self.pressure if has_pressure(self.base[parent]) else None,
            rng,
        )
        alive = run_steps(dynamics, config.md_warmup, self.rejected)
        for _ in range(number):
            alive = alive and run_steps(dynamics, config.md_interval, self.rejected)
            frame = self._take(atoms, parent) if alive else None
            if frame is None:
                self.last.pop(parent, None)
                return
            self.last[parent] = frame
            yield frame

    def _start(self, parent: int, rng: np.random.Generator) -> Atoms:
        origin = self.base[parent]
        here = self.last.get(parent, origin)
        if origin.pbc.all() and (self.pressure is None or not has_pressure(origin)):
            fractional = np.linalg.solve(here.cell.T, here.positions.T).T
            here = replace(here, positions=fractional @ origin.cell, cell=origin.cell)
            strains = self.config.max_strain > 0 and origin.fixed is None
            if strains and self.segment > 0:
                here = strained(here, random_strain(rng, self.config.max_strain / 2))
        atoms = here.to_atoms(labels=False, dynamics=True)
        # A minimum gives half of its kinetic energy away; later segments are warm already.
        factor = 1.0 if parent in self.last else 2.0
        MaxwellBoltzmannDistribution(atoms, temperature_K=factor * self.temperature, rng=rng)
        if len(atoms) > 1 and here.fixed is None:
            Stationary(atoms)
        self.calculator.reset()
        atoms.calc = self.calculator
        return atoms

    def _take(self, atoms: Atoms, parent: int) -> Structure | None:
        origin = self.base[parent]
        frame = take_frame(
            atoms,
            origin,
            self.temperature,
            min_distance=self.config.min_distance,
            max_force=self.config.max_force,
            rejected=self.rejected,
        )
        if frame is None:
            return None
        info: dict[str, Any] = {
            "source": "md",
            "parent": parent,
            "temperature": self.temperature,
            "member": f"{self.index}-{self.segment}",
        }
        if self.pressure is not None and has_pressure(origin):
            info["pressure"] = float(self.pressure)
        return replace(frame, info={**origin.info, **info})
