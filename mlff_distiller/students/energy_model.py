"""Students as :class:`~mlff_distiller.energy_model.EnergyModel`: in memory, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_distiller.data import Structure, collate
from mlff_distiller.energy_model import EnergyModel, Labels
from mlff_distiller.lattice import stress_volume
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.potential import open_potential
from mlff_distiller.students.student import StudentForceField


class StudentModel(EnergyModel):
    """A student in memory, evaluated in its own dtype and on its own device.

    Args:
        student: the network.
        name: of the model.
    """

    def __init__(self, student: StudentForceField, name: str = "student") -> None:
        self.name = name
        self.student = student
        self.elements = frozenset(student.elements)
        self.cutoff = student.cutoff

    def compute(self, structure: Structure) -> Labels:
        """Energy, forces and, of a structure with a volume, stress."""
        return self._compute([structure])[0]

    def label(self, structures: Sequence[Structure]) -> list[Structure]:
        """All structures as one batch."""
        pairs = zip(structures, self._compute(structures), strict=True)
        return [structure.with_labels(*labels) for structure, labels in pairs]

    def _compute(self, structures: Sequence[Structure]) -> list[Labels]:
        parameter = next(self.student.parameters())
        batch = collate(structures, self.student.cutoff, parameter.dtype).to(parameter.device)
        result = {k: v.cpu().to(torch.float64) for k, v in self.student.compute(batch).items()}
        splits = np.cumsum([len(s) for s in structures])[:-1]
        forces = np.split(result["forces"].numpy(), splits)
        energy, stress = result["energy"].tolist(), result["stress"].numpy()
        return [
            Labels(energy[i], forces[i], stress[i] if stress_volume(s.cell, s.pbc) else None)
            for i, s in enumerate(structures)
        ]


class ExportedModel(EnergyModel):
    """An exported student, evaluated by any of its back ends.

    Args:
        path: the ``.pt`` file.
        name: of the model; that of the file when left out.
        options: of :func:`~mlff_distiller.students.potential.open_potential`.

    Raises:
        InputError: see ``open_potential``.
    """

    def __init__(self, path: str | Path, name: str | None = None, **options: Any) -> None:
        metadata = read_metadata(path)
        self.name = name or Path(path).name
        self.elements = frozenset(metadata["elements"])
        self.cutoff = float(metadata["cutoff"])
        self._potential = open_potential(path, **options)

    def compute(self, structure: Structure) -> Labels:
        """Energy, forces and, of a structure with a volume, stress."""
        s = structure
        out = self._potential.compute(s.atomic_numbers, s.positions, s.cell, s.pbc)
        volume = stress_volume(s.cell, s.pbc)
        stress = -out["virial"] / volume if volume else None
        return Labels(out["energy"], out["forces"], stress)
