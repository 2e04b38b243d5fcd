"""What is right: autograd through the Python network, float64, with the pure-torch neighbour list.

It shares neither kernels nor neighbour search nor message passing with the compiled engines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from mlff_distiller.models import StudentForceField
from mlff_distiller.ops.reference import neighbor_list_reference


def arbiter(student: StudentForceField, numbers, positions, cell, pbc) -> dict[str, Any]:
    """As ``NativePotential.compute``: by gradients with respect to the edge vectors."""
    student = student.to(torch.float64)
    z, x = torch.as_tensor(numbers, dtype=torch.int64), torch.tensor(positions)
    box, periodic = torch.tensor(cell), torch.as_tensor(pbc)
    edge_index, shifts = neighbor_list_reference(x, box, periodic, student.cutoff)
    vectors = x[edge_index[0]] - x[edge_index[1]] + shifts.to(x.dtype) @ box
    vectors.requires_grad_(True)
    energies = student.atomic_energies(z, edge_index, vectors)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, allow_unused=True)
    gradient = torch.zeros_like(vectors) if gradient is None else gradient
    forces = torch.zeros_like(x).index_add(0, edge_index[1], gradient)
    forces = forces.index_add(0, edge_index[0], -gradient)
    virial = -torch.einsum("ea,eb->ab", vectors.detach(), gradient)
    return {
        "energy": energies.sum().item(),
        "energies": energies.detach().numpy(),
        "forces": forces.numpy(),
        "virial": (0.5 * (virial + virial.T)).numpy(),
    }


def direct(student: StudentForceField, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and strain gradient (eV) by autograd through ``forward``."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    symmetric = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.T)
    cell = torch.tensor(atoms.cell.array)
    energy = student(
        torch.tensor(atoms.numbers), x @ symmetric, cell @ symmetric, torch.tensor(atoms.pbc)
    )
    if not energy.requires_grad:
        return energy.item(), np.zeros((len(atoms), 3)), np.zeros((3, 3))
    gradient, strain_gradient = torch.autograd.grad(energy, (x, strain), allow_unused=True)
    zero = torch.zeros(3, 3)
    strain_gradient = zero if strain_gradient is None else strain_gradient
    forces = torch.zeros_like(x) if gradient is None else -gradient
    return energy.item(), forces.numpy(), strain_gradient.numpy()
