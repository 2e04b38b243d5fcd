"""[1] Starting structures -> ``frames.h5``, the structures to be labelled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import HDF5Writer, Structure, structures_hash
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station, identity
from mlff_distiller.progress import Progress
from mlff_distiller.sampling import PartialFrames, sample
from mlff_distiller.teachers import get_teacher

FRAMES = "frames.h5"
PARTIAL = "frames.partial.h5"  # of molecular dynamics, while it runs


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
    """Rattle the structures and run molecular dynamics with the teacher."""
    config = inputs.sampling
    calculator = None
    if config.num_md:
        teacher = get_teacher(inputs.teacher, device=inputs.device, **inputs.options)
        calculator = teacher.calculator
    rejected: Counter[str] = Counter()
    with PartialFrames(output / PARTIAL, identity(inputs)) as partial:
        if len(partial):
            say(f"{len(partial)} of {config.num_md} frames of molecular dynamics were done before")
        with Progress("molecular dynamics with the teacher") as bar:
            frames = sample(
                inputs.start.value,
                config,
                calculator,
                rejected=rejected,
                progress=bar.update,
                partial=partial,
            )
    (output / FRAMES).unlink(missing_ok=True)
    with HDF5Writer(output / FRAMES, seed=config.seed) as writer:
        writer.append(frames)
    partial.remove()
    kinds = Counter(str(s.info.get("source", "frame")) for s in frames)
    say(f"{len(frames)} frames: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    return Result(len(frames), dict(kinds), dict(rejected), structures_hash(frames))


STATION = Station("sample", work, Result, [FRAMES])
