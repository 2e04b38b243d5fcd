"""Settings of the on-policy rounds (rounds.py)."""

from __future__ import annotations

from dataclasses import dataclass

from mlff_distiller.settings import Settings, setting


@dataclass(frozen=True)
class LoopConfig(Settings, path="loop"):
    """On-policy rounds: the student runs dynamics, the teacher labels what it visits, it learns."""

    rounds: int = setting(6, "At most; 0 trains once, on the sampled frames alone.", least=0)
    minutes: float | None = setting(
        None,
        "Wall-clock time of the whole distillation, gates included; the trainings share what the "
        "rest leaves.",
        unit="min",
        above=0,
    )
    teacher_calls: int | None = setting(
        None, "No round begins when the teacher has labelled this many frames.", least=1
    )
    runs: int = setting(8, "Trajectories of the student in a round, one of them a ramp.", least=1)
    picoseconds: float = setting(4.0, "Length of each.", unit="ps", above=0)
    interval: float = setting(20.0, "Time between two candidates.", unit="fs", above=0)
    overshoot: float = setting(
        1.2, "The ramp goes to this multiple of the highest temperature.", least=1, most=10
    )
    frames: int = setting(24, "Labelled in the first round of dynamics.", least=1)
    growth: float = setting(
        1.0,
        "After a round in which no run exploded and errors were within three times the limits of "
        "the gates, rounds label this many times as many: wrong students are cured by rounds, not "
        "by frames.",
        least=1,
        most=4,
    )
    visited: int = setting(
        9, "Of them, drawn at random from the trajectories: they measure the student.", least=0
    )
    relaxations: int = setting(
        4,
        "In a round, by the student: of defects of the purpose, or of conformers of molecules. Two "
        "frames of each are among those labelled.",
        least=0,
    )
    epochs: int = setting(
        30, "Of each round's training, where neither minutes nor training.max_minutes are set.",
        least=1,
    )  # fmt: skip
    final_share: float = setting(
        0.5, "Share of the training time that the last training gets.", above=0, below=1
    )
    final_anew: bool = setting(
        True,
        "The last training begins with new weights: those of many short ones are worse to go on "
        "from, above all for what few frames show (docs/distillation.md). `false` goes on from the "
        "last round.",
    )
    engine: str = setting(
        "auto",
        "What runs the student; `auto` takes LAMMPS where it is installed, else ASE.",
        choices=("auto", "lammps", "ase", "openmm"),
    )
