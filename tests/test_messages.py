"""The fused message pass of training against its pure-torch twin, up to second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.errors import InputError
from mlff_distiller.models import PaiNN
from mlff_distiller.ops import library, messages
from mlff_distiller.ops.messages import message, message_reference


def make(
    atoms: int, edges: int, channels: int, parts: int, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """Features, vectors, filters, directions; and edges in no particular order."""
    generator = torch.Generator().manual_seed(atoms + edges + channels + parts)

    def normal(*shape: int) -> Tensor:
        values = 0.4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_(True)

    inputs = [
        normal(atoms, parts * channels),
        normal(atoms, 3, channels),
        normal(edges, parts * channels),
        normal(edges, 3),
    ]
    return inputs, torch.randint(0, max(atoms, 1), (2, edges), generator=generator)


def derivatives(function, inputs: list[Tensor], edge_index: Tensor) -> list[Tensor]:
    """Outputs, gradients of a function of them and gradients of a function of those."""
    scalars, vectors = function(*inputs, edge_index)
    first = torch.autograd.grad(
        scalars.tanh().sum() + vectors.sin().sum(), inputs, create_graph=True, allow_unused=True
    )
    some = [g for g in first if g is not None]
    second = torch.autograd.grad(sum(g.tanh().sum() for g in some), inputs, allow_unused=True)
    everything = [scalars, vectors, *first, *second]
    shapes = [scalars, vectors, *inputs, *inputs]
    return [
        torch.zeros_like(s) if v is None else v.detach()
        for v, s in zip(everything, shapes, strict=True)
    ]


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 8), (5, 0, 8), (9, 40, 3), (30, 900, 16)])
def test_fused_equals_reference(sizes, parts):
    assert messages._available("cpu")
    inputs, edge_index = make(*sizes, parts)
    found = derivatives(message, inputs, edge_index)
    expected = derivatives(message_reference, inputs, edge_index)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_by_finite_differences(parts):
    inputs, edge_index = make(4, 9, 2, parts)
    assert torch.autograd.gradcheck(lambda *x: message(*x, edge_index), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: message(*x, edge_index), inputs)


def test_threads_change_rounding_only_and_runs_repeat_bit_for_bit():
    inputs, edge_index = make(50, 2000, 16, 3, torch.float32)
    results = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = derivatives(message, inputs, edge_index)
            again = derivatives(message, inputs, edge_index)
            assert all(torch.equal(a, b) for a, b in zip(results[threads], again, strict=True))
    finally:
        torch.set_num_threads(before)
    exact = derivatives(message_reference, [x.double() for x in inputs], edge_index)
    for threads in results:
        for a, b in zip(results[threads], exact, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def check_training_gradients(
    monkeypatch, dtype: torch.dtype, atoms: int, edges: int, device: str = "cpu"
) -> None:
    """Energies, forces and gradients of a loss of both by the fused path and by the reference."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_dim=16, num_rbf=6, cutoff=4.0)
    painn = PaiNN(2, config).to(device, dtype)
    species, edge_index = torch.randint(0, 2, (atoms,)), torch.randint(0, atoms, (2, edges))
    vectors = (1.5 * torch.randn(edges, 3, dtype=dtype)).to(device).requires_grad_(True)
    species, edge_index = species.to(device), edge_index.to(device)

    def gradients() -> list[Tensor]:
        energies = painn(species, edge_index, vectors)
        (forces,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        loss = forces.square().mean() + energies.square().mean()
        loss.backward(inputs=list(painn.parameters()))
        found = [p.grad for p in painn.parameters() if p.grad is not None]
        painn.zero_grad(set_to_none=True)
        return [energies.detach(), forces.detach(), *found]

    fused = gradients()
    monkeypatch.setattr(messages, "_available", lambda _: False)
    for a, b in zip(fused, gradients(), strict=True):
        scale = float(b.abs().max()) + 1e-30
        assert float((a - b).abs().max()) / scale < (1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_gradients_of_the_network_do_not_depend_on_the_path(monkeypatch, dtype):
    check_training_gradients(monkeypatch, dtype, atoms=20, edges=300)


def test_without_the_library_the_reference_is_used(monkeypatch):
    def missing() -> None:
        raise InputError("not built")

    monkeypatch.setattr(library, "load_library", missing)
    messages._available.cache_clear()
    try:
        inputs, edge_index = make(5, 20, 8, 3)
        assert not messages._available("cpu")
        for a, b in zip(
            message(*inputs, edge_index), message_reference(*inputs, edge_index), strict=True
        ):
            assert torch.equal(a, b)
    finally:
        messages._available.cache_clear()


def test_inconsistent_shapes_are_refused():
    inputs, edge_index = make(5, 20, 8, 3)
    features, vectors, filters, directions = (x.detach() for x in inputs)
    cases = [
        ((features[:4], vectors, filters, directions, edge_index), "features must have shape"),
        ((features, vectors, filters[:, :9], directions, edge_index), "2F or 3F"),
        ((features, vectors, filters, directions[:3], edge_index), "directions must have shape"),
        ((features, vectors, filters, directions, edge_index[:, :3]), "edge_index must be int64"),
        ((features, vectors, filters, directions, edge_index + 1), r"within 0\.\.4"),
        ((features, vectors.float(), filters, directions, edge_index), "one floating type"),
    ]
    for arguments, text in cases:
        with pytest.raises(ValueError, match=text):
            torch.ops.mlff.painn_message(*arguments, messages.group_edges(edge_index, 5))
