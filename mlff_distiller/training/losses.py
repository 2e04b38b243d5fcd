"""What training minimises: squared errors of energy per atom, forces and stress.

With n_E, n_F, n_S the numbers of labelled energies, force components and stress components of a
batch, and weights w from the configuration:

    loss = w_E / n_E Σ (ΔE / n_atoms)²  +  w_F / n_F Σ ΔF²  +  w_S / n_S Σ ΔS²

A label that is missing counts neither in the sum nor in n; a quantity without any label drops out.
"""

from __future__ import annotations

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


def loss_weights(config: TrainingConfig, device: torch.device | str = "cpu") -> Tensor:
    """Weights of energy, forces and stress, (3,) float64."""
    weights = [config.energy_weight, config.force_weight, config.stress_weight]
    return torch.tensor(weights, dtype=torch.float64, device=device)


def weighted_loss(squared_sums: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """The loss, () float64, from sums of squares, numbers of labels and weights, each (3,)."""
    return (weights * squared_sums / counts.clamp(min=1.0)).sum()
