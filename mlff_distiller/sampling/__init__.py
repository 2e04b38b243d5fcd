"""Sampling: the structures that a teacher will label."""

from mlff_distiller.sampling.builtin import builtin, starting_structures, water_box
from mlff_distiller.sampling.choose import farthest_points, geometric_descriptors
from mlff_distiller.sampling.md import run_md
from mlff_distiller.sampling.partial import PartialFrames
from mlff_distiller.sampling.rattle import rattle_all, rattled
from mlff_distiller.sampling.sample import count_sources, knows_teacher, sample, teacher_frames
from mlff_distiller.sampling.walk import walk_frames

__all__ = [
    "PartialFrames",
    "builtin",
    "count_sources",
    "farthest_points",
    "geometric_descriptors",
    "knows_teacher",
    "rattle_all",
    "rattled",
    "run_md",
    "sample",
    "starting_structures",
    "teacher_frames",
    "walk_frames",
    "water_box",
]
