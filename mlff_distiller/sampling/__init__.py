"""Sampling: the structures that a teacher will label."""

from mlff_distiller.sampling.builtin import builtin, starting_structures, water_box
from mlff_distiller.sampling.md import run_md
from mlff_distiller.sampling.partial import PartialFrames
from mlff_distiller.sampling.rattle import rattle_all, rattle_relax_repeat, rattled
from mlff_distiller.sampling.sample import sample

__all__ = [
    "PartialFrames",
    "builtin",
    "rattle_all",
    "rattle_relax_repeat",
    "rattled",
    "run_md",
    "sample",
    "starting_structures",
    "water_box",
]
