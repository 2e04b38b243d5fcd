"""Exported students, systems and the autograd arbiter for the tests of the native engine."""

import numpy as np
import torch

from mlff_distiller.config import ModelConfig
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField
from mlff_distiller.ops.reference import neighbor_list_reference

ELEMENTS = (1, 6, 8)


def student_of(seed=0, **config):
    """Float64 student with random weights, biases included."""
    torch.manual_seed(seed)
    student = StudentForceField(ModelConfig(**config), list(ELEMENTS), [-13.6, -1030.25, -2040.5])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1)
        student.painn.scales.copy_(torch.tensor([1.0, 0.8, 1.1]))
    return student.to(torch.float64)


def export_to(directory, seed=0, **config):
    """Student and the path of its exported file."""
    student = student_of(seed, **config)
    path = directory / f"student-{seed}-{'-'.join(map(str, config.values()))}.pt"
    export_student(student, path)
    return student, str(path)


def spread_out(fractions, cell, pbc, distance):
    """Random points of a box, some thrown out until all are ``distance`` apart."""
    kept = []
    images = [
        np.array(s)
        for s in np.ndindex(3, 3, 3)
        if all(p or k == 1 for p, k in zip(pbc, s, strict=True))
    ]
    for fraction in fractions:
        others = np.array([f + s - 1 for f in kept for s in images]).reshape(-1, 3)
        if len(others) == 0 or np.linalg.norm((others - fraction) @ cell, axis=1).min() > distance:
            kept.append(fraction)
    return np.array(kept)


def random_system(n, size, pbc, seed=0, skew=0.15, distance=1.0):
    """(atomic_numbers, positions, cell, pbc) with up to n atoms, none closer than ``distance``."""
    rng = np.random.default_rng(seed)
    cell = size * (np.eye(3) + skew * rng.uniform(-1, 1, (3, 3)))
    fractions = spread_out(rng.uniform(0, 1, (n, 3)), cell, pbc, distance)
    # Some atoms lie outside of the cell.
    fractions += rng.integers(-1, 2, fractions.shape) * np.array(pbc) * (rng.random() < 0.5)
    numbers = rng.choice(ELEMENTS, len(fractions))
    return numbers, fractions @ cell, cell, np.array(pbc)


SYSTEMS = {
    "molecule": lambda: random_system(21, 6.0, (False, False, False), seed=1),
    "skewed": lambda: random_system(40, 8.0, (True, True, True), seed=2, skew=0.3),
    "tiny": lambda: random_system(4, 3.1, (True, True, True), seed=3),
    "slab": lambda: random_system(30, 7.0, (True, True, False), seed=4),
    "wire": lambda: random_system(12, 5.0, (False, True, False), seed=5),
}


def arbiter(student, numbers, positions, cell, pbc):
    """What autograd through the Python student gives, float64: as NativePotential.compute."""
    z, x = torch.as_tensor(numbers), torch.tensor(positions)
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


def water_box(per_side, seed=0):
    """(atomic_numbers, positions, cell, pbc) of water at 1 g/cm³, 3 per_side³ atoms."""
    rng = np.random.default_rng(seed)
    spacing, angle = 3.1043, np.deg2rad(104.52)
    positions = []
    for site in np.ndindex(per_side, per_side, per_side):
        frame, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        oxygen = (np.array(site) + 0.5) * spacing + rng.normal(0, 0.1, 3)
        positions += [
            oxygen,
            oxygen + 0.9572 * frame[0],
            oxygen + 0.9572 * (np.cos(angle) * frame[0] + np.sin(angle) * frame[1]),
        ]
    numbers = np.tile([8, 1, 1], per_side**3)
    return numbers, np.array(positions), np.eye(3) * spacing * per_side, np.array([True] * 3)


def graph_of(numbers, positions, cell, pbc, cutoff):
    """CSR graph: species, offsets, senders, edge vectors and shifts."""
    edge_index, shifts = neighbor_list_reference(
        torch.tensor(positions), torch.tensor(cell), torch.as_tensor(pbc), cutoff
    )
    senders, receivers = edge_index.numpy()
    shifts = shifts.numpy()
    vectors = positions[senders] - positions[receivers] + shifts @ cell
    offsets = np.searchsorted(receivers, np.arange(len(numbers) + 1))
    species = np.array([ELEMENTS.index(z) for z in numbers], dtype=np.int32)
    return species, offsets.astype(np.int64), senders.astype(np.int32), vectors, shifts
