"""The native training step against automatic differentiation, its twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import Structure
from mlff_distiller.data.batch import Batch, collate
from mlff_distiller.ops.training import can_train, native_training
from mlff_distiller.students.student import StudentForceField


def structures(kind: str) -> list[Structure]:
    """Labelled at random."""
    rng = np.random.default_rng(0)

    def labelled(numbers: list[int], positions: np.ndarray, cell: float | None) -> Structure:
        periodic = cell is not None
        return Structure(
            atomic_numbers=np.array(numbers, dtype=np.int64),
            positions=positions,
            cell=np.eye(3) * (cell or 0.0),
            pbc=np.full(3, periodic),
            energy=float(rng.normal()),
            forces=rng.normal(size=positions.shape),
            stress=0.01 * np.eye(3) if periodic else None,
        )

    def cluster(n: int, width: float, cell: float | None = None) -> Structure:
        points = rng.uniform(0, width, (4 * n, 3))
        kept: list[np.ndarray] = []
        for p in points:
            if all(np.linalg.norm(p - q) > 1.0 for q in kept) and len(kept) < n:
                kept.append(p)
        numbers = rng.choice([1, 8, 14], size=len(kept)).tolist()
        return labelled(numbers, np.array(kept), cell)

    if kind == "one atom":
        return [labelled([14], np.zeros((1, 3)), None)]
    if kind == "no edges":
        return [labelled([14, 1], np.array([[0.0, 0, 0], [50.0, 0, 0]]), None)]
    if kind == "images":  # smaller than the cutoff: neighbours are images, its own too
        return [labelled([14, 8], np.array([[0.0, 0, 0], [1.4, 1.5, 1.3]]), 3.1)]
    return [
        cluster(9, 4.0),
        labelled([14, 8], np.array([[0.0, 0, 0], [30.0, 0, 0]]), None),
        cluster(30, 6.5, 6.9),
        cluster(17, 6.0),
    ]


def student_of(dtype: torch.dtype, **config: Any) -> StudentForceField:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {
        "hidden_dim": 24,
        "num_interactions": 3,
        "num_rbf": 7,
        "cutoff": 4.0,
    }
    student = StudentForceField(ModelConfig(**{**defaults, **config}), [14, 1, 8]).to(dtype)
    with torch.no_grad():
        for parameter in student.parameters():  # biases, too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def loss_of(
    student: StudentForceField, batch: Batch, energy: float = 1.0, forces: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    found = student.compute(batch, create_graph=True)
    loss = torch.zeros((), dtype=torch.float64)
    if energy:
        loss = loss + energy * (found["energy"] - batch.energy).square().sum()
    if forces:
        loss = loss + forces * (found["forces"] - batch.forces).square().sum()
        loss = loss + 100 * (found["stress"] - batch.stress).square().sum()
    return loss, {name: value.detach() for name, value in found.items()}


def gradients(
    student: StudentForceField, batch: Batch, native: bool, **weights: float
) -> tuple[list[Tensor], dict[str, Tensor]]:
    student.zero_grad(set_to_none=True)
    with native_training(native):
        loss, found = loss_of(student, batch, **weights)
        loss.backward(inputs=list(student.parameters()))
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in student.parameters()
    ], found


def check(student: StudentForceField, batch: Batch, tolerance: float, **weights: float) -> None:
    assert can_train(student.painn, "cpu")
    expected, values = gradients(student, batch, False, **weights)
    got, found = gradients(student, batch, True, **weights)
    for name, value in values.items():
        scale = float(value.abs().max()) + 1e-3
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name
    names = [name for name, _ in student.named_parameters()]
    # Parameters that a quantity hardly depends on are compared with the others of their kind.
    least = 1e-3 * max(float(g.abs().max()) for g in expected)
    for name, a, b in zip(names, got, expected, strict=True):
        scale = max(float(b.abs().max()), least)
        assert float((a - b).abs().max()) <= tolerance * scale, name


VARIANTS: list[dict[str, Any]] = [
    {},
    {"hidden_dim": 8, "num_interactions": 1},
    {"hidden_dim": 40, "num_interactions": 2, "readout_dim": 5},
    {"hidden_dim": 64, "num_interactions": 2, "readout_dim": 100},
    {"rbf": "bessel", "cutoff_function": "cosine"},
    {"rbf": "chebyshev", "cutoff_function": "mollifier"},
    {"cutoff_function": "switch", "cutoff_onset": 2.5, "rbf_per_interaction": True},
    {"norm": "paper"},
    {"norm_scale": 0.1, "zbl": False},
    {"zbl_switched": False, "cutoff_exponent": 4},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_gradients_are_those_of_automatic_differentiation(config, dtype):
    student = student_of(dtype, **config)
    batch = collate(structures("mixed"), student.cutoff, dtype)
    check(student, batch, 1e-11 if dtype == torch.float64 else 3e-4)


@pytest.mark.parametrize("kind", ["one atom", "no edges", "images"])
def test_few_atoms(kind):
    student = student_of(torch.float64)
    check(student, collate(structures(kind), student.cutoff, torch.float64), 1e-11)


@pytest.mark.parametrize("weights", [{"forces": 0.0}, {"energy": 0.0}], ids=str)
def test_losses_of_energies_or_forces_alone(weights):
    student = student_of(torch.float64)
    check(student, collate(structures("mixed"), student.cutoff, torch.float64), 1e-11, **weights)


def test_scales_of_imported_networks():
    student = student_of(torch.float64)
    student.painn.scales.copy_(torch.tensor([0.5, 2.0, -1.5]))
    check(student, collate(structures("mixed"), student.cutoff, torch.float64), 1e-11)
