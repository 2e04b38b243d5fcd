"""Errors of a student against labels, gathered batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ase.data import chemical_symbols

from mlff_distiller.config import TrainingConfig
from mlff_distiller.data import Batch, Structure, collate
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.training.losses import QUANTITIES, Loss, Residuals, residuals
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

#: Name in the metrics and size of 1 eV/atom, 1 eV/Å, 1 eV/Å^3 in their units.
REPORTED = {
    "energy": ("energy_{}_mev_per_atom", 1e3),
    "forces": ("force_{}_mev_per_ang", 1e3),
    "stress": ("stress_{}_gpa", EV_PER_ANGSTROM3_IN_GPA),
}


class ErrorSums:
    """Running sums from which mean absolute and root-mean-square errors follow.

    One table, so that several processes can add theirs up: rows are energy, forces, stress and
    then the forces on each element; columns are Σ|r|, Σr², the number of components and, of the
    first three rows, the sum that the loss divides by it.

    Args:
        device: of the table.
        loss: whose sums are gathered; None for none.
    """

    def __init__(self, device: torch.device | str = "cpu", loss: Loss | None = None) -> None:
        self.table = torch.zeros(3 + MAX_Z + 1, 4, dtype=torch.float64, device=device)
        self._loss = loss

    def add(self, found: Residuals) -> None:
        """Take in the residuals of one batch."""
        for row, values in enumerate((found.energy, found.forces, found.stress)):
            flat = values.detach().to(torch.float64).reshape(-1)
            self.table[row, :3] += torch.stack(
                [flat.abs().sum(), (flat * flat).sum(), flat.new_tensor(float(flat.numel()))]
            )
        if self._loss is not None:
            self.table[:3, 3] += self._loss.sums(found).detach()
        forces = found.forces.detach().to(torch.float64)
        per_atom = torch.stack(
            [forces.abs().sum(1), (forces * forces).sum(1), torch.full_like(forces[:, 0], 3.0)], 1
        )
        self.table[:, :3].index_add_(0, found.force_numbers + 3, per_atom)

    def loss(self) -> float:
        """The loss over everything taken in; NaN where none was given."""
        if self._loss is None:
            return math.nan
        return float(self._loss.value(self.table[:3, 3], self.table[:3, 2]))

    def mae(self, quantity: str) -> float:
        """Mean absolute error of ``energy`` (eV/atom), ``forces`` or ``stress``; NaN without labels."""
        total, _, count = self.table[QUANTITIES.index(quantity), :3].tolist()
        return total / count if count else float("nan")

    def rmse(self, quantity: str) -> float:
        """Root-mean-square error, as :meth:`mae`."""
        _, total, count = self.table[QUANTITIES.index(quantity), :3].tolist()
        return (total / count) ** 0.5 if count else float("nan")

    def metrics(self) -> dict[str, Any]:
        """Errors in meV/atom, meV/Å and GPa, forces per element too; None without labels."""
        result: dict[str, Any] = {}
        for quantity, (name, unit) in REPORTED.items():
            for kind, error in (("mae", self.mae(quantity)), ("rmse", self.rmse(quantity))):
                result[name.format(kind)] = error * unit if error == error else None
        rows = self.table.tolist()
        result["per_element"] = {
            chemical_symbols[z]: {
                "num_atoms": round(rows[3 + z][2] / 3),
                "force_mae_mev_per_ang": rows[3 + z][0] / rows[3 + z][2] * 1e3,
                "force_rmse_mev_per_ang": (rows[3 + z][1] / rows[3 + z][2]) ** 0.5 * 1e3,
            }
            for z in range(1, MAX_Z + 1)
            if rows[3 + z][2]
        }
        return result


def score(metrics: Mapping[str, Any], config: TrainingConfig) -> float:
    """What the best epoch has the least of: the geometric mean of the mean absolute errors.

    Of energy, forces and stress, as far as they have labels and a weight. The loss would not do: its
    squares are decided by a few atoms with large forces, on which a student gets worse, while the
    rest gets better, as soon as it fits the training frames closely. A fit whose energies were a
    fifth of those of the epoch with the least loss was thrown away for that.

    Args:
        metrics: see :meth:`ErrorSums.metrics`; empty for no epoch yet, which every other beats.
        config: whose weights count.
    """
    if not metrics:
        return math.inf
    weights = (config.energy_weight, config.force_weight, config.stress_weight)
    names = (REPORTED[quantity][0].format("mae") for quantity in QUANTITIES)
    errors = [
        metrics[n] for n, w in zip(names, weights, strict=True) if w and metrics[n] is not None
    ]
    return math.prod(errors) ** (1.0 / len(errors)) if errors else 0.0


def error_sums(
    student: StudentForceField,
    batches: Iterable[Batch],
    *,
    loss: Loss | None = None,
    after_batch: Callable[[], None] | None = None,
) -> ErrorSums:
    """Errors of a student over labelled batches in its own dtype and on its own device.

    Args:
        student: the model.
        batches: labelled.
        loss: gathered as well.
        after_batch: called after each; may raise to stop.
    """
    sums = ErrorSums(student.reference_energies.device, loss)
    for batch in batches:
        result = student.compute(batch, stress=bool(batch.has_stress.any()))
        sums.add(residuals(result, batch))
        if after_batch is not None:
            after_batch()
    return sums


def evaluate(
    student: StudentForceField, structures: Sequence[Structure], batch_size: int = 8
) -> dict[str, Any]:
    """Errors of a student over labelled structures.

    Args:
        student: evaluated in its own dtype, on its own device.
        structures: labelled structures or an ``HDF5Dataset``; missing labels are left out.
        batch_size: structures evaluated together.

    Returns:
        ``energy_mae_mev_per_atom``, ``force_mae_mev_per_ang``, ``stress_mae_gpa``, the same with
        ``rmse``, ``per_element`` and ``num_frames``; None where there is no label.

    Raises:
        InputError: no structures, or an element that the student does not know.
    """
    if len(structures) == 0:
        raise InputError("evaluate needs at least one structure, got none; check the split")
    parameter = next(student.parameters())
    batches = (
        collate(structures[i : i + batch_size], student.cutoff, parameter.dtype).to(
            parameter.device
        )
        for i in range(0, len(structures), batch_size)
    )
    return {"num_frames": len(structures), **error_sums(student, batches).metrics()}
