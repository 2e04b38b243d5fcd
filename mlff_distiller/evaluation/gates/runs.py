"""Dynamics of the student for the gates: one run each, plain, so that a pool can do them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import find_mic

from mlff_distiller.data import Structure
from mlff_distiller.data.bonds import find_bonds
from mlff_distiller.dynamics import MDSettings, RunStoppedError, Trajectory, engine_of, run_md
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.purpose import PurposeConfig, ensembles, phase_of
from mlff_distiller.sampling.geometry import supercell, unlabelled
from mlff_distiller.units import GPA_IN_BAR

#: Å. Periodic systems are repeated to this width: two usual cutoffs.
_WIDTH = 10.0
#: A bond of a molecule is broken at this multiple of the covalent radii, fused at the other.
_BROKEN = 1.8
#: A cell that grew to this multiple of its volume is a gas.
_EVAPORATED = 2.0


@dataclass(frozen=True)
class Run:
    """One run."""

    model: str
    engine: str
    structure: Structure
    settings: MDSettings


def run_of(context: Context, structure: Structure, settings: MDSettings) -> Run:
    """A run of the student that is measured."""
    return Run(str(context.path), engine_of(context.engine), structure, settings)


@dataclass
class Outcome:
    """What became of it."""

    trajectory: Trajectory | None
    died: str = ""
    """Why it is no physics; empty where all is well."""
    until: int | None = None
    """The record at which that was found; None: the last of all."""

    @property
    def picoseconds(self) -> float:
        """How far it came."""
        if self.trajectory is None:
            return 0.0
        last = -1 if self.until is None else self.until
        return float(self.trajectory.time[last]) / 1000.0

    def summary(self) -> dict[str, Any]:
        """Plain JSON with about 200 records."""
        t = self.trajectory
        if t is None:
            return {"picoseconds": 0.0, "died": self.died, "times": [], "temperatures": []}
        end = None if self.until is None else self.until + 1
        few = slice(None, end, max(1, len(t.time) // 200))
        return {
            "picoseconds": self.picoseconds,
            "died": self.died,
            "times": (t.time[few] / 1000.0).round(4).tolist(),
            "temperatures": t.temperature[few].round(1).tolist(),
        }


def carry_out(run: Run) -> Outcome:
    """Run it and look whether it stayed physics.

    Beyond what every run is watched for (fused atoms, heat, energy): molecules whose bonds break,
    and cells that evaporate.
    """
    try:
        trajectory = run_md(run.engine, run.model, run.structure, run.settings)
    except RunStoppedError as stopped:
        return Outcome(stopped.trajectory, str(stopped).partition(";")[0])
    except InputError as error:
        return Outcome(None, str(error).partition(";")[0])
    record, why = _broken(run.structure, trajectory) or _evaporated(trajectory) or (None, "")
    return Outcome(trajectory, why, record)


def summarised(run: Run) -> dict[str, Any]:
    """Of :func:`carry_out`, without its frames: what should travel between processes."""
    return carry_out(run).summary()


def in_box(structure: Structure) -> Structure:
    """The structure, repeated where its cell is narrow; without labels and momenta."""
    return supercell(unlabelled(structure), [0, 0, 0], cutoff=0.5 * _WIDTH)


def settings_for(
    purpose: PurposeConfig,
    structure: Structure,
    *,
    temperature: float,
    time: float,
    records: int,
    seed: int,
    ensemble: str | None = None,
    pressure: float | None = None,
    warmup: float = 0.0,
) -> MDSettings:
    """Settings of a run.

    Args:
        purpose: gives time step, pressures and ensembles.
        structure: says which ensembles it can be run in.
        temperature: K.
        time: ps.
        records: about as many.
        seed: chooses among the ensembles and the two pressures, too.
        ensemble: None: that of the purpose.
        pressure: GPa; None: that of the purpose.
        warmup: ps.
    """
    steps = max(records, round(time * 1000.0 / purpose.timestep))
    interval = max(1, steps // records)
    own = ensembles(purpose, structure)
    if pressure is None:
        pressure = purpose.pressure[(seed // len(own)) % 2]
    return MDSettings(
        ensemble=ensemble or own[seed % len(own)],
        steps=steps // interval * interval,
        temperature=temperature,
        pressure=pressure * GPA_IN_BAR,
        timestep=purpose.timestep,
        interval=interval,
        warmup_steps=round(warmup * 1000.0 / purpose.timestep),
        threads=1,
        new_velocities=True,
        seed=seed + 1,
    )


def temperatures_of(purpose: PurposeConfig) -> list[float]:
    """Lowest, half of the highest where that lies between, highest, K."""
    low, high = purpose.temperature
    return sorted({low, max(low, high / 2.0), high})


def _broken(structure: Structure, trajectory: Trajectory) -> tuple[int, str] | None:
    """When a bond of a molecule, or of molecules in a liquid, broke, and which."""
    if phase_of(structure) not in ("molecule", "liquid"):
        return None
    bonds = find_bonds(structure)
    index = np.stack([bonds.first, bonds.second], axis=1)[bonds.first < bonds.second]
    if not len(index):
        return None
    limits = _BROKEN * covalent_radii[structure.atomic_numbers[index]].sum(axis=1)
    for record, frame in enumerate(trajectory.frames):
        atoms = frame.to_atoms(labels=False)
        vectors = frame.positions[index[:, 1]] - frame.positions[index[:, 0]]
        lengths = find_mic(vectors, atoms.cell, atoms.pbc)[1]
        worst = int(np.argmax(lengths / limits))
        if lengths[worst] > limits[worst]:
            names = [f"{chemical_symbols[structure.atomic_numbers[k]]}{k}" for k in index[worst]]
            bond = f"{names[0]}–{names[1]} broke ({lengths[worst]:.2f} Å)"
            return record, f"step {frame.info['step']}: the bond {bond}"
    return None


def _evaporated(trajectory: Trajectory) -> tuple[int, str] | None:
    """When the cell became that of a gas."""
    growth = trajectory.volume / max(float(trajectory.volume[0]), 1e-9)
    large = np.flatnonzero(growth > _EVAPORATED)
    if not len(large) or trajectory.volume[0] <= 0:
        return None
    record = int(large[0])
    step = trajectory.frames[record].info["step"]
    return record, f"step {step}: the cell grew to {growth[record]:.1f} times its volume"
