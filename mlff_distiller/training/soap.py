"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", ICLR 2025, arXiv:2409.11321.

The gradients G of a weight matrix are correlated along its rows and columns. In the eigenvectors
U, V of the averages of G Gᵀ and Gᵀ G these correlations are gone, and Adam, which treats every
number on its own, does there what it should: W ← W - rate · U adam(Uᵀ G V) Vᵀ.

The weights of PaiNN are stacks of square matrices: three of F × F for what a message splits into,
and so on. Each block of at most ``block`` rows and columns has a basis of its own, as the blocks of
Shampoo have (Anil et al. 2020, arXiv:2002.09018), and all blocks of one shape are multiplied
together: the cost goes with the number of parameters times ``block``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Matrices with a shorter side have no basis: there is little to correlate.
_SHORTEST = 8
# Gradients of few elements or few atoms leave directions without any gradient. Adam would make whole
# steps of their rounding errors: average squares below this share (squared) of the mean count less.
_NOISE = 1e-4
# And what is a basis of nothing stays as it was: this share of the mean is added to all eigenvalues.
_FLOOR = 1e-5
# Averages over pairs of rows and columns take every other gradient: they change slowly.
_STATISTICS = 2


@dataclass(frozen=True)
class _Piece:
    """A parameter of ``rows`` × ``columns`` blocks."""

    parameter: Tensor
    rows: int
    columns: int

    def blocks(self, matrix: Tensor) -> Tensor:
        """(rows · columns, a, b) of a matrix of the parameter's shape."""
        height, width = matrix.shape[0] // self.rows, matrix.shape[1] // self.columns
        cut = matrix.view(self.rows, height, self.columns, width)
        return cut.transpose(1, 2).reshape(-1, height, width)

    def matrix(self, blocks: Tensor) -> Tensor:
        """The opposite of :meth:`blocks`."""
        height, width = blocks.shape[1:]
        cut = blocks.view(self.rows, self.columns, height, width)
        return cut.transpose(1, 2).reshape(self.rows * height, self.columns * width)


