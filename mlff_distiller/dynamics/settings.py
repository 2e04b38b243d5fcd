"""What is asked of a run, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlff_distiller.constants import MAX_THREADS, PRECISIONS
from mlff_distiller.errors import InputError
from mlff_distiller.settings import Settings, setting

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
        "largest of held-out atoms, where the model has uncertainties, and for the root mean square "
        "over all atoms 1.5 times the largest of held-out frames.",
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


def exact_settings(settings: MDSettings) -> list[Any]:
    """What must be the same for a run to go on exactly."""
    s = settings
    plain = [s.ensemble, s.temperature, s.pressure, s.timestep, s.dtype]
    return plain if s.correct_with is None else [*plain, s.correct_with, s.every]


def check_multiple(name: str, value: int, of: str, number: int) -> None:
    """Raise InputError where ``value`` of option ``name`` is no multiple of ``number`` of ``of``."""
    if value % number:
        raise InputError(
            f"{name} must be a multiple of {of} ({number}), got {value}; use e.g. "
            f"{name} {-(-value // number) * number}"
        )
