"""Errors of a student against the labels of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers

from mlff_distiller.data import Structure
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.energy_model import StudentModel
from mlff_distiller.training.losses import Residuals
from mlff_distiller.training.metrics import ErrorSums


def predict(
    model: StudentForceField | EnergyModel,
    structures: Sequence[Structure],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Structure]:
    """The structures with a model's energy, forces and stress in place of their labels.

    Args:
        model: a student, evaluated in its own dtype and on its own device; or any other model.
        structures: at least one.
        batch_size: structures evaluated together.
        progress: called with the number of structures done.

    Raises:
        InputError: the model gives something that is not finite, or another of its own reasons.
    """
    model = StudentModel(model) if isinstance(model, StudentForceField) else model
    labelled: list[Structure] = []
    for start in range(0, len(structures), batch_size):
        labelled += model.label(list(structures[start : start + batch_size]))
        for i, s in enumerate(labelled[start:], start):
            if not all(np.isfinite(v).all() for v in (s.energy, s.forces) if v is not None):
                raise InputError(
                    f"frame {i} of those evaluated ({s.formula}): the model gave a NaN or infinite "
                    "energy or force; 'mlff-distiller info DATA' names structures that make no "
                    "sense, such as two atoms at one point, and 'convert --drop-bad' leaves them out"
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
    sums = ErrorSums()
    sums.add(residuals_of(reference, predicted))
    errors = sums.metrics()
    result: dict[str, Any] = {
        "num_frames": len(reference),
        "num_atoms": int(sum(len(r) for r in reference)),
        **{key: errors[key] for key in errors if key != "per_element"},
        "force_r2": None,
        "force_relative_error": None,
        "per_element": errors["per_element"],
    }
    labelled = [r for r, p in zip(reference, predicted, strict=True) if _both(r, p, "forces")]
    if labelled:
        true = np.concatenate([r.forces for r in labelled if r.forces is not None]) * 1e3
        species = np.concatenate([r.atomic_numbers for r in labelled])
        # R² and the relative error compare the errors with the sizes of the labels.
        spread = float(((true - true.mean()) ** 2).mean())
        size = float(np.abs(true).mean())
        if spread > 0:
            result["force_r2"] = 1.0 - errors["force_rmse_mev_per_ang"] ** 2 / spread
        if size > 0:
            result["force_relative_error"] = errors["force_mae_mev_per_ang"] / size
        for symbol, element in result["per_element"].items():
            own = true[species == atomic_numbers[symbol]]
            element["mean_abs_force_mev_per_ang"] = float(np.abs(own).mean())
    return result


def residuals_of(reference: Sequence[Structure], predicted: Sequence[Structure]) -> Residuals:
    """``predicted`` minus ``reference`` where both have a label; see :class:`Residuals`."""
    pairs = list(zip(reference, predicted, strict=True))

    def differences(name: str) -> list[np.ndarray]:
        return [
            np.atleast_1d(np.asarray(getattr(p, name)) - np.asarray(getattr(r, name)))
            / (len(r) if name == "energy" else 1)
            for r, p in pairs
            if _both(r, p, name)
        ]

    numbers = [r.atomic_numbers for r, p in pairs if _both(r, p, "forces")]
    return Residuals(
        energy=_rows(differences("energy"), ()),
        forces=_rows(differences("forces"), (3,)),
        stress=_rows([d[None] for d in differences("stress")], (3, 3)),
        force_numbers=_rows(numbers, (), np.int64),
    )


def _both(reference: Structure, predicted: Structure, label: str) -> bool:
    return getattr(reference, label) is not None and getattr(predicted, label) is not None


def _rows(
    parts: Sequence[np.ndarray], shape: tuple[int, ...], dtype: type = np.float64
) -> torch.Tensor:
    return torch.as_tensor(np.concatenate([np.zeros((0, *shape), dtype), *parts]))
