"""torch's operators on the card against the CPU's: neighbour list, message pass, three orders; their speed.

python card.py operators.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import card
import torch

from mlff_distiller.ops import neighbor_list
from mlff_distiller.ops.messages import group_edges, message, message_reference

DEVICE = card.torch_device()
WIDTHS = (8,) if card.REHEARSAL else (8, 100, 128)
LIMITS = {torch.float64: 1e-12, torch.float32: 3e-5}
wrong = 0


def say(name: str, good: bool, text: str = "") -> None:
    global wrong
    wrong += not good
    print(f"{name:44s} {text} {'ok' if good else 'WRONG'}", flush=True)


def lists() -> None:
    def edges(edge_index: torch.Tensor, shifts: torch.Tensor) -> set[tuple]:
        return {tuple(row) for row in torch.cat([edge_index, shifts.t()]).t().cpu().tolist()}

    for label, pbc in (("periodic", [1, 1, 1]), ("slab", [1, 1, 0]), ("open", [0, 0, 0])):
        _, positions, cell = (torch.as_tensor(x) for x in card.water(4))
        inputs = positions, cell, torch.tensor(pbc, dtype=torch.bool)
        want = edges(*neighbor_list(*inputs, 5.0))
        got = edges(*neighbor_list(*(x.to(DEVICE) for x in inputs), 5.0))
        say(f"neighbour list, {label}", got == want, f"{len(want)} edges")
    nothing = (torch.zeros(1, 3), torch.eye(3), torch.zeros(3, dtype=torch.bool))
    empty = neighbor_list(*(x.to(DEVICE) for x in nothing), 1.0)
    say("neighbour list, no edges", empty[0].shape == (2, 0))


def inputs_of(
    atoms: int, edges: int, width: int, parts: int, dtype: torch.dtype
) -> tuple[list, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((atoms, parts * width), (atoms, 3, width), (edges, parts * width), (edges, 3))
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    edge_index = torch.randint(0, atoms, (2, edges), generator=generator)
    return [x.to(DEVICE, dtype).requires_grad_(True) for x in tensors], edge_index.to(DEVICE)


def orders(function: Any, tensors: list, edge_index: Any) -> list:
    """Results, their derivatives, and derivatives of those."""
    s, v = function(*tensors, edge_index)
    loss = s.sin().sum() + v.cos().sum()
    first = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    loss = sum((x * x).sum() for x in first if x is not None)
    return [s, v, *first, *torch.autograd.grad(loss, tensors, allow_unused=True)]


def messages() -> None:
    for parts in (2, 3):
        for width in WIDTHS:
            for dtype, limit in LIMITS.items():
                tensors, edge_index = inputs_of(50, 1500, width, parts, dtype)
                worst = 0.0
                pairs = zip(orders(message, tensors, edge_index),
                            orders(message_reference, tensors, edge_index), strict=True)  # fmt: skip
                for got, want in pairs:
                    if want is None:
                        want = None if got is None else torch.zeros_like(got)
                    if want is None:
                        continue
                    got = torch.zeros_like(want) if got is None else got
                    scale = want.abs().max().clamp_min(1e-3)
                    worst = max(worst, float((got - want).abs().max() / scale))
                say(
                    f"message, {parts} parts, F {width}, {str(dtype)[6:]}",
                    worst < limit,
                    f"{worst:.1e}",
                )
    tensors, edge_index = inputs_of(6, 25, 4, 3, torch.float64)

    def function(*x: torch.Tensor) -> Any:
        return message(*x, edge_index)

    say("gradcheck", torch.autograd.gradcheck(function, tensors))
    say("gradgradcheck", torch.autograd.gradgradcheck(function, tensors))


def speed() -> None:
    _, positions, cell = (torch.as_tensor(x, device=DEVICE) for x in card.water(15))
    edge_index, _ = neighbor_list(
        positions, cell, torch.ones(3, dtype=torch.bool, device=DEVICE), 5.0
    )
    atoms, edges = len(positions), edge_index.shape[1]
    tensors, _ = inputs_of(atoms, edges, 128, 3, torch.float32)
    groups = group_edges(edge_index, atoms)  # one sort, which all layers of a batch share
    for name, function, more in (
        ("fused", message, (groups,)), ("plain torch", message_reference, ())
    ):  # fmt: skip
        try:
            for turn in range(13):
                if turn == 3:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                s, v = function(*tensors, edge_index, *more)
                first = torch.autograd.grad(s.sum() + v.sum(), tensors, create_graph=True)
                torch.autograd.grad(sum(x.sum() for x in first), tensors, allow_unused=True)
            torch.cuda.synchronize()
            print(f"three orders, {atoms} atoms, {edges} edges, F 128, {name}: "
                  f"{(time.perf_counter() - start) * 100:.2f} ms, "
                  f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)  # fmt: skip
        except torch.OutOfMemoryError:
            print(name, "out of memory")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


lists()
messages()
if DEVICE != "cpu":
    speed()
print("operators", "ok" if not wrong else f"{wrong} WRONG")
sys.exit(wrong != 0)
