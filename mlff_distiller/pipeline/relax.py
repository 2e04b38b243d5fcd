"""[7] Relaxations by the student of defects and conformers -> ``relaxed.h5``.

Dynamics hardly visits a surface that reconstructs or a vacancy that has closed in, but users relax
such structures, and there too a student goes where it is wrong. The end of each relaxation is
labelled, and the configuration half way to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase.optimize import BFGS

from mlff_distiller.config import DistillConfig
from mlff_distiller.data import Structure, structures_hash, write_structures
from mlff_distiller.errors import InputError
from mlff_distiller.pipeline.explore import is_sane
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station
from mlff_distiller.sampling.defect_frames import defect_frames, is_crystal
from mlff_distiller.sampling.geometry import unlabelled
from mlff_distiller.sampling.task import Task
from mlff_distiller.workers import run_all

RELAXED = "relaxed.h5"
SOURCE = "student-relaxation"
_FMAX, _STEPS, _STEP = 0.03, 80, 0.1  # eV/Å, most steps, Å
# Off the symmetric places that forces alone cannot leave.
_RATTLE = 0.03  # Å


@dataclass(frozen=True)
class Inputs:
    """What the relaxations depend on."""

    student: Hashed[Path]
    starts: Hashed[list[Structure]]
    min_distance: float
    """Closest contact of a frame, as a share of the covalent radii."""
    max_force: float
    """eV/Å, of labels."""
    workers: int = field(default=0, metadata=EXECUTION)


@dataclass(frozen=True)
class Result:
    """What was found."""

    num_frames: int
    unfinished: int
    """Relaxations that fused atoms or left all bounds."""
    relaxed_hash: str


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Relax each start and keep where it went."""
    jobs = [(inputs, i) for i in range(len(inputs.starts.value))]
    frames: list[Structure] = []
    unfinished = 0
    for i, (found, sane) in enumerate(run_all(relax_one, jobs, inputs.workers)):
        frames += [replace(f, info={**f.info, "run": i}) for f in found]
        unfinished += not sane
    if frames:
        write_structures(output / RELAXED, frames)
    say(
        f"{len(jobs)} relaxations" + (f", {unfinished} left all bounds" if unfinished else "")
        + f"; {len(frames)} frames"
    )  # fmt: skip
    return Result(len(frames), unfinished, structures_hash(frames))


def relax_one(job: tuple[Inputs, int]) -> tuple[list[Structure], bool]:
    """The last frame and the one half way to it, and whether all of the way was sane."""
    from mlff_distiller.calculator import StudentCalculator

    inputs, index = job
    start = inputs.starts.value[index]
    atoms = start.to_atoms(labels=False)
    atoms.calc = StudentCalculator(str(inputs.student.value), threads=1)
    path: list[Structure] = []
    sane = True
    minimiser = BFGS(atoms, logfile=None, maxstep=_STEP)
    try:
        for _ in minimiser.irun(fmax=_FMAX, steps=_STEPS):
            frame = replace(start, positions=atoms.get_positions(), forces=atoms.get_forces())
            sane = is_sane(frame, inputs.min_distance, inputs.max_force)
            if not sane:
                break
            path.append(frame)
    except (InputError, ArithmeticError, np.linalg.LinAlgError, ValueError):
        sane = False
    lengths = [float(np.linalg.norm(f.positions - start.positions)) for f in path]
    if not path or lengths[-1] == 0.0:
        return [], sane
    half = int(np.argmin(np.abs(np.array(lengths) - 0.5 * lengths[-1])))
    kept = dict.fromkeys([half, len(path) - 1])
    info = {**start.info, "source": SOURCE}
    return [unlabelled(path[i], info=info) for i in kept], sane


def starts_of(
    config: DistillConfig, start: Sequence[Structure], kinds: Sequence[Sequence[Structure]], k: int
) -> list[Structure]:
    """Structures that round ``k`` relaxes: new defects of the purpose, else frames of molecules.

    Args:
        config: the whole run.
        start: starting structures.
        kinds: training frames that dynamics can start from, by kind.
        k: number of the round.
    """
    number = config.loop.relaxations
    rng = np.random.default_rng([config.sampling.seed, 13, k])
    defects = [d for d in config.purpose.defects if d != "stacking"]
    if number and defects and any(map(is_crystal, start)):
        task = Task(
            start,
            min_distance=config.sampling.min_distance,
            # A vacuum is a wide gap between images: every teacher can label that.
            periodic_only=True,
        )
        wanted = replace(
            config.sampling.defects,
            number=number,
            kinds=defects,
            rattle_stdev=_RATTLE,
            seed=int(rng.integers(2**31)),
        )
        return [unlabelled(f, info=_origin(f)) for f in defect_frames(task, wanted)]
    pool = [s for kind in kinds for s in kind if s.info.get("source") == "molecule"]
    chosen = rng.permutation(len(pool))[:number]
    return [unlabelled(pool[i], info=_origin(pool[i])) for i in sorted(chosen)]


def _origin(frame: Structure) -> dict[str, object]:
    return {k: frame.info[k] for k in ("kind", "parent", "group") if k in frame.info}


def inputs_of(config: DistillConfig, student: Hashed[Path], starts: list[Structure]) -> Inputs:
    """Of one round."""
    return Inputs(
        student=student,
        starts=Hashed(starts, structures_hash(starts)),
        min_distance=config.sampling.min_distance,
        max_force=config.sampling.max_force,
        workers=config.teacher.workers,
    )


STATION = Station("relax", work, Result, [RELAXED])
