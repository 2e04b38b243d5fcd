"""The on-policy loop: explore with the student, choose, label, measure, learn; again.

    OUTPUT/rounds/00/   the first student, trained on the sampled frames
    OUTPUT/rounds/01/   candidates.h5  chosen.h5  labels.h5  data.h5  training/  student.pt
    ...

Each round is a line of stations with records of its own, so that a killed run goes on within the
round, and with the same files: seeds follow from the configuration, minutes from the recorded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.config import DistillConfig, TrainingConfig
from mlff_distiller.data import HDF5Dataset, Structure, structures_hash
from mlff_distiller.dynamics import engine_of
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.evaluation.gates.visited import force_limit
from mlff_distiller.pipeline import choose, explore, export, fit, join, label, measure, relax
from mlff_distiller.pipeline.contacts import Asked, contact_limit
from mlff_distiller.pipeline.stage import Hashed, Say, Stages, hashed_file
from mlff_distiller.purpose import ensembles

# s: a guess at what a round takes besides training, before one has been measured.
_FIRST_ROUND = 20.0
_SHORTEST_FIT = 5.0  # s
_FOREVER = 10**9  # epochs
# Share of the minutes, and s at least and at most, for gates and engines at the end.
_RESERVE, _LEAST_RESERVE, _MOST_RESERVE = 0.25, 30.0, 300.0
# Once the student's pace is known: s besides its dynamics, and the largest share of the minutes.
_OTHER_GATES, _MOST_SHARE = 75.0, 0.4
_NEARLY = 3.0  # times the limits of the gates: from there on rounds grow
_HOT = 0.6  # of the highest temperature: above it limits are shares of the forces

#: student, folder -> names of the gates that fail
QuickGates = Callable[[Hashed[Path], Stages], list[str]]


@dataclass
class Outcome:
    """What the rounds leave behind."""

    labels: list[Hashed[Path]]
    """Files of labels: the sampled frames, then those of each round."""
    start_from: Hashed[Path] | None = None
    """Weights of the last round."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """For the report: ``round``, ``labelled``, ``exploded``, ``visited``, ``failed_gates`` ..."""
    stopped: str = ""
    """Why the rounds ended."""
    teacher_calls: int = 0
    asked: list[Asked] = field(default_factory=list)


class Budget:
    """Minutes of training for each fit, by what the stations are known to have taken.

    Args:
        config: its ``loop.minutes``, else ``training.max_minutes``, else ``loop.epochs``.
        spent: seconds of all finished stations.
        dynamics: atoms × ps that the student will run for the gates at the end.
    """

    def __init__(
        self, config: DistillConfig, spent: Callable[[], float], dynamics: float = 0.0
    ) -> None:
        self._config, self._spent, self._dynamics = config, spent, dynamics
        loop, minutes = config.loop, config.training.max_minutes
        self._deadline: float | None = None
        self._told = False
        if loop.minutes is not None:
            total = 60.0 * loop.minutes
            self._deadline = total - min(max(_RESERVE * total, _LEAST_RESERVE), _MOST_RESERVE)
            self._final = loop.final_share * max(0.0, self._deadline - spent())
        elif minutes is not None:
            self._final = 60.0 * minutes * loop.final_share
        self._minutes = minutes

    def paced(self, pace: float, say: Say) -> None:
        """Keep as much time for the gates as they will take, two fifths of all at most.

        The last training has its time all the same: a student that learned for seconds would pass
        no gate.

        Args:
            pace: s that an atom takes for a ps, with as many runs at a time as there are workers.
            say: told where the time will not be enough.
        """
        if self._deadline is None:
            return
        assert self._config.loop.minutes is not None
        total = 60.0 * self._config.loop.minutes
        gates = _OTHER_GATES + pace * self._dynamics
        earlier = total - min(gates, _MOST_SHARE * total)
        self._deadline = min(self._deadline, max(earlier, self._spent() + self._final))
        kept = total - self._deadline
        if gates > 1.1 * kept and not self._told:
            self._told = True
            say(
                f"the gates will take about {gates / 60:.1f} minutes, and {kept / 60:.1f} of "
                f"{total / 60:g} are kept for them: the run will be longer; smaller starting "
                "structures, a shorter acceptance.stability_time or acceptance.skip: [stability] "
                "would help"
            )

    def of_round(self, number: int, others: float) -> float | None:
        """Minutes for the fit of a round; None for epochs instead.

        Args:
            number: of the round, from 0.
            others: seconds that a round takes besides.
        """
        rounds = self._config.loop.rounds
        if self._deadline is not None:
            left = self._deadline - self._final - self._spent()
            share = left / max(1, rounds - number + 1)
            # Learning for less time than asking takes would waste the answers.
            seconds = max(share - others, others) if number < rounds else share
        elif self._minutes is not None:
            seconds = (60.0 * self._minutes - self._final) / (rounds + 1)
        else:
            return None
        return round(max(seconds, _SHORTEST_FIT) / 60.0, 4)

    def of_final(self, trained: float) -> float | None:
        """Minutes for the last fit, after ``trained`` seconds of training in the rounds."""
        if self._deadline is not None:
            seconds = self._deadline - self._spent()
        elif self._minutes is not None:
            seconds = 60.0 * self._minutes - trained
        else:
            return None
        return round(max(seconds, _SHORTEST_FIT) / 60.0, 4)

    def is_spent(self, others: float, exploded: bool = False) -> bool:
        """Whether another round, ``others`` seconds besides training, would take too long.

        Where runs still explode it may take half of the time for the last training: a student
        that is trained to the end and explodes is of no use.
        """
        if self._deadline is None:
            return False
        final = 0.5 * self._final if exploded else self._final
        return self._spent() + 2.0 * others > self._deadline - final


def run_rounds(
    config: DistillConfig,
    start: list[Structure],
    outcome: Outcome,
    output: Path,
    open_stages: Callable[[Path], Stages],
    budget: Budget,
    quick_gates: QuickGates,
    say: Say,
    *,
    resume: bool,
) -> Outcome:
    """Run the rounds.

    Args:
        config: the whole run.
        start: starting structures.
        outcome: with the labels of the sampled frames; what is returned.
        output: folder of the run.
        open_stages: the stages of a round's folder.
        budget: of the trainings.
        quick_gates: asked after each round.
        say: told what happens.
        resume: go on with trainings that were interrupted.
    """
    outcome.teacher_calls = len(HDF5Dataset(outcome.labels[0].value))
    student: Hashed[Path] | None = None
    others, held = _FIRST_ROUND, 0
    for k in range(config.loop.rounds + 1):
        folder = output / "rounds" / f"{k:02d}"
        say(f"round {k} of at most {config.loop.rounds}")
        stages = open_stages(folder)
        row: dict[str, Any] = {"round": k}
        if student is not None:
            row |= _ask(config, start, outcome, student, k, stages)
            held = held + 1 if row["holds"] else 0
        data, minutes = _learn(config, outcome, budget, k, others, stages, resume=resume)
        if row.get("exploded") == 0:  # or the runs were too short to tell
            budget.paced(row["pace"], say)
        student = hashed_file(folder / export.STUDENT)
        # Gates take time, and errors that are too large decide alone.
        row["failed_gates"] = quick_gates(student, stages) if row.get("holds") else None
        row |= {"minutes": minutes, "num_frames": data.num_frames}
        outcome.rounds.append(row)
        if k > 0:
            others = sum(s for name, s in stages.seconds.items() if name != fit.STATION.name)
        if row["failed_gates"]:
            held = 0
        outcome.stopped = _why_stop(config, outcome, budget, held, others)
        if outcome.stopped:
            say(f"rounds end: {outcome.stopped}")
            break
    else:
        outcome.stopped = "all rounds done"
    return outcome


def _why_stop(
    config: DistillConfig, outcome: Outcome, budget: Budget, held: int, others: float
) -> str:
    calls = config.loop.teacher_calls
    if held >= 2:
        return "errors on visited frames and gates held twice in a row"
    if calls is not None and outcome.teacher_calls >= calls:
        return f"{outcome.teacher_calls} teacher calls"
    if budget.is_spent(others, bool(outcome.rounds[-1].get("exploded"))):
        return "the time for rounds is spent"
    return ""


def _ask(
    config: DistillConfig,
    start: list[Structure],
    outcome: Outcome,
    student: Hashed[Path],
    k: int,
    stages: Stages,
) -> dict[str, Any]:
    """Explore with the student and have the teacher label what tells most."""
    loop, purpose = config.loop, config.purpose
    previous = stages.output.parent / f"{k - 1:02d}" / join.DATA
    known = HDF5Dataset(previous)
    train = list(known.subset("train"))
    starts, runs = plan_runs(config, start, train, k)
    explored = stages.run(
        explore.STATION,
        explore.Inputs(
            student=student,
            starts=Hashed(starts, structures_hash(starts)),
            runs=runs,
            engine=engine_of(loop.engine),
            timestep=purpose.timestep,
            interval=loop.interval,
            min_distance=config.sampling.min_distance,
            max_force=config.sampling.max_force,
            workers=config.teacher.workers,
        ),
    )
    moved = sum(row["reached"] * len(starts[row["start"]]) for row in explored.runs)
    relaxed = None
    if begin := relax.starts_of(config, start, _starts(start, train), k):
        went = stages.run(relax.STATION, relax.inputs_of(config, student, begin))
        if went.num_frames:
            relaxed = Hashed(stages.output / relax.RELAXED, went.relaxed_hash)
    calls = loop.teacher_calls
    # Wrong students are cured by rounds, not by frames of where they should never have been: rounds
    # are small until the student is nearly right where it runs.
    grown = loop.growth ** sum(row.get("nearly", False) for row in outcome.rounds)
    number = round(loop.frames * grown)
    if calls is not None:
        number = min(number, calls - outcome.teacher_calls)
    chosen = stages.run(
        choose.STATION,
        choose.Inputs(
            candidates=Hashed(stages.output / explore.CANDIDATES, explored.candidates_hash),
            data=Hashed(previous, known.hash()),
            student=student,
            round=k,
            visited=min(round(loop.visited * grown), number),
            number=number,
            seed=config.sampling.seed,
            relaxed=relaxed,
            refused_at=contact_limit(outcome.asked),
        ),
    )
    labelled = stages.run(
        label.STATION,
        label.inputs_of(config, Hashed(stages.output / choose.CHOSEN, chosen.chosen_hash), None),
    )
    labels = Hashed(stages.output / label.LABELS, labelled.data_hash)
    measured = stages.run(measure.STATION, measure.Inputs(student, labels))
    outcome.labels.append(labels)
    outcome.asked += labelled.asked
    outcome.teacher_calls += labelled.num_labelled + sum(labelled.rejected.values())
    return {
        "runs": explored.runs,
        "pace": stages.seconds[explore.STATION.name] / max(moved, 1e-9),
        "exploded": explored.exploded,
        "candidates": explored.num_frames,
        "chosen": chosen.reasons,
        "labelled": labelled.num_labelled,
        "rejected": labelled.rejected,
        "visited": measured.visited,
        "holds": explored.exploded == 0 and holds(measured.visited, config.acceptance),
        "nearly": explored.exploded == 0 and holds(measured.visited, config.acceptance, _NEARLY),
    }


def _learn(
    config: DistillConfig,
    outcome: Outcome,
    budget: Budget,
    k: int,
    others: float,
    stages: Stages,
    *,
    resume: bool,
) -> tuple[join.Result, float | None]:
    """Train on all labels from the weights of the last round, and export."""
    joined = stages.run(join.STATION, join.Inputs(list(outcome.labels)))
    data = Hashed(stages.output / join.DATA, joined.data_hash)
    minutes = budget.of_round(k, others)
    stages.run(
        fit.STATION,
        fit.Inputs(
            data,
            config.model,
            limited(config, minutes, epochs=config.loop.epochs),
            start_from=outcome.start_from,
            splits=config.data,
            resume=resume,
        ),
    )
    outcome.start_from = hashed_file(stages.output / fit.BEST)
    stages.run(export.STATION, export.Inputs(outcome.start_from, data, config.export))
    return joined, minutes


def limited(
    config: DistillConfig, minutes: float | None, *, epochs: int | None = None
) -> TrainingConfig:
    """Settings of a training that ends after ``minutes``, else ``epochs``, else where they say.

    Where the minutes of the whole run are given, nothing ends a training earlier: with a cosine the
    gain comes at the end.
    """
    training = config.training
    if minutes is None:
        return training if epochs is None else replace(training, max_epochs=epochs)
    training = replace(training, max_minutes=minutes)
    if config.loop.minutes is None:
        return training
    return replace(training, max_epochs=_FOREVER, early_stop_patience=_FOREVER)


def holds(visited: Sequence[dict[str, Any]], limits: AcceptanceConfig, times: float = 1.0) -> bool:
    """Whether the error on visited frames is below the limit of the gates at every temperature.

    Args:
        visited: see :func:`mlff_distiller.pipeline.measure.errors_by_temperature`.
        limits: of the gates.
        times: of the limit that is allowed.
    """
    hottest = max((row["temperature"] for row in visited), default=0.0)
    return bool(visited) and all(
        row["force_mae_mev_per_ang"]
        <= times
        * force_limit(
            limits,
            row["mean_component_mev_per_ang"] if row["temperature"] > _HOT * hottest else None,
        )
        for row in visited
    )


def plan_runs(
    config: DistillConfig, start: Sequence[Structure], known: Sequence[Structure], k: int
) -> tuple[list[Structure], list[explore.Run]]:
    """Where the trajectories of round ``k`` start, and their conditions.

    Temperatures are spread evenly over the range of the purpose, and one run is a ramp above it.
    Every other run starts at a structure of ``start``, the rest at training frames of each kind
    in turn: other volumes, defects, melts.

    Returns:
        starting structures and runs.
    """
    loop, purpose = config.loop, config.purpose
    low, high = purpose.temperature
    rng = np.random.default_rng([config.sampling.seed, 11, k])
    pool = _starts(start, known)
    ladder = np.linspace(high, low, max(1, loop.runs - 1))
    pressures = np.linspace(purpose.pressure[0], purpose.pressure[1], 3)
    starts: list[Structure] = []
    runs: list[explore.Run] = []
    for i in range(loop.runs):
        ramp = i == loop.runs - 1 and loop.runs > 1
        begin = start[(k + i // 2) % len(start)]
        if pool and i % 2:  # the kinds take turns, over the rounds
            kind = pool[(k * (loop.runs // 2) + i // 2) % len(pool)]
            begin = kind[int(rng.integers(len(kind)))]
        choices = ensembles(purpose, begin)
        # The other way round in every other round, so that each temperature sees each ensemble.
        ensemble = choices[(i // 2 + k) % len(choices)]
        starts.append(begin)
        runs.append(
            explore.Run(
                start=i,
                ensemble=ensemble,
                temperature=float(low if ramp else round(ladder[i], 1)),
                final_temperature=float(loop.overshoot * high if ramp else round(ladder[i], 1)),
                pressure=float(pressures[(i + k) % 3]) if ensemble == "npt" else 0.0,
                picoseconds=loop.picoseconds,
                seed=int(rng.integers(1, 2**31 - 100)),
            )
        )
    return starts, runs


def _starts(start: Sequence[Structure], known: Sequence[Structure]) -> list[list[Structure]]:
    """Training frames that dynamics can start from, by kind: strained, vacancies, slabs, melts ...

    They are at least half as large as the smallest of ``start``. Pairs that were pushed together only
    explode, and molecules with a broken bond fly apart: no purpose asks for either.
    """
    least = min(len(s) for s in start) // 2
    kinds: dict[str, list[Structure]] = {}
    for s in known:
        apart = s.info.get("source") == "molecule" and s.info.get("kind") == "bond"
        if len(s) > max(1, least) and s.info.get("source") != "dimer" and not apart:
            kind = f"{s.info.get('source')} {s.info.get('kind', '')}"
            kinds.setdefault(kind, []).append(s)
    return [kinds[kind] for kind in sorted(kinds)]