class _Stack:
    """Blocks of one shape, and room for three such stacks."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.pieces: list[_Piece] = []
        self._shape = shape
        self._room: tuple[Tensor, ...] = ()

    def room(self) -> tuple[Tensor, ...]:
        """Three tensors (n, a, b) to compute in: new memory in each step would cost more."""
        if not self._room:
            count = sum(p.rows * p.columns for p in self.pieces)
            like = self.pieces[0].parameter
            self._room = tuple(like.new_empty(count, *self._shape) for _ in range(3))
        return self._room

    def subtract(self, update: Tensor, rate: float, shrink: float) -> None:
        """Parameters less a share of their own and the update, (n, a, b), times the rate."""
        counts = [p.rows * p.columns for p in self.pieces]
        for piece, part in zip(self.pieces, update.split(counts), strict=True):
            piece.parameter.mul_(1.0 - shrink).sub_(piece.matrix(part), alpha=rate)


class SOAP(torch.optim.Optimizer):
    """SOAP with decoupled weight decay for matrices, Adam for all else.

    The state of all parameters that are computed together belongs to the first of them.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares; the second one also of
            G Gᵀ and Gᵀ G.
        eps: added to the root of the average square.
        weight_decay: share of a matrix that is lost per step, by the learning rate; biases and
            whatever else has no basis keep theirs.
        block: rows and columns of a block, at most.
        refresh: steps after which the bases follow the averages, by one power iteration.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block: int = 64,
        refresh: int = 20,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "block": block,
            "refresh": refresh,
        }
        super().__init__(params, settings)
        self._parts = [_parts(group["params"], group["block"]) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a parameter without a gradient counts as one whose gradient is zero."""
        if closure is not None:
            raise NotImplementedError(
                "SOAP evaluates nothing itself; call step() without a closure"
            )
        for group, (stacks, others) in zip(self.param_groups, self._parts, strict=True):
            for stack in stacks:
                self._step_matrices(group, stack)
            if others:
                self._step_others(group, others)

    def _step_matrices(self, group: dict[str, Any], stack: _Stack) -> None:
        gradient, one, two = stack.room()
        torch.cat([p.blocks(_gradient(p.parameter)) for p in stack.pieces], out=gradient)
        state = self.state[stack.pieces[0].parameter]
        if not state:
            # The first gradient gives the bases. In them it is diagonal, a step would be noise.
            self._begin(state, gradient)
            _gather_statistics(state, gradient, 0.0)
            for name in "LR":
                state[f"{name}_basis"] = _first_basis(state[name])
            return
        left, right = state["L_basis"], state["R_basis"]
        turned = torch.bmm(torch.bmm(left.mT, gradient, out=one), right, out=two)
        length = _adam(state, turned, group, one, _NOISE)
        update = torch.bmm(torch.bmm(left, one, out=two), right.mT, out=one)
        stack.subtract(update, length * group["lr"], group["lr"] * group["weight_decay"])
        if state["step"] % _STATISTICS == 0:
            _gather_statistics(state, gradient, group["betas"][1])
        if state["step"] % group["refresh"] == 0:
            _turn(state)

    def _step_others(self, group: dict[str, Any], others: list[Tensor]) -> None:
        gradient = torch.cat([_gradient(p).reshape(-1) for p in others])
        state = self.state[others[0]]
        if not state:
            self._begin(state, gradient)
        update = torch.empty_like(gradient)
        length = _adam(state, gradient, group, update) * group["lr"]
        for parameter, part in zip(others, update.split([p.numel() for p in others]), strict=True):
            parameter.sub_(part.view_as(parameter), alpha=length)

    def _begin(self, state: dict[str, Any], gradient: Tensor) -> None:
        state["step"] = 0
        state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(gradient) for _ in "mv")


def _parts(parameters: list[Tensor], block: int) -> tuple[list[_Stack], list[Tensor]]:
    """Matrices by the shape of their blocks, and what has no basis."""
    stacks: dict[tuple[Any, ...], _Stack] = {}
    others = []
    for p in parameters:
        counts = [_pieces(n, block) for n in p.shape] if p.ndim == 2 else []
        sizes = [n // k for n, k in zip(p.shape, counts, strict=False)]
        if not counts or min(sizes) < _SHORTEST:
            others.append(p)
        else:
            stack = stacks.setdefault((*sizes, p.dtype, p.device), _Stack((sizes[0], sizes[1])))
            stack.pieces.append(_Piece(p, *counts))
    return list(stacks.values()), others


def _pieces(length: int, block: int) -> int:
    """The smallest number of equal pieces of at most ``block``."""
    return next(k for k in range(-(-length // block), length + 1) if length % k == 0)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _adam(
    state: dict[str, Any],
    gradient: Tensor,
    group: dict[str, Any],
    out: Tensor,
    noise: float = 0.0,
) -> float:
    """Adam's direction (Kingma and Ba 2015, arXiv:1412.6980) in ``out``; returns its factor."""
    first, second = group["betas"]
    state["step"] += 1
    average, squares, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    average.lerp_(gradient, 1.0 - first)
    squares.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
    scale = math.sqrt(1.0 - second**step)
    torch.sqrt(squares, out=out)
    if noise:
        out += squares.mean(dim=(1, 2), keepdim=True).sqrt_().mul_(noise).add_(scale * group["eps"])
    else:
        out += scale * group["eps"]
    torch.div(average, out, out=out)
    return scale / (1.0 - first**step)


def _gather_statistics(state: dict[str, Any], gradient: Tensor, kept: float) -> None:
    """Averages of G Gᵀ and Gᵀ G."""
    for name, a, b in (("L", gradient, gradient.mT), ("R", gradient.mT, gradient)):
        if name in state:
            state[name].baddbmm_(a, b, beta=kept, alpha=1.0 - kept)
        else:
            state[name] = a @ b


def _mean_eigenvalue(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]


def _first_basis(matrix: Tensor) -> Tensor:
    """Eigenvectors by falling eigenvalues; where all are zero, the axes."""
    ramp = torch.linspace(1.0, 0.0, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    floor = _FLOOR * _mean_eigenvalue(matrix) * torch.diag(ramp)
    return torch.linalg.eigh(matrix + floor)[1].flip(-1).contiguous()


def _turn(state: dict[str, Any]) -> None:
    """Bases by a step of orthogonal iteration, and the average gradient in the new ones.

    Eigenvectors are put in the order of their eigenvalues first: the iteration needs that to
    converge. The average squares cannot be turned; they follow within a few steps.
    """
    for name, dim in (("L", 1), ("R", 2)):
        matrix, old = state[name], state[f"{name}_basis"]
        product = matrix @ old
        values = (old * product).sum(dim=1)  # (n, side)
        order = values.argsort(dim=1, descending=True)
        product += _FLOOR * _mean_eigenvalue(matrix) * old
        product = product.gather(2, order.unsqueeze(1).expand_as(product))
        new = torch.linalg.qr(product)[0]
        turn = new.mT @ old
        average = state["exp_avg"]
        state["exp_avg"] = turn @ average if dim == 1 else average @ turn.mT
        rows = order.unsqueeze(3 - dim).expand_as(average)
        state["exp_avg_sq"] = state["exp_avg_sq"].gather(dim, rows)
        state[f"{name}_basis"] = new.contiguous()
