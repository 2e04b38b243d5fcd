"""Random networks in which every parameter matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlff_distiller.config import ModelConfig
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

#: Quick to evaluate.
# The repulsion reaches into bonds, so that it acts in what the tests compare.
SMALL = ModelConfig(
    hidden_dim=16, num_interactions=2, num_rbf=8, cutoff=4.0, zbl=True, zbl_reach=1.0
)
ELEMENTS = (1, 6, 8)


def make_student(
    elements: Sequence[int] = ELEMENTS,
    config: ModelConfig = SMALL,
    *,
    seed: int = 3,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    energies: Sequence[float] | None = None,
    **changes: Any,
) -> StudentForceField:
    """A student with random weights.

    A fresh network has biases of zero and scales of one: a lost bias or scale would not show. Here
    they are random, and different for each element.

    Args:
        elements: in any order.
        config: of the network.
        seed: of its weights.
        dtype: of its weights.
        scale: multiplies its energies, reference energies apart.
        energies: reference energies, eV; by default -1.5 Z.
        changes: keys of ``config`` with other values.
    """
    torch.manual_seed(seed)
    if energies is None:
        energies = [-1.5 * z for z in elements]
    student = StudentForceField(replace(config, **changes), elements, energies)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0, 0.1)
        scales = torch.linspace(0.75, 1.1, len(elements) + 1)[1:]
        student.painn.scales.copy_(scale * scales)
    return student.to(dtype)


def export_to(
    directory: Path, seed: int = 0, elements: Sequence[int] = ELEMENTS, **config: Any
) -> tuple[StudentForceField, str]:
    """A student of the default size but for ``config``, and the path of its exported file."""
    student = make_student(elements, ModelConfig(**config), seed=seed, energies=_LARGE)
    path = directory / f"student-{seed}-{'-'.join(map(str, config.values()))}.pt"
    export_student(student, path)
    return student, str(path)


#: As of isolated atoms in eV: float32 sums of these would lose everything.
_LARGE = (-13.6, -1030.25, -2040.5)
