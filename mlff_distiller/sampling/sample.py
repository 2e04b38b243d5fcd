"""From a few structures to many: every kind of sampling that the settings ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ase.calculators.calculator import Calculator

from mlff_distiller.data.structure import Structure, check_constraints, check_structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.choose import farthest_points, geometric_descriptors
from mlff_distiller.sampling.defect_frames import defect_frames
from mlff_distiller.sampling.dimers import dimer_frames, isolated_atoms
from mlff_distiller.sampling.md import run_md
from mlff_distiller.sampling.melt import melt_frames
from mlff_distiller.sampling.modes import mode_frames
from mlff_distiller.sampling.molecule_frames import molecule_frames
from mlff_distiller.sampling.partial import PartialFrames
from mlff_distiller.sampling.rattle import rattle_all
from mlff_distiller.sampling.strain import strain_frames
from mlff_distiller.sampling.task import Task
from mlff_distiller.sampling.walk import walk_frames

if TYPE_CHECKING:  # its sections are those of the kinds of sampling
    from mlff_distiller.config import SamplingConfig

# With fewer starting structures than this, one family per structure could not fill three splits.
FAMILIES = 10
#: Sections of ``sampling`` with a number of frames, and those of them that ask the teacher.
SECTIONS = ("strain", "dimers", "defects", "molecules", "modes", "walk", "melt")
DRIVEN = ("modes", "walk", "melt")
NEAR_COPY = "near copies (sampling.keep)"
_WITH_KINDS = ("strain", "dimer", "defect", "molecule", "melt")


def sample(
    base: Sequence[Structure],
    config: SamplingConfig,
    calculator: Calculator | None = None,
    *,
    periodic_only: bool = False,
    elements: Collection[int] | None = None,
    rejected: Counter[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: PartialFrames | None = None,
) -> list[Structure]:
    """Make structures to be labelled; the same input and seed give the same output.

    ``info["group"]`` of a frame names its relatives, which a split keeps on one side. With ten or
    more starting structures it is the group of the starting structure, so that no descendant of
    a training structure is tested. With fewer, each rattled copy, each segment of a trajectory and
    each walk is a group of its own: the test then measures interpolation around the same start.

    Args:
        base: starting structures.
        config: how many of which kind.
        calculator: for what moves with forces; see :func:`teacher_frames`.
        periodic_only: the teacher needs three periodic directions; dimers and lone atoms get a
            large cell.
        elements: those that the teacher knows, where that is known.
        rejected: counts what was left out, by reason.
        progress: called with (frames, total) of those that take calls of the teacher.
        partial: where finished pieces of those are kept; with it an interrupted call goes on where
            it stopped, to the same frames.

    Returns:
        unlabelled structures, rattled copies first.

    Raises:
        InputError: nothing to start from, nothing to do, no calculator for what needs one, a kind
            that suits none of the starting structures, or every frame was rejected.
    """
    rejected = Counter() if rejected is None else rejected
    _check(base, config, calculator, periodic_only)
    total, done = teacher_frames(config), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    task = Task(
        base,
        seed=config.seed,
        min_distance=config.min_distance,
        max_force=config.max_force,
        box=config.box,
        calculator=calculator,
        periodic_only=periodic_only,
        elements=elements,
        rejected=rejected,
        partial=partial,
        step=step,
    )
    frames = rattle_all(
        base,
        config.num_rattle,
        stdevs=config.rattle_stdev,
        max_strain=config.max_strain,
        min_distance=config.min_distance,
        seed=config.seed,
        rejected=rejected,
    )
    frames += strain_frames(task, config.strain)
    frames += dimer_frames(task, config.dimers)
    frames += defect_frames(task, config.defects)
    frames += molecule_frames(task, config.molecules)
    frames += isolated_atoms(task) if config.isolated_atoms else []
    frames += mode_frames(task, config.modes)
    frames += walk_frames(task, config.walk)
    if config.num_md and calculator is not None:
        frames += run_md(
            base,
            calculator,
            config,
            rejected=rejected,
            progress=lambda *_: step(),
            partial=partial,
        )
    frames += melt_frames(task, config.melt, config.md_timestep)
    if not frames:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in rejected.items())
        raise InputError(
            f"every sampled frame was rejected ({reasons}); use smaller displacements or lower "
            "temperatures"
        )
    grouped = [_with_group(s, base) for s in frames]
    return _without_copies(grouped, config.keep, rejected)


def teacher_frames(config: SamplingConfig) -> int:
    """Frames whose making takes calls of the teacher; 0: no calculator is needed."""
    return config.num_md + sum(getattr(config, name).number for name in DRIVEN)


def knows_teacher(config: SamplingConfig) -> bool:
    """Whether frames depend on the teacher: its forces, its elements or its need of a cell."""
    return bool(
        teacher_frames(config)
        or config.isolated_atoms
        or any(getattr(config, name).number for name in SECTIONS if name != "strain")
    )


def count_sources(frames: Sequence[Structure]) -> dict[str, int]:
    """Kind of sampling -> number of frames, as ``rattle`` or ``defect (vacancy)``."""
    names = []
    for s in frames:
        source, kind = str(s.info.get("source", "frame")), s.info.get("kind")
        names.append(f"{source} ({kind})" if kind and source in _WITH_KINDS else source)
    return dict(Counter(names))


def _check(
    base: Sequence[Structure],
    config: SamplingConfig,
    calculator: Calculator | None,
    periodic_only: bool,
) -> None:
    if not base:
        raise InputError("sampling needs at least one starting structure, got none")
    for i, s in enumerate(base):
        check_structure(s, f"starting structure {i}")
        check_constraints(s, f"starting structure {i}")
    numbers = [getattr(config, name).number for name in SECTIONS]
    if config.num_rattle + config.num_md + sum(numbers) == 0 and not config.isolated_atoms:
        raise InputError(
            "sampling has nothing to do with num_rattle = 0 and num_md = 0; set one of them"
        )
    open_one = next((s for s in base if not s.pbc.all()), None)
    if periodic_only and open_one is not None and (config.num_rattle or teacher_frames(config)):
        raise InputError(
            f"the teacher needs three periodic directions, got {open_one.formula} with pbc "
            f"{open_one.pbc.tolist()}; put it into a cell, or leave only dimers, isolated_atoms and "
            "molecules in sampling"
        )
    if calculator is not None or not teacher_frames(config):
        return
    if config.num_md:
        raise InputError(
            f"molecular dynamics ({config.num_md} frames) needs a calculator, got none; name a "
            "teacher, or set sampling.num_md to 0"
        )
    driven = next(name for name in DRIVEN if getattr(config, name).number)
    raise InputError(
        f"sampling.{driven} ({getattr(config, driven).number} frames) needs a calculator, got "
        f"none; name a teacher, or set sampling.{driven}.number to 0"
    )


def _with_group(frame: Structure, base: Sequence[Structure]) -> Structure:
    info = dict(frame.info)
    member = info.pop("member")
    if info["source"] == "dimer":
        # All pairs in one group, which training gets because it must have every kind: errors of
        # pairs that are pushed together say nothing about the conditions of a test.
        member = "all"
    if "parent" not in info:  # made of elements alone
        return replace(frame, info={**info, "group": f"{info['source']}-{member}"})
    parent = int(info["parent"])
    family = str(base[parent].info.get("group", f"base-{parent}"))
    families = {str(s.info.get("group", f"base-{i}")) for i, s in enumerate(base)}
    if len(families) < FAMILIES:
        family = f"{family}/{info['source']}-{member}"
    return replace(frame, info={**info, "group": family})


def _without_copies(
    frames: list[Structure], keep: float, rejected: Counter[str]
) -> list[Structure]:
    """The share ``keep`` of the frames that are farthest from each other, in their order."""
    number = max(1, round(keep * len(frames)))
    if number >= len(frames):
        return frames
    chosen = farthest_points(geometric_descriptors(frames), number)
    lone = {i for i, s in enumerate(frames) if s.info["source"] == "isolated-atom"}
    kept = sorted(lone.union(int(i) for i in chosen))
    rejected[NEAR_COPY] += len(frames) - len(kept)
    return [frames[i] for i in kept]
