"""What training minimises: errors of energy per atom, forces and stress.

With n_E, n_F, n_S the numbers of labelled energies, force components and stress components of a
batch, and weights w from the configuration:

    loss = w_E / n_E Σ h(ΔE / n_atoms)  +  w_F / n_F Σ h(ΔF)  +  w_S / n_S Σ h(ΔS)

The sums run over structures, atoms and structures. ``h(x) = |x|²`` up to ``|x| = δ`` and
``δ (2 |x| - δ)`` beyond (Huber 1964, doi:10.1214/aoms/1177703732), with the length of a force
vector and the Frobenius norm of a stress, so that the loss does not depend on how the axes lie.
Small errors count as squares; a few frames with forces of tens of eV/Å do not decide the fit.

A label that is missing counts neither in the sum nor in n; a quantity without any label drops out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlff_distiller.config import TrainingConfig
from mlff_distiller.data import Batch

QUANTITIES = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Residuals:
    """Student minus teacher where the teacher has a label.

    Attributes:
        energy: (n_energies,) float64, eV per atom.
        forces: (n_atoms, 3), eV/Å.
        stress: (n_stresses, 3, 3), eV/Å^3; only of periodic structures whose cell has a volume.
        force_numbers: (n_atoms,), atomic numbers of the rows of ``forces``.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    force_numbers: Tensor

    def counts(self) -> Tensor:
        """Numbers n_E, n_F, n_S, (3,) float64."""
        sizes = [getattr(self, name).numel() for name in QUANTITIES]
        return torch.tensor(sizes, dtype=torch.float64, device=self.energy.device)

    def squared_sums(self) -> Tensor:
        """Sums of squares of the three residuals, (3,) float64, differentiable."""
        # Multiplied in their own type and summed in float64: the loss must not lose small terms.
        sums = [(r * r).sum(dtype=torch.float64) for r in (self.energy, self.forces, self.stress)]
        return torch.stack(sums)


def residuals(result: Mapping[str, Tensor], batch: Batch) -> Residuals:
    """Compare ``StudentForceField.compute`` with the labels of its batch.

    Args:
        result: with ``energy`` (B,), ``forces`` (N, 3) and, unless no structure has a stress
            label, ``stress`` (B, 3, 3).
        batch: the labels. Energies are differenced in float64, so totals of large systems lose
            nothing.
    """
    energy = (result["energy"] - batch.energy) / batch.num_atoms
    forces = result["forces"] - batch.forces
    numbers = batch.atomic_numbers
    if not bool(batch.has_energy.all()):
        energy = energy[batch.has_energy]
    if not bool(batch.has_forces.all()):
        rows = batch.has_forces[batch.structure_index]
        forces, numbers = forces[rows], numbers[rows]
    has_stress = batch.has_stress & batch.has_volume
    if "stress" in result and bool(has_stress.any()):
        stress = (result["stress"] - batch.stress)[has_stress]
    else:
        stress = batch.stress[:0]
    return Residuals(energy, forces, stress, numbers)


@dataclass(frozen=True)
class Loss:
    """The loss of the module's description.

    Attributes:
        weights: of energy, forces and stress, (3,) float64.
        deltas: δ of each, in eV/atom, eV/Å and eV/Å^3; infinite for squares alone.
    """

    weights: Tensor
    deltas: tuple[float, float, float] = (math.inf, math.inf, math.inf)

    @staticmethod
    def of(config: TrainingConfig, device: torch.device | str = "cpu") -> Loss:
        """The loss that a configuration asks for."""
        weights = [config.energy_weight, config.force_weight, config.stress_weight]
        energy, force, stress = (
            delta or math.inf
            for delta in (config.energy_huber, config.force_huber, config.stress_huber)
        )
        tensor = torch.tensor(weights, dtype=torch.float64, device=device)
        return Loss(tensor, (energy, force, stress))

    def sums(self, found: Residuals) -> Tensor:
        """Sums of h over the three residuals, (3,) float64, differentiable."""
        parts = (found.energy.unsqueeze(-1), found.forces, found.stress.flatten(1))
        return torch.stack([_huber(p, d) for p, d in zip(parts, self.deltas, strict=True)])

    def value(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss, () float64, from :meth:`sums` and numbers of labels, each (3,)."""
        return (self.weights * sums / counts.clamp(min=1.0)).sum()


def _huber(rows: Tensor, delta: float) -> Tensor:
    """Sum of h over the lengths of rows (n, d), () float64."""
    # Multiplied in their own type and summed in float64: the loss must not lose small terms.
    squares = (rows * rows).sum(dim=-1)
    if math.isinf(delta):
        return squares.sum(dtype=torch.float64)
    large = squares > delta * delta
    # No root of zero, whose slope is infinite, is ever taken.
    lengths = torch.sqrt(torch.where(large, squares, torch.ones_like(squares)))
    values = torch.where(large, delta * (2.0 * lengths - delta), squares)
    return values.sum(dtype=torch.float64)
