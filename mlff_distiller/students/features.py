"""Environments of atoms as a student knows them: what its last layer sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mlff_distiller.data import Structure, collate
from mlff_distiller.ops.neighbors import edge_vectors
from mlff_distiller.students.student import StudentForceField


@torch.no_grad()
def features_of(
    student: StudentForceField, structures: Sequence[Structure], batch_size: int = 8
) -> list[np.ndarray]:
    """Input of the last, linear layer for each atom.

    Args:
        student: evaluated in its own dtype and on its own device.
        structures: any number.
        batch_size: structures evaluated together.

    Returns:
        (n_atoms, readout_dim) float64 for each structure.
    """
    parameter = student.painn.embedding.weight
    result: list[np.ndarray] = []
    for start in range(0, len(structures), batch_size):
        some = structures[start : start + batch_size]
        batch = collate(some, student.cutoff, parameter.dtype).to(parameter.device)
        vectors = edge_vectors(
            batch.positions, batch.cell, batch.edge_index, batch.shifts, batch.structure_index
        )
        found = student.painn.features(
            student.species(batch.atomic_numbers), batch.edge_index, vectors.to(parameter.dtype)
        )
        ends = np.cumsum([len(s) for s in some])[:-1]
        result += np.split(found.double().cpu().numpy(), ends)
    return result
