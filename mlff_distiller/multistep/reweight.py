"""Averages of the teacher from frames of the student: perturbation after the run.

A frame of a canonical run on the student's surface counts with exp(-(U_T - U_S) / kT) on the
teacher's (Zwanzig 1954, doi:10.1063/1.1740409); at constant pressure too, since the same pressure
times the same volume cancels. How many frames are left is the effective sample size (Σw)² / Σw²
(Kish 1965). The spread of U_T - U_S grows as the root of the number of atoms, and the sample size
falls exponentially with its square: small systems and good students only.

The first order in U_T - U_S, <A> - cov(A, U_T - U_S) / kT, needs no weights. It is there to be
compared: where the two agree within their errors, both hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ase import units

from mlff_distiller.data import Structure
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.liquids import radial_distribution
from mlff_distiller.lattice import stress_volume
from mlff_distiller.multistep.correction import STUDENT_ENERGY

_REACH = 8.0  # Å
_FEW, _SHARE = 10.0, 0.1


@dataclass(frozen=True)
class Average:
    """One quantity, as the student's frames say and as the teacher would."""

    student: float
    student_error: float
    """Standard error, as if frames were independent."""
    teacher: float
    teacher_error: float
    first_order: float


@dataclass(frozen=True)
class Reweighted:
    """What reweighting gives."""

    teacher: str
    temperature: float
    num_frames: int
    num_atoms: int
    effective_frames: float
    spread: float
    """Standard deviation of U_T - U_S, kT."""
    averages: dict[str, Average]
    """Energy (U_S on the student's side, U_T on the teacher's) in eV/atom, volume in Å³/atom."""
    weights: np.ndarray
    """(k,), their sum is one."""
    r: np.ndarray
    """Å, middles of the bins; empty for systems that are not periodic in three directions."""
    pairs: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """``O-H`` -> g(r) of ``student`` and ``teacher``."""

    @property
    def warning(self) -> str | None:
        """A line where too few frames carry the weight."""
        if self.effective_frames >= max(_FEW, _SHARE * self.num_frames):
            return None
        return (
            f"warning: {self.effective_frames:.1f} of {self.num_frames} frames carry the weight, "
            "so that the averages are those of a few frames; run with --correct-with, train a "
            "better student or take a smaller system"
        )

    def summary(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "teacher": self.teacher,
            "temperature": self.temperature,
            "num_frames": self.num_frames,
            "num_atoms": self.num_atoms,
            "effective_frames": self.effective_frames,
            "spread_kt": self.spread,
            "averages": {name: asdict(value) for name, value in self.averages.items()},
            "r": self.r.tolist(),
            "pairs": {
                name: {k: v.tolist() for k, v in both.items()} for name, both in self.pairs.items()
            },
            "warning": self.warning,
        }


def reweight(
    frames: Sequence[Structure],
    teacher: EnergyModel,
    temperature: float,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Reweighted:
    """Averages on the teacher's surface from frames of a canonical run of the student.

    Args:
        frames: of one run at constant temperature, with the student's energies.
        teacher: one call for each frame.
        temperature: K, of the thermostat.
        progress: told how many frames are done.

    Raises:
        InputError: fewer than two frames, no energies, frames of several systems or of a corrected
            run, a temperature that is not positive, or a teacher that fails.
    """
    _check(frames, temperature)
    teacher.check(frames)
    kt = units.kB * temperature
    size = len(frames[0])
    own = np.array([frame.energy for frame in frames], dtype=np.float64)
    theirs = np.empty(len(frames))
    for i, frame in enumerate(frames):
        theirs[i] = teacher.compute(frame).energy
        progress(i + 1)
    if not np.isfinite(theirs).all():
        raise InputError(
            f"{teacher.name} gives no finite energy for frame {int(np.argmin(np.isfinite(theirs)))}; "
            "remove the frame"
        )
    difference = (theirs - own) / kt
    weights = np.exp(difference.min() - difference)
    weights /= weights.sum()
    averages = {"energy": _average(own / size, theirs / size, weights, difference)}
    volumes = np.array([stress_volume(f.cell, f.pbc) or 0.0 for f in frames]) / size
    if volumes.min() > 0 and np.ptp(volumes) > 1e-9:
        averages["volume"] = _average(volumes, volumes, weights, difference)
    r, pairs = _pairs(frames, weights)
    return Reweighted(
        teacher=teacher.name,
        temperature=temperature,
        num_frames=len(frames),
        num_atoms=size,
        effective_frames=float(1.0 / (weights**2).sum()),
        spread=float(difference.std()),
        averages=averages,
        weights=weights,
        r=r,
        pairs=pairs,
    )


def _check(frames: Sequence[Structure], temperature: float) -> None:
    if len(frames) < 2:
        raise InputError(f"reweighting needs two frames or more, got {len(frames)}; run longer")
    if not temperature > 0:
        raise InputError(
            f"--temperature must be that of the run's thermostat and > 0 K, got {temperature:g}"
        )
    first = frames[0]
    for i, frame in enumerate(frames):
        if not np.array_equal(frame.atomic_numbers, first.atomic_numbers):
            raise InputError(
                f"frames must be of one run, got {first.formula} and, in frame {i}, "
                f"{frame.formula}; reweight them one by one"
            )
        if frame.energy is None:
            raise InputError(
                f"frame {i} has no energy of the student; take the trajectory that `md` wrote"
            )
        if STUDENT_ENERGY in frame.info:
            raise InputError(
                "these frames are of a run that --correct-with put on the teacher's surface; "
                "their averages need no weights"
            )


def _average(
    own: np.ndarray, theirs: np.ndarray, weights: np.ndarray, difference: np.ndarray
) -> Average:
    mean = float(weights @ theirs)
    covariance = float(np.mean((theirs - theirs.mean()) * (difference - difference.mean())))
    return Average(
        student=float(own.mean()),
        student_error=float(own.std(ddof=1) / np.sqrt(len(own))),
        teacher=mean,
        teacher_error=float(np.sqrt((weights**2 * (theirs - mean) ** 2).sum())),
        first_order=float(theirs.mean()) - covariance,
    )


def _pairs(
    frames: Sequence[Structure], weights: np.ndarray
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """g(r) of each pair of elements without and with weights; none without a periodic cell."""
    if not frames[0].pbc.all():
        return np.zeros(0), {}
    widths = [1.0 / np.linalg.norm(np.linalg.inv(f.cell), axis=0).max() for f in frames]
    reach = min(_REACH, 0.5 * float(min(widths)))
    found = [
        radial_distribution(f.positions[None], f.cell, f.atomic_numbers, reach) for f in frames
    ]
    pairs = {}
    for name in found[0]["pairs"]:
        rows = np.array([one["pairs"][name] for one in found])
        pairs[name] = {"student": rows.mean(axis=0), "teacher": weights @ rows}
    return np.array(found[0]["r"]), pairs
