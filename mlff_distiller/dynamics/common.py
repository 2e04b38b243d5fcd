"""Settings and results that all engines share, and the dispatch to them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.cell import Cell

from mlff_distiller.constants import MAX_THREADS, PRECISIONS
from mlff_distiller.data import Structure, check_structure
from mlff_distiller.data.structure import check_constraints, without_labels
from mlff_distiller.dynamics.corrected import CorrectionCost, plan, teacher_of
from mlff_distiller.dynamics.freedom import (
    degrees_of_freedom,
    drift_of,
    initial_velocities,
    kinetic_energy,
    masses_of,
    temperature_of,
)
from mlff_distiller.dynamics.masses import same_hydrogens, with_heavy_hydrogens
from mlff_distiller.dynamics.state import RunState
from mlff_distiller.dynamics.watch import RunStoppedError, Watch
from mlff_distiller.elements import symbols, unknown_elements
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.lammps import lammps_command
from mlff_distiller.multistep.correction import Correction
from mlff_distiller.settings import Settings, setting
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.students.file import UNCERTAINTY, read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor

#: engine -> module with ``run_md`` and ``single_point``
ENGINES = {
    "ase": "mlff_distiller.dynamics.ase_engine",
    "lammps": "mlff_distiller.dynamics.lammps_engine",
    "openmm": "mlff_distiller.dynamics.openmm_engine",
}
ENSEMBLES = ("nve", "nvt", "npt")
_BAR = 1e5 * units.Pascal


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
    new_velocities: bool = setting(
        False, "Draw velocities even where the structure has momenta to start with."
    )
    on_extrapolation: str = setting(
        "warn",
        "What to do where atoms come closer, or volume, energy or the uncertainty of an atom leave, "
        "what training saw.",
        choices=("warn", "stop"),
        advice="use --on-extrapolation warn",
    )
    uncertainty_limit: float | None = setting(
        None,
        "Of the force on an atom, at records; above it the run extrapolates. Empty: 3 times the "
        "largest of held-out atoms, where the model has uncertainties.",
        unit="eV/Å",
        above=0,
        advice="use e.g. --uncertainty-limit 0.5",
    )
    ranks: int = setting(1, "MPI processes; LAMMPS alone can use more than one.", least=1)
    seed: int = setting(
        1, "Of the velocities and the thermostat.", least=0, most=2**31 - 1,
        advice="use e.g. --seed 1",
    )  # fmt: skip
    correct_with: str | None = setting(
        None,
        "A teacher whose surface is sampled: the difference between it and the student is an "
        "impulse every `every` steps (docs/multistep.md). Records then have the teacher's labels.",
    )
    every: int = setting(
        0,
        "Steps between two calls of the teacher; steps and interval are multiples of it. 0 "
        "(`--every auto`): as many as a short run of the student says, a divisor of the interval.",
        least=0, most=1000,
        advice="use e.g. --every 4",
    )  # fmt: skip
    teacher_device: str = setting("cpu", "Where the teacher runs.", advice="use cpu or cuda")
    keep_labels: str | None = setting(
        None, "HDF5 file to which the teacher's labels of all its calls are added, for training."
    )
    hydrogen_mass: float | None = setting(
        None,
        "Mass of each hydrogen, taken from the atom that it is bonded to: slows the fastest "
        "vibrations, and averages over positions stay.",
        unit="amu",
        above=0,
        advice="use e.g. --hydrogen-mass 3",
    )


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
            extra = {**extra, "every": s.every}
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


def run_md(
    engine: str,
    model: str | Path,
    structure: Structure,
    settings: MDSettings,
    *,
    resume: RunState | None = None,
    say: Callable[[str], None] = lambda text: None,
    teacher: EnergyModel | Calculator | None = None,
) -> Trajectory:
    """Run molecular dynamics with an exported student.

    Args:
        engine: ``ase``, ``lammps`` or ``openmm``.
        model: exported student.
        structure: starting positions. Its momenta are the start unless ``settings`` ask for new
            velocities, which are drawn at their temperature. Held coordinates stay.
        settings: ensemble, length, temperature ...
        resume: go on from here, in place of ``structure``; the first record is this state.
        say: told what a user should know, one line each: warnings, as they happen.
        teacher: to correct with, in place of the name in ``settings``; any ASE calculator.

    Raises:
        InputError: unknown or missing engine, an element that the model or the teacher does not
            know, NPT of a system that is not periodic or has held atoms.
        RunStoppedError: atoms fused, the temperature ran away, energies are not finite, the teacher
            failed; or extrapolation, where ``settings`` say stop. With what was recorded (an
            InputError).
        RunInterrupted: Ctrl-C, with what was recorded (a KeyboardInterrupt).
    """
    if resume is not None:
        structure = resume.structure
    _check(model, structure)
    _check_freedom(engine, structure, settings)
    module = _module(engine)
    if resume is not None:
        same_hydrogens(structure, settings.hydrogen_mass)
    elif settings.hydrogen_mass is not None:
        structure = with_heavy_hydrogens(structure, settings.hydrogen_mass)
    settings, surface = teacher_of(settings, teacher, resume)
    begin = _begin(engine, model, structure, settings, resume, say)
    bare = replace(structure, momenta=None)
    with plan(Path(model), bare, settings, begin, surface) as (settings, begin):
        trajectory: Trajectory = module.run_md(Path(model), bare, settings, begin)
    _check_sane(trajectory)
    return trajectory


def _begin(
    engine: str,
    model: str | Path,
    structure: Structure,
    settings: MDSettings,
    resume: RunState | None,
    say: Callable[[str], None],
) -> Begin:
    s = settings
    start_temperature = s.temperature
    if structure.momenta is not None and not s.new_velocities:
        velocities = structure.momenta / masses_of(structure) * units.fs
        if structure.fixed is not None:
            velocities[structure.fixed] = 0.0
        if s.ensemble != "nve":  # thermostats keep the centre of mass at rest, from the start
            velocities = velocities - drift_of(velocities, structure)
        found = temperature_of(structure.momenta, structure)
        start_temperature = max(found, 0.0 if s.ensemble == "nve" else s.temperature)
        if resume is None:
            say(f"starting with the momenta of the structure ({found:.0f} K)")
    else:
        velocities = initial_velocities(structure, s.temperature, s.seed)
        if structure.momenta is not None:
            say(f"new velocities at {s.temperature:g} K in place of the momenta of the structure")
    metadata = read_metadata(model)
    monitor = None
    if metadata.get(UNCERTAINTY) or s.uncertainty_limit is not None:
        monitor = UncertaintyMonitor(model, s.uncertainty_limit, dtype=s.dtype, threads=s.threads)
    watch = Watch(
        metadata,
        structure,
        start_temperature,
        stop=s.on_extrapolation == "stop",
        say=say,
        watch_volume=s.ensemble == "npt",
        monitor=monitor,
    )
    watch.start()
    if resume is None:
        return Begin(velocities, watch, say=say)
    same = resume.engine == engine and resume.ensemble == s.ensemble
    extra = resume.extra if same and resume.extra.get("settings") == exact_settings(s) else {}
    return Begin(velocities, watch, resume.step, resume.time, extra, say, resumed=True)


def exact_settings(settings: MDSettings) -> list[Any]:
    """What must be the same for a run to go on exactly."""
    s = settings
    plain = [s.ensemble, s.temperature, s.pressure, s.timestep, s.dtype]
    return plain if s.correct_with is None else [*plain, s.correct_with, s.every]


def _check_freedom(engine: str, structure: Structure, settings: MDSettings) -> None:
    check_constraints(structure)
    if degrees_of_freedom(structure) == 0:
        raise InputError("all atoms are held, so nothing can move; remove constraints")
    if settings.ranks > 1 and engine != "lammps":
        raise InputError(f"--ranks is for LAMMPS, got --engine {engine}; use --engine lammps")
    if settings.ensemble != "npt":
        return
    if not structure.pbc.all():
        raise InputError(
            "NPT needs a system that is periodic in three directions, got "
            f"pbc={structure.pbc.tolist()}; use --ensemble nvt"
        )
    if structure.fixed is not None:
        raise InputError(
            "NPT moves all atoms with the cell, but "
            f"{int(structure.fixed.any(axis=1).sum())} atoms are held; use --ensemble nvt, or "
            "remove the constraints"
        )
    if settings.temperature <= 0:
        raise InputError("NPT needs a temperature above 0 K, got 0; use e.g. --temperature 10")


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


def engine_of(wanted: str | None) -> str:
    """The engine asked for; LAMMPS where it is installed, else ASE, for None and ``auto``."""
    if wanted not in (None, "auto"):
        return wanted
    try:
        lammps_command()
    except InputError:
        return "ase"
    return "lammps"


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
