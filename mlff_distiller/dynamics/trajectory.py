"""What a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import units
from ase.cell import Cell

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.corrected import CorrectionCost
from mlff_distiller.dynamics.freedom import masses_of
from mlff_distiller.dynamics.state import RunState


@dataclass
class Trajectory:
    """What a run left behind. Arrays have one entry per record, the first at time zero."""

    engine: str
    ensemble: str
    num_atoms: int
    time: np.ndarray
    """(k,), fs."""
    potential_energy: np.ndarray
    """(k,), eV."""
    total_energy: np.ndarray
    """(k,), eV."""
    temperature: np.ndarray
    """(k,), K."""
    volume: np.ndarray
    """(k,), Å^3; 0 without a periodic cell."""
    seconds_per_step: float
    """Wall time of the recorded part divided by its steps."""
    frames: list[Structure] = field(default_factory=list)
    """At the records: positions, momenta, energy, forces and, where there is a volume, stress of
    the student; ``info`` has ``step``, ``time_fs`` and ``temperature_k``. Of corrected runs these
    are the teacher's, as are all energies here, and ``info`` has ``student_ev`` too."""
    pressure: np.ndarray | None = None
    """(k,), bar, kinetic part included; None for systems that are not periodic in all directions."""
    warnings: list[str] = field(default_factory=list)
    """Where the run left what training saw, and what the engine warned of; each kind once."""
    uncertainty: np.ndarray | None = None
    """(k,), eV/Å, the largest of an atom; None where the model has no such data."""
    state: RunState | None = None
    """The end in full precision, for ``resume`` of :func:`run_md`."""
    correction: CorrectionCost | None = None
    """What the teacher cost; None of plain runs."""

    @property
    def microseconds_per_atom_step(self) -> float:
        """Cost in µs per atom and step."""
        return 1e6 * self.seconds_per_step / self.num_atoms

    def drift(self) -> float:
        """Slope of the total energy by a linear fit, meV/atom/ps; NaN with fewer than 3 records."""
        if len(self.time) < 3:
            return float("nan")
        slope = np.polyfit(self.time, self.total_energy, 1)[0]  # eV/fs
        return float(slope * 1e6 / self.num_atoms)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON and tables; means are over the second half of the run."""
        half = slice(len(self.time) // 2, None)
        result = {
            "engine": self.engine,
            "ensemble": self.ensemble,
            "num_atoms": self.num_atoms,
            "picoseconds": float(self.time[-1]) / 1000.0,
            "mean_temperature_k": float(self.temperature[half].mean()),
            "microseconds_per_atom_step": self.microseconds_per_atom_step,
            "seconds_per_step": self.seconds_per_step,
        }
        if self.ensemble == "nve" and not np.isnan(self.drift()):
            result["drift_mev_per_atom_per_ps"] = self.drift()
        if self.volume[-1] > 0:
            result["mean_volume_ang3_per_atom"] = float(self.volume[half].mean()) / self.num_atoms
        if self.pressure is not None:
            result["mean_pressure_bar"] = float(self.pressure[half].mean())
        if self.volume[-1] > 0 and self.frames:
            cells = np.mean(
                [np.asarray(f.cell) for f in self.frames[len(self.frames) // 2 :]], axis=0
            )
            result["mean_cell_lengths_ang"] = Cell(cells).lengths().tolist()
            result["mean_cell_angles_deg"] = Cell(cells).angles().tolist()
            mass = float(masses_of(self.frames[0]).sum())
            density = mass * units._amu * 1e27 / float(self.volume[half].mean())
            result["mean_density_g_per_cm3"] = density
        if self.uncertainty is not None:
            result["largest_uncertainty_ev_per_ang"] = float(np.nanmax(self.uncertainty))
        if self.correction is not None:
            result.update(self.correction.summary(self.seconds_per_step))
        if self.warnings:
            result["warnings"] = self.warnings
        return result


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; ``trajectory`` holds what was recorded until then."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__()
        self.trajectory = trajectory
