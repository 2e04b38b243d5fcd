"""Settings and results that all engines share, and the dispatch to them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from mlff_distiller.constants import MAX_THREADS, PRECISIONS
from mlff_distiller.data import Structure, check_structure
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.errors import InputError
from mlff_distiller.settings import Settings, setting
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.students.file import read_metadata

#: engine -> module with ``run_md`` and ``single_point``
ENGINES = {
    "ase": "mlff_distiller.dynamics.ase_engine",
    "lammps": "mlff_distiller.dynamics.lammps_engine",
    "openmm": "mlff_distiller.dynamics.openmm_engine",
}
ENSEMBLES = ("nve", "nvt", "npt")


@dataclass(frozen=True)
class MDSettings(Settings):
    """One molecular-dynamics run."""

    ensemble: str = setting(
        "nvt",
        "`npt` is isotropic and needs a periodic system.",
        choices=ENSEMBLES,
        advice="use e.g. --ensemble nvt",
    )
    steps: int = setting(1000, "Length of the run.", least=1)
    temperature: float = setting(300.0, "Also of the starting velocities.", unit="K", least=0)
    pressure: float = setting(1.0, "Of `npt`.", unit="bar")
    timestep: float = setting(1.0, "Time step.", unit="fs", above=0, most=20)
    interval: int = setting(10, "Steps between two records.", least=1)
    warmup_steps: int = setting(
        0,
        "Thermostatted steps before the run that are not recorded (time for an NVE run to melt "
        "the potential and kinetic energy into equilibrium).",
        least=0,
    )
    dtype: str = setting("float32", "Arithmetic of the network.", choices=PRECISIONS)
    threads: int = setting(  # OpenMP overruns its stack with absurd numbers
        0, "Threads of the network; 0 leaves the choice to the engine.", least=0, most=MAX_THREADS
    )
    seed: int = setting(
        1, "Of the velocities and the thermostat.", least=0, most=2**31 - 1,
        advice="use e.g. --seed 1",
    )  # fmt: skip


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
    """Positions at the records, with energy and forces of the student."""

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
        if self.ensemble == "nve":
            result["drift_mev_per_atom_per_ps"] = self.drift()
        if self.volume[-1] > 0:
            result["mean_volume_ang3_per_atom"] = float(self.volume[half].mean()) / self.num_atoms
        return result


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; ``trajectory`` holds what was recorded until then."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__()
        self.trajectory = trajectory


class Recorder:
    """Collects the records of one run and makes the trajectory of them."""

    def __init__(self, engine: str, structure: Structure, settings: MDSettings) -> None:
        self._engine, self._structure, self._settings = engine, structure, settings
        self._rows: list[tuple[float, float, float, float]] = []
        self._frames: list[Structure] = []
        self._start = time.perf_counter()
        self._paused = 0.0

    def start(self) -> None:
        """The clock starts here."""
        self._start = time.perf_counter()

    def add(self, kinetic: float, frame: Structure) -> None:
        """One record: the kinetic energy, eV, and a frame with the potential energy."""
        began = time.perf_counter()
        assert frame.energy is not None
        # The centre of mass is at rest: 3 n - 3 degrees of freedom, as LAMMPS counts.
        degrees = max(3 * len(frame) - 3, 3)
        temperature = 2 * kinetic / (degrees * units.kB)
        volume = abs(float(np.linalg.det(frame.cell))) if frame.pbc.all() else 0.0
        self._rows.append((frame.energy, frame.energy + kinetic, temperature, volume))
        self._frames.append(frame)
        self._paused += time.perf_counter() - began

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C in here becomes :class:`RunInterrupted` once there is a record to keep."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._rows:
                raise
            raise RunInterrupted(self.trajectory()) from None

    def trajectory(self, seconds: float | None = None, steps: int | None = None) -> Trajectory:
        """What was recorded. ``seconds`` are those of ``steps``; None: of the clock, and those
        between the first and the last record."""
        if seconds is None:
            seconds = time.perf_counter() - self._start - self._paused
        s = self._settings
        columns = np.array(self._rows).T
        steps = steps or max(1, (len(self._rows) - 1) * s.interval)
        return Trajectory(
            engine=self._engine,
            ensemble=s.ensemble,
            num_atoms=len(self._structure),
            time=np.arange(len(self._rows)) * s.interval * s.timestep,
            potential_energy=columns[0],
            total_energy=columns[1],
            temperature=columns[2],
            volume=columns[3],
            seconds_per_step=seconds / steps,
            frames=self._frames,
        )


def run_md(
    engine: str, model: str | Path, structure: Structure, settings: MDSettings
) -> Trajectory:
    """Run molecular dynamics with an exported student.

    Args:
        engine: ``ase``, ``lammps`` or ``openmm``.
        model: exported student.
        structure: starting positions; velocities are drawn at the temperature of ``settings``.
        settings: ensemble, length, temperature ...

    Raises:
        InputError: unknown or missing engine, an element that the model does not know, NPT of a
            system that is not periodic, or a run that blew up.
        RunInterrupted: Ctrl-C in ASE or OpenMM, with what was recorded (a KeyboardInterrupt).
    """
    _check(model, structure)
    if settings.ensemble == "npt" and not structure.pbc.all():
        raise InputError(
            "NPT needs a system that is periodic in three directions, got "
            f"pbc={structure.pbc.tolist()}; use --ensemble nvt"
        )
    trajectory: Trajectory = _module(engine).run_md(Path(model), structure, settings)
    _check_sane(trajectory)
    return trajectory


def single_point(
    engine: str, model: str | Path, structure: Structure, dtype: str = "float32"
) -> Structure:
    """Energy, forces and (not OpenMM, which has no stress) stress of one structure.

    Args:
        engine: ``ase``, ``lammps``, ``openmm`` or ``torchscript``.
        model: exported student.
        structure: what to evaluate.
        dtype: arithmetic of the network.

    Returns:
        ``structure`` with the labels of the student.
    """
    _check(model, structure)
    if engine == "torchscript":
        portable = ExportedModel(model, backend="portable", dtype=dtype)
        return structure.with_labels(*portable.compute(structure))
    labelled: Structure = _module(engine).single_point(Path(model), structure, dtype)
    return labelled


def initial_velocities(structure: Structure, temperature: float, seed: int) -> np.ndarray:
    """Maxwell-Boltzmann velocities without drift of the centre of mass, (n, 3) in Å/fs.

    The same for every engine, so that their runs can be compared.
    """
    atoms = structure.to_atoms(labels=False)
    masses = atoms.get_masses()[:, None]
    generator = np.random.default_rng(seed)
    momenta = generator.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    if len(atoms) > 1:
        momenta -= momenta.sum(axis=0) * masses / masses.sum()
        kinetic = float((momenta**2 / (2 * masses)).sum())
        wanted = 1.5 * (len(atoms) - 1) * units.kB * temperature
        momenta *= np.sqrt(wanted / kinetic) if kinetic > 0 else 1.0
    velocities: np.ndarray = momenta / masses * units.fs
    return velocities


def _module(engine: str) -> Any:
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; use one of: {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[engine])


def _check(model: str | Path, structure: Structure) -> None:
    check_structure(structure)
    known = read_metadata(model)["elements"]
    if unknown := unknown_elements(structure.atomic_numbers, known):
        raise InputError(
            f"{model} knows {symbols(known)}, the structure holds {symbols(unknown)}; "
            "train with these elements in the data"
        )


def _check_sane(trajectory: Trajectory) -> None:
    finite = np.isfinite(trajectory.total_energy) & np.isfinite(trajectory.temperature)
    if not finite.all():
        when = trajectory.time[int(np.argmin(finite))]
        raise InputError(
            f"the {trajectory.engine} run blew up at {when:.0f} fs (energy is not finite); "
            "shorten the time step or train on hotter frames"
        )
