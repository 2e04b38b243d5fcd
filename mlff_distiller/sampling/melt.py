"""Melt and quench: a crystal is heated until it flows, held there, and cooled to a glass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.dynamics import (
    check_pressure,
    has_pressure,
    make_dynamics,
    run_steps,
    take_frame,
)
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.rattle import CLOSE_CONTACT
from mlff_distiller.sampling.task import Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 10
_CLOSE = "atoms_too_close"


@dataclass(frozen=True)
class MeltConfig(Settings, path="sampling.melt"):
    """Melt and quench with the teacher: heating, liquid and glass of periodic structures."""

    number: int = setting(0, "Frames, spread evenly over the runs.", least=0)
    runs: int = setting(1, "Runs; they take the starting structures in turn.", least=1)
    melt_temperature: float = setting(3000.0, "Of the liquid.", unit="K", above=0)
    final_temperature: float = setting(300.0, "Before and after.", unit="K", above=0)
    heat_steps: int = setting(300, "Steps in which the temperature rises.", least=0)
    hold_steps: int = setting(700, "Steps at the melt temperature.", least=1)
    quench_steps: int = setting(1000, "Steps in which the temperature falls.", least=0)
    pressure: float | None = setting(
        None, "Of runs that let the volume go; by default it is fixed.", unit="GPa"
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def temperature(self, progress: float) -> float:
        """K after the share ``progress`` of all steps."""
        total = self.heat_steps + self.hold_steps + self.quench_steps
        done = progress * total
        span = self.melt_temperature - self.final_temperature
        if done < self.heat_steps:
            return self.final_temperature + span * done / self.heat_steps
        left = total - done
        if left < self.quench_steps:
            return self.final_temperature + span * left / self.quench_steps
        return self.melt_temperature


def melt_frames(task: Task, config: MeltConfig, timestep: float) -> list[Structure]:
    """``config.number`` frames, fewer where a run ends early.

    A run is a chain of legs. Each has one temperature and ends with a frame; the next one goes on
    from there with new velocities, so that a leg is all that an interruption costs. ``info`` holds
    ``kind`` (``heat``, ``liquid`` or ``quench``), ``temperature`` (K) and ``step``.

    Args:
        task: with a calculator.
        config: the schedule.
        timestep: fs.

    Raises:
        InputError: no starting structure is periodic in three directions, or a pressure is asked
            for and impossible.
    """
    if not config.number or task.calculator is None:
        return []
    parents = [i for i, s in enumerate(task.base) if s.pbc.all()]
    if not parents:
        raise InputError(
            "sampling.melt needs a starting structure with three periodic directions, got none; set "
            "sampling.melt.number to 0"
        )
    if config.pressure is not None:
        check_pressure(task.base, task.calculator, "sampling.melt.pressure to null")
    frames = []
    runs = min(config.runs, config.number)
    for run in range(runs):
        parent = parents[run % len(parents)]
        legs = config.number // runs + (run < config.number % runs)
        here = task.base[parent]
        for leg in range(legs):

            def make(
                rejected: Counter[str],
                here: Structure = here,
                parent: int = parent,
                run: int = run,
                leg: int = leg,
                legs: int = legs,
            ) -> Iterator[Structure]:
                frame = _leg(task, config, timestep, here, parent, (run, leg, legs), rejected)
                return iter([] if frame is None else [frame])

            made = task.kept(f"melt-{run}", leg, make)
            if not made:
                break
            frames += made
            here = made[-1]
    return [_shown(s) for s in frames if not s.info[_CLOSE]]


def _leg(
    task: Task,
    config: MeltConfig,
    timestep: float,
    here: Structure,
    parent: int,
    place: tuple[int, int, int],
    rejected: Counter[str],
) -> Structure | None:
    run, leg, legs = place
    origin = task.base[parent]
    rng = task.rng(config.seed, _STREAM, run, leg)
    total = config.heat_steps + config.hold_steps + config.quench_steps
    begin, end = total * leg // legs, total * (leg + 1) // legs
    middle = (leg + 0.5) / legs
    temperature = config.temperature(middle)
    atoms = here.to_atoms(labels=False, dynamics=True)
    # A minimum gives half of its kinetic energy away.
    first = 2.0 if leg == 0 else 1.0
    MaxwellBoltzmannDistribution(atoms, temperature_K=first * temperature, rng=rng)
    if len(atoms) > 1 and origin.fixed is None:
        Stationary(atoms)
    task.attach(atoms)
    pressure = config.pressure if has_pressure(origin) else None
    dynamics = make_dynamics(atoms, timestep, temperature, pressure, rng)
    if not run_steps(dynamics, max(1, end - begin), rejected):
        return None
    frame = take_frame(
        atoms,
        origin,
        temperature,
        min_distance=0.0,
        max_force=np.inf,
        rejected=rejected,
    )
    if frame is None:
        return None
    # A close pair in a hot liquid is no reason to end the run: the next leg goes on from it.
    close = closest_ratio(frame) < task.min_distance
    if close:
        rejected[CLOSE_CONTACT] += 1
    step = middle * total
    kind = "heat" if step < config.heat_steps else "liquid"
    kind = "quench" if total - step < config.quench_steps else kind
    info = {"kind": kind, "temperature": round(temperature, 2), "step": end, _CLOSE: close}
    return task.frame(frame, "melt", parent, run, **info)


def _shown(frame: Structure) -> Structure:
    return replace(frame, info={k: v for k, v in frame.info.items() if k != _CLOSE})
