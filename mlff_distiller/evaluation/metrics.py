"""Errors of a student against the labels of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mlff_distiller.data import Structure, collate
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA


def predict(
    student: StudentForceField,
    structures: Sequence[Structure],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Structure]:
    """The structures with the student's energy, forces and stress in place of their labels.

    Args:
        student: evaluated in its own dtype, on its own device.
        structures: at least one.
        batch_size: structures evaluated together.
        progress: called with the number of structures done.
    """
    parameter = next(student.parameters())
    labelled: list[Structure] = []
    for start in range(0, len(structures), batch_size):
        part = list(structures[start : start + batch_size])
        batch = collate(part, student.cutoff, parameter.dtype).to(parameter.device)
        result = student.compute(batch)
        splits = np.cumsum([len(s) for s in part])[:-1]
        forces = np.split(result["forces"].cpu().to(torch.float64).numpy(), splits)
        energy = result["energy"].cpu().tolist()
        stress = result["stress"].cpu().to(torch.float64).numpy()
        for i, structure in enumerate(part):
            labelled.append(
                structure.with_labels(
                    energy[i], forces[i], stress[i] if structure.pbc.all() else None
                )
            )
        if progress is not None:
            progress(len(labelled))
    return labelled


def accuracy(reference: Sequence[Structure], predicted: Sequence[Structure]) -> dict[str, Any]:
    """Mean absolute and root-mean-square errors of ``predicted`` against ``reference``.

    Errors of energies are per atom (meV/atom), of forces per component (meV/Å), of stresses per
    component of the 3x3 tensor (GPa). What no reference frame has a label for is None.

    Raises:
        InputError: no frames, or frames that do not belong together.
    """
    if not reference or len(reference) != len(predicted):
        raise InputError(
            "accuracy needs as many predicted as reference frames and at least one, got "
            f"{len(predicted)} and {len(reference)}"
        )
    energy: list[float] = []
    forces, magnitudes, numbers, stress = [], [], [], []
    for r, p in zip(reference, predicted, strict=True):
        if r.energy is not None and p.energy is not None:
            energy.append((p.energy - r.energy) / len(r) * 1e3)
        if r.forces is not None and p.forces is not None:
            forces.append((p.forces - r.forces) * 1e3)
            magnitudes.append(r.forces * 1e3)
            numbers.append(r.atomic_numbers)
        if r.stress is not None and p.stress is not None:
            stress.append((p.stress - r.stress) * EV_PER_ANGSTROM3_IN_GPA)
    result: dict[str, Any] = {
        "num_frames": len(reference),
        "num_atoms": int(sum(len(r) for r in reference)),
        "energy_mae_mev_per_atom": _mae(energy),
        "energy_rmse_mev_per_atom": _rmse(energy),
        "force_mae_mev_per_ang": _mae(forces),
        "force_rmse_mev_per_ang": _rmse(forces),
        "stress_mae_gpa": _mae(stress),
        "stress_rmse_gpa": _rmse(stress),
        "force_r2": None,
        "force_relative_error": None,
        "per_element": {},
    }
    if forces:
        error, true = np.concatenate(forces), np.concatenate(magnitudes)
        species = np.concatenate(numbers)
        spread = float(((true - true.mean()) ** 2).sum())
        result["force_r2"] = 1.0 - float((error**2).sum()) / spread if spread > 0 else None
        size = float(np.abs(true).mean())
        result["force_relative_error"] = float(np.abs(error).mean()) / size if size > 0 else None
        result["per_element"] = {
            chemical_symbols[z]: {
                "num_atoms": int((species == z).sum()),
                "force_mae_mev_per_ang": _mae([error[species == z]]),
                "force_rmse_mev_per_ang": _rmse([error[species == z]]),
                "mean_abs_force_mev_per_ang": float(np.abs(true[species == z]).mean()),
            }
            for z in sorted({int(z) for z in species})
        }
    return result


def _flat(errors: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(e) for e in errors])


def _mae(errors: Sequence[Any]) -> float | None:
    return float(np.abs(_flat(errors)).mean()) if len(errors) else None


def _rmse(errors: Sequence[Any]) -> float | None:
    return float(np.sqrt((_flat(errors) ** 2).mean())) if len(errors) else None
