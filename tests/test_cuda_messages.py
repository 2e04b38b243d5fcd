"""torch's operators on a GPU, under host emulation: their kernels, and their binding on CPU tensors.

The kernels take numpy arrays (tests/cuda_engine/messages.cpp); the binding is that of CUDA builds,
registered as ``torch.ops.mlff_emulated`` for CPU tensors, and with MLFF_TEST_GPU=1 on the card.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cuda_module import DEVICE, on_the_card, operators
from test_messages import check_training_gradients, derivatives, make
from test_neighbors import System, to_edges
from torch import Tensor

from mlff_distiller.config import ModelConfig
from mlff_distiller.models import PaiNN
from mlff_distiller.ops import neighbor_list
from mlff_distiller.ops.library import has_kernel, load_library
from mlff_distiller.ops.messages import group_edges, message, message_reference

ORDERS = {
    "forward": ("s_out", "V_out"),
    "backward": ("x_out", "v_out", "w_out", "r_out"),
    "double_backward": ("s_out", "V_out", "x_out", "v_out", "w_out", "r_out"),
}
NAMES = ("hx", "hv", "hw", "hr", "g", "G", "x", "v", "w", "r")


@pytest.fixture
def gpu_operators(monkeypatch):
    """``torch.ops.mlff`` is what a CUDA build registers for tensors on a GPU."""
    load_library()
    monkeypatch.setattr(torch.ops, "mlff", operators())


def made(*sizes):
    """As make(), on the device of the operators."""
    inputs, edge_index = make(*sizes)
    return [x.detach().to(DEVICE).requires_grad_(True) for x in inputs], edge_index.to(DEVICE)


def arguments(atoms, edges, channels, parts, edge_index=None):
    """Inputs of double_backward in its order, by name, in float64; and edges."""
    inputs, random_edges = make(atoms, edges, channels, parts)
    x, v, w, r = (t.detach() for t in inputs)
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(t.shape, generator=generator).double() for t in (x, v, w, r, v[:, 0], v)]
    edge_index = random_edges if edge_index is None else edge_index
    return dict(zip(NAMES, [*tensors, x, v, w, r], strict=True)), edge_index


def by_kernels(gpu, order: str, named: dict[str, Tensor], edge_index: Tensor, dtype) -> list:
    arrays = {k: t.to(dtype).numpy() for k, t in named.items()}
    n = len(arrays["x"])
    for side, atoms in zip(("sender", "receiver"), edge_index.numpy(), strict=True):
        groups = np.argsort(atoms, kind="stable")
        arrays[side + "s"] = np.ascontiguousarray(atoms)
        arrays[side + "_edges"] = groups
        arrays[side + "_offsets"] = np.searchsorted(atoms[groups], np.arange(n + 1))
    results = gpu.message(order, arrays)
    return [torch.from_numpy(results[name]) for name in ORDERS[order]]


def by_cpu(order: str, named: dict[str, Tensor], edge_index: Tensor) -> list[Tensor]:
    """The operators of the CPU, or the reference where that is enough, in float64."""
    if order == "forward":
        return list(message_reference(*(named[k] for k in "xvwr"), edge_index))
    load_library()
    names = NAMES[4:] if order == "backward" else NAMES
    operator = getattr(torch.ops.mlff, f"painn_message_{order}")
    groups = group_edges(edge_index, len(named["x"]))
    return list(operator(*(named[k] for k in names), edge_index, groups))


def assert_agree(found, expected, dtype):
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == dtype
        if b.numel():
            scale = max(float(b.abs().max()), 1e-3)
            assert float((a.double() - b).abs().max()) / scale < tolerance  # false for poison (NaN)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("channels", [1, 8, 64, 100, 128])
def test_kernels_equal_the_cpu_at_any_width(gpu, channels, parts, order):
    named, edge_index = arguments(7, 45, channels, parts)
    expected = by_cpu(order, named, edge_index)
    for dtype in (torch.float32, torch.float64):
        assert_agree(by_kernels(gpu, order, named, edge_index, dtype), expected, dtype)


SHAPES = {
    "one atom, its own neighbour": (1, 3, None),
    "one atom alone": (1, 0, None),
    "no atoms": (0, 0, None),
    "no edges": (6, 0, None),
    "all to one": (9, 150, lambda e: torch.stack([torch.arange(e) % 9, torch.full((e,), 4)])),
    "all from one": (9, 150, lambda e: torch.stack([torch.full((e,), 8), torch.arange(e) % 9])),
    "sorted by receiver": (20, 131, lambda e: torch.arange(e).repeat(2, 1) * 20 // e),
    "half of the atoms alone": (40, 77, lambda e: torch.randint(0, 20, (2, e)) * 2),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_cpu_on_odd_graphs(gpu, shape, order):
    atoms, edges, edge_index = SHAPES[shape]
    for parts in (2, 3):
        torch.manual_seed(0)
        named, index = arguments(atoms, edges, 12, parts, edge_index and edge_index(edges))
        expected = by_cpu(order, named, index)
        assert_agree(by_kernels(gpu, order, named, index, torch.float64), expected, torch.float64)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_same_bits_under_every_schedule(gpu, order, dtype):
    named, edge_index = arguments(6, 50, 40, 3)
    results = []
    for seed in range(5):
        gpu.set_schedule(seed)
        results.append(by_kernels(gpu, order, named, edge_index, dtype))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_kernels_are_launched_once_and_wait_for_nothing(gpu):
    named, edge_index = arguments(6, 50, 40, 3)
    gpu.reset_counters()
    by_kernels(gpu, "double_backward", named, edge_index, torch.float32)
    launches = gpu.counters()["launches"]
    assert sorted(launches.values()) == [1, 1, 1], launches


# --- the binding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 8), (5, 0, 8), (0, 0, 4), (9, 40, 3), (30, 300, 33)])
def test_operators_equal_the_reference(gpu_operators, sizes, parts):
    inputs, edge_index = made(*sizes, parts)
    found = derivatives(message, inputs, edge_index)
    expected = derivatives(message_reference, inputs, edge_index)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_by_finite_differences(gpu_operators, parts):
    inputs, edge_index = made(3, 5, 2, parts)
    assert torch.autograd.gradcheck(lambda *x: message(*x, edge_index), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: message(*x, edge_index), inputs)


def test_edges_are_sorted_once_for_all_layers_and_derivatives(gpu_operators):
    """... of a training step: three layers, forward, backward twice, double backward."""
    torch.manual_seed(0)
    painn = PaiNN(2, ModelConfig(hidden_dim=8, num_rbf=4, cutoff=4.0)).to(DEVICE)
    species, edge_index = (torch.randint(0, 2, shape).to(DEVICE) for shape in ((8,), (2, 60)))
    vectors = torch.randn(60, 3, device=DEVICE, requires_grad=True)
    with torch.profiler.profile() as profile:
        energies = painn(species, edge_index, vectors)
        (forces,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        forces.square().mean().backward(inputs=list(painn.parameters()))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::sort"] == 1
    assert calls["aten::aminmax"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_gradients_of_the_network(gpu_operators, monkeypatch, dtype):
    check_training_gradients(monkeypatch, dtype, atoms=8, edges=60, device=DEVICE)


def test_bad_arguments_are_refused(gpu_operators):
    inputs, edge_index = made(5, 20, 8, 3)
    features, vectors, filters, directions = (x.detach() for x in inputs)
    groups = group_edges(edge_index, 5)
    edges = (edge_index, groups)
    good = (features, vectors, filters, directions, *edges)
    cases = [
        ((features[:4], *good[1:]), "features must have shape"),
        ((features, vectors, filters[:, :9], directions, *edges), "2F or 3F"),
        ((*good[:4], edge_index.int(), groups), "edge_index must be int64"),
        ((features, vectors.float(), filters, directions, *edges), "one floating type"),
        ((*good[:5], group_edges(edge_index, 6)), "edge_groups must be those of these 5 atoms"),
        ((*good[:5], group_edges(edge_index[:, 1:], 5)), "and 20 edges"),
        ((*good[:5], groups.int()), "edge_groups must be those of"),
    ]
    for case, text in cases:
        with pytest.raises(ValueError, match=text):
            torch.ops.mlff.painn_message(*case)
    with pytest.raises(ValueError, match="edge_index must be int64"):
        group_edges(edge_index.int(), 5)
    with pytest.raises(ValueError, match="a GPU takes fewer than"):
        group_edges(edge_index, 2**30)
    # On a GPU an assertion of the device, after which the process can do no more.
    for wrong in () if on_the_card() else (edge_index + 1, edge_index - 1):
        with pytest.raises(RuntimeError, match=r"within 0 \.\. atoms - 1"):
            group_edges(wrong, 5)
    scalars = vectors[:, 0]
    with pytest.raises(ValueError, match="grad_scalars must be"):
        torch.ops.mlff.painn_message_backward(scalars[:3], vectors, *good)
    with pytest.raises(ValueError, match="h_filters must be"):
        torch.ops.mlff.painn_message_double_backward(
            features, vectors, filters[:, :8], directions, scalars, vectors, *good
        )


def test_kernels_are_found_by_device():
    assert has_kernel("painn_message", "cpu")
    assert not has_kernel("painn_message", "mps")
    assert not has_kernel("painn_message", "meta")
    if not torch.version.cuda:
        assert not has_kernel("painn_message", "cuda")


# --- neighbour lists ------------------------------------------------------------------------------

OPEN, SLAB, FULL = (False, False, False), (True, False, True), (True, True, True)


@pytest.mark.parametrize("pbc", [OPEN, SLAB, FULL])
@pytest.mark.parametrize("kind", ["plain", "tiny", "skewed", "flat", "outside"])
def test_neighbor_list_has_the_edges_of_the_cpu(gpu_operators, kind, pbc):
    for seed in range(4):  # sizes and cutoffs change from call to call, memory is kept
        system = System(seed, kind, pbc)
        dtype = (torch.float64, torch.float32)[seed % 2]
        arguments = (
            torch.tensor(system.positions, dtype=dtype, device=DEVICE),
            torch.tensor(system.cell, dtype=dtype, device=DEVICE),
            torch.tensor(system.pbc, device=DEVICE),
            system.cutoff,
        )
        edge_index, shifts = (x.cpu() for x in torch.ops.mlff.neighbor_list(*arguments))
        assert edge_index.dtype == shifts.dtype == torch.int64
        senders, receivers = edge_index.numpy()
        assert (np.diff(receivers) >= 0).all()
        found = to_edges(receivers, senders, shifts.numpy())
        on_cpu = [x.cpu() for x in arguments[:3]]
        expected_index, expected_shifts = neighbor_list(*on_cpu, system.cutoff, backend="reference")
        senders, receivers = expected_index.numpy()
        expected = to_edges(receivers, senders, expected_shifts.numpy())
        assert len(found) == len(expected)
        assert sorted(found) == sorted(expected)
        again = torch.ops.mlff.neighbor_list(*arguments)
        assert torch.equal(again[0].cpu(), edge_index)
        assert torch.equal(again[1].cpu(), shifts)


def test_neighbor_list_of_nothing_and_of_one_atom(gpu_operators):
    listed = torch.ops.mlff.neighbor_list
    no_pbc, cell = torch.zeros(3, dtype=torch.bool, device=DEVICE), torch.eye(3, device=DEVICE)
    for n in (0, 1):
        edge_index, shifts = listed(torch.zeros(n, 3, device=DEVICE), cell, no_pbc, 3.0)
        assert edge_index.shape == (2, 0)
        assert shifts.shape == (0, 3)
    edge_index, shifts = listed(torch.zeros(1, 3, device=DEVICE), cell, ~no_pbc, 1.1)
    assert edge_index.tolist() == [[0] * 6, [0] * 6]
    assert sorted(shifts.abs().sum(1).tolist()) == [1] * 6


def test_neighbor_list_refuses_bad_input_and_recovers(gpu_operators):
    listed = torch.ops.mlff.neighbor_list
    generator = torch.Generator().manual_seed(0)
    positions = 4 * torch.rand(20, 3, generator=generator).to(DEVICE)
    cell = 5 * torch.eye(3, device=DEVICE)
    pbc = torch.ones(3, dtype=torch.bool, device=DEVICE)
    good = listed(positions, cell, pbc, 2.0)
    bad = positions.clone()
    bad[7, 1] = torch.nan
    for case, text in [
        ((bad, cell, pbc, 2.0), "finite.* atom 7"),
        ((positions, cell[[1, 0, 2]], pbc, 2.0), "right-handed"),
        ((positions, cell, pbc, -1.0), "cutoff must be > 0"),
        ((positions, cell, pbc, float("nan")), "cutoff must be > 0"),
        ((positions[:, :2], cell, pbc, 2.0), "positions must be a float tensor"),
        ((positions, cell, pbc.int(), 2.0), "pbc must be a bool tensor"),
    ]:
        with pytest.raises(ValueError, match=text):
            listed(*case)
        again = listed(positions, cell, pbc, 2.0)
        assert all(torch.equal(a, b) for a, b in zip(again, good, strict=True))
