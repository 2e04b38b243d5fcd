"""From a few structures to many: rattle, strain and molecular dynamics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from ase.calculators.calculator import Calculator

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data.structure import Structure, check_constraints, check_structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.md import run_md
from mlff_distiller.sampling.partial import PartialFrames
from mlff_distiller.sampling.rattle import rattle_all

# With fewer starting structures than this, one family per structure could not fill three splits.
FAMILIES = 10


def sample(
    base: Sequence[Structure],
    config: SamplingConfig,
    calculator: Calculator | None = None,
    *,
    rejected: Counter[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: PartialFrames | None = None,
) -> list[Structure]:
    """Make structures to be labelled; the same input and seed give the same output.

    ``info["group"]`` of a frame names its relatives, which a split keeps on one side. With ten or
    more starting structures it is the group of the starting structure, so that no descendant of
    a training structure is tested. With fewer, each rattled copy and each segment of a trajectory
    is a group of its own: the test then measures interpolation around the same start.

    Args:
        base: starting structures.
        config: how many of which kind.
        calculator: for molecular dynamics; not needed when ``config.num_md`` is 0.
        rejected: counts what was left out, by reason.
        progress: called with (frames, total) during molecular dynamics.
        partial: where finished segments of molecular dynamics are kept; with it an interrupted
            call goes on where it stopped, to the same frames.

    Returns:
        unlabelled structures, rattled copies first.

    Raises:
        InputError: nothing to start from, nothing to do, no calculator for molecular dynamics, or
            every frame was rejected.
    """
    rejected = Counter() if rejected is None else rejected
    if not base:
        raise InputError("sampling needs at least one starting structure, got none")
    for i, s in enumerate(base):
        check_structure(s, f"starting structure {i}")
        check_constraints(s, f"starting structure {i}")
    if config.num_rattle + config.num_md == 0:
        raise InputError(
            "sampling has nothing to do with num_rattle = 0 and num_md = 0; set one of them"
        )
    if config.num_md and calculator is None:
        raise InputError(
            f"molecular dynamics ({config.num_md} frames) needs a calculator, got none; name a "
            "teacher, or set sampling.num_md to 0"
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
    if config.num_md and calculator is not None:
        frames += run_md(
            base, calculator, config, rejected=rejected, progress=progress, partial=partial
        )
    if not frames:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in rejected.items())
        raise InputError(
            f"every sampled frame was rejected ({reasons}); use smaller displacements or lower "
            "temperatures"
        )
    return [_with_group(s, base) for s in frames]


def _with_group(frame: Structure, base: Sequence[Structure]) -> Structure:
    info = dict(frame.info)
    member = info.pop("member")
    parent = int(info["parent"])
    family = str(base[parent].info.get("group", f"base-{parent}"))
    families = {str(s.info.get("group", f"base-{i}")) for i, s in enumerate(base)}
    if len(families) < FAMILIES:
        family = f"{family}/{info['source']}-{member}"
    return replace(frame, info={**info, "group": family})
