"""[1] Starting structures -> ``frames.h5``, the structures to be labelled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import Structure, structures_hash, write_structures
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station, identity
from mlff_distiller.progress import Progress
from mlff_distiller.sampling import (
    PartialFrames,
    count_sources,
    knows_teacher,
    sample,
    teacher_frames,
)
from mlff_distiller.teachers import get_teacher

FRAMES = "frames.h5"
PARTIAL = "frames.partial.h5"  # what takes calls of the teacher, while it is made


@dataclass(frozen=True)
class Inputs:
    """What the frames depend on."""

    start: Hashed[list[Structure]]
    sampling: SamplingConfig
    teacher: str
    options: dict[str, Any]
    device: str = field(default="cpu", metadata=EXECUTION)


@dataclass(frozen=True)
class Result:
    """What was made."""

    num_frames: int
    sources: dict[str, int]
    """Kind -> number of frames."""
    rejected: dict[str, int]
    """Reason -> number of frames."""
    frames_hash: str


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Make frames of every kind that the settings ask for, with the teacher where it takes one."""
    config = inputs.sampling
    teacher = None
    if knows_teacher(config):
        teacher = get_teacher(inputs.teacher, device=inputs.device, **inputs.options)
    total = teacher_frames(config)
    rejected: Counter[str] = Counter()
    with PartialFrames(output / PARTIAL, identity(inputs)) as partial:
        if len(partial):
            say(f"{len(partial)} of {total} frames that take the teacher were done before")
        with Progress("sampling with the teacher") as bar:
            frames = sample(
                inputs.start.value,
                config,
                getattr(teacher, "calculator", None),
                periodic_only=getattr(teacher, "periodic_only", False),
                elements=getattr(teacher, "elements", None),
                rejected=rejected,
                progress=bar.update,
                partial=partial,
            )
    write_structures(output / FRAMES, frames, seed=config.seed)
    partial.remove()
    kinds = count_sources(frames)
    say(f"{len(frames)} frames: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for reason, count in rejected.items():
        say(f"not sampled: {count} x {reason}")
    return Result(len(frames), kinds, dict(rejected), structures_hash(frames))


STATION = Station("sample", work, Result, [FRAMES])
