"""Candidates -> ``chosen.h5``: the frames of student dynamics that the teacher is asked about.

Some are drawn at random from the runs that stayed alive: the error on them is the error of the
student where its own dynamics takes it. The rest are those that tell most: the last sane frames of
runs that exploded, then one after the other the frame with the atom whose environment the training
frames, and the frames chosen before, determine least. That is the variance of the last layer,
h' (Σ h h')⁻¹ h, with the chosen frames added to the sum as if they had been trained on. Where the
student's relaxations led comes on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlff_distiller.data import HDF5Dataset, Structure, structures_hash, write_structures
from mlff_distiller.pipeline.stage import Hashed, Say, Station
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.features import features_of

CHOSEN = "chosen.h5"
#: ``info["why"]`` of a frame.
VISITED, EXPLODED, UNCERTAIN, RELAXED = "visited", "exploded", "uncertain", "relaxed"
# Of each run that exploded, counted from its end: the last steps are recorded one by one, and the
# teacher may refuse the very last.
_BEFORE = (1, 4, 10)
# Share of the mean square of the features that is added to their covariance.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Inputs:
    """What the choice depends on."""

    candidates: Hashed[Path]
    data: Hashed[Path]
    """Labelled frames, whose training split the student knows."""
    student: Hashed[Path]
    round: int
    visited: int
    """Frames drawn at random."""
    number: int
    """Frames in all."""
    seed: int
    relaxed: Hashed[Path] | None = None
    """Frames of relaxations by the student: all are chosen, before the uncertain ones."""
    refused_at: float = 0.0
    """Closest contact, as a share of the covalent radii, up to which the teacher's labels are
    refused: only frames drawn at random may be so close."""


@dataclass(frozen=True)
class Result:
    """What was chosen."""

    reasons: dict[str, int]
    """Why -> number of frames."""
    chosen_hash: str


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Choose frames."""
    candidates = list(HDF5Dataset(inputs.candidates.value, require_labels=False))
    relaxed = _relaxed(inputs)
    rng = np.random.default_rng([inputs.seed, 7, inputs.round])
    chosen = dict.fromkeys(_visited(candidates, inputs.visited, rng), VISITED)
    relaxed = relaxed[: inputs.number - len(chosen)]
    number = inputs.number - len(relaxed)
    close = {
        i
        for i, s in enumerate(candidates)
        if inputs.refused_at and closest_ratio(s) <= inputs.refused_at
    }
    if len(close) == len(candidates):  # better frames that may be refused than none
        close = set()
    for i in _last_words(candidates, close):
        if len(chosen) < number:
            chosen.setdefault(i, EXPLODED)
    missing = number - len(chosen)
    if missing > 0:
        student = StudentForceField.load(inputs.student.value)
        known = HDF5Dataset(inputs.data.value).subset("train")
        runs = [int(s.info["run"]) for s in candidates]
        limit = -(-2 * inputs.number // max(1, len(set(runs))))
        found = most_uncertain(
            features_of(student, candidates),
            features_of(student, known),
            missing,
            given=list(chosen),
            barred=close,
            runs=runs,
            limit=limit,
        )
        chosen.update(dict.fromkeys(found, UNCERTAIN))
    frames = [
        replace(
            candidates[i],
            info={
                **candidates[i].info,
                "round": inputs.round,
                "why": why,
                "group": f"round-{inputs.round}/run-{candidates[i].info['run']}",
            },
        )
        for i, why in sorted(chosen.items())
    ]
    frames += relaxed
    write_structures(output / CHOSEN, frames, seed=inputs.seed)
    reasons = Counter(str(s.info["why"]) for s in frames)
    say(
        f"chose {len(frames)} of {len(candidates)}: "
        + ", ".join(f"{n} {k}" for k, n in reasons.items())
        + (f"; {len(close)} left alone: contacts whose labels were refused before" if close else "")
    )
    return Result(dict(reasons), structures_hash(frames))


def _relaxed(inputs: Inputs) -> list[Structure]:
    if inputs.relaxed is None:
        return []
    about = {"round": inputs.round, "why": RELAXED}
    return [
        replace(f, info={**f.info, **about, "group": f"round-{inputs.round}/relaxation-{run}"})
        for f in HDF5Dataset(inputs.relaxed.value, require_labels=False)
        for run in [f.info["run"]]
    ]


def _visited(candidates: Sequence[Structure], number: int, rng: np.random.Generator) -> list[int]:
    """Frames of runs that stayed alive, evenly over the runs, from their second halves."""
    runs: dict[int, list[int]] = {}
    for i, s in enumerate(candidates):
        if not s.info["exploded"]:
            runs.setdefault(int(s.info["run"]), []).append(i)
    pools = [list(rng.permutation(members[len(members) // 2 :])) for members in runs.values()]
    found: list[int] = []
    while len(found) < number and any(pools):
        for pool in pools:
            if pool and len(found) < number:
                found.append(int(pool.pop()))
    return found


def _last_words(candidates: Sequence[Structure], barred: Collection[int] = ()) -> list[int]:
    ends: dict[int, list[int]] = {}
    for i, s in enumerate(candidates):
        if s.info["exploded"] and i not in barred:
            ends.setdefault(int(s.info["run"]), []).append(i)
    return [members[-k] for k in _BEFORE for members in ends.values() if len(members) >= k]


def most_uncertain(
    features: Sequence[np.ndarray],
    known: Sequence[np.ndarray],
    number: int,
    *,
    given: Sequence[int] = (),
    barred: Collection[int] = (),
    runs: Sequence[int] | None = None,
    limit: int | None = None,
) -> list[int]:
    """Greedy choice of frames by the variance of the last layer, each choice added to what is known.

    Args:
        features: (n_i, d) of the atoms of each candidate.
        known: the same of the training frames.
        number: of frames to choose, fewer if there are not enough.
        given: candidates that are chosen already.
        barred: candidates that must not be.
        runs: run of each candidate.
        limit: at most this many of one run, those given included.

    Returns:
        Indices in the order of choice.
    """
    stacked = np.concatenate(list(known))
    width = stacked.shape[1]
    covariance = stacked.T @ stacked
    covariance += _RIDGE * np.trace(covariance) / width * np.eye(width)
    for i in given:
        covariance += features[i].T @ features[i]
    sizes = [len(f) for f in features]
    atoms = np.concatenate(list(features))
    starts = np.cumsum([0, *sizes[:-1]])
    free = np.ones(len(features), dtype=bool)
    free[[*given, *barred]] = False
    counts = Counter(runs[i] for i in given) if runs is not None else Counter()
    found: list[int] = []
    while len(found) < number:
        if runs is not None and limit is not None:
            free &= np.array([counts[run] < limit for run in runs])
        if not free.any():
            break
        lower = np.linalg.cholesky(covariance)
        variance = np.square(np.linalg.solve(lower, atoms.T)).sum(axis=0)
        scores = np.maximum.reduceat(variance, starts)
        best = int(np.argmax(np.where(free, scores, -1.0)))
        found.append(best)
        free[best] = False
        covariance += features[best].T @ features[best]
        if runs is not None:
            counts[runs[best]] += 1
    return found


STATION = Station("choose", work, Result, [CHOSEN])
