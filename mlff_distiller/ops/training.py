"""A training step of PaiNN without automatic differentiation, on the CPU.

Training needs the gradient by the parameters of a loss that knows forces: a second derivative. The
operators of csrc/core/training.h return energies with their gradients by the edge vectors and, in
the backward pass, what a loss of both has for gradients by the parameters. Where they cannot do it
(:func:`can_train`), automatic differentiation does; it is also their twin in the tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlff_distiller.ops.library import has_kernel

if TYPE_CHECKING:
    from mlff_distiller.students.painn import PaiNN

_enabled = True
# Work spaces that no graph refers to; memory that is fresh costs more than what is computed in it.
_free: list[Tensor] = []


@contextlib.contextmanager
def native_training(on: bool) -> Iterator[None]:
    """Whether :func:`can_train` may say yes; for tests and benchmarks."""
    global _enabled
    before, _enabled = _enabled, on
    try:
        yield
    finally:
        _enabled = before


def can_train(painn: PaiNN, device_type: str) -> bool:
    """Whether this network is one that the operators know, on a device that has them."""
    return (
        _enabled
        and not torch.compiler.is_compiling()
        and not any(True for _ in painn.bases.parameters())
        and has_kernel("training_forward", device_type)
    )


def pairs_of(edge_index: Tensor, shifts: Tensor, num_atoms: int) -> list[Tensor] | None:
    """The pairs of a neighbour list, each of which has two edges.

    Args:
        edge_index: (2, n_edges) int64, senders and receivers.
        shifts: (n_edges, 3) int64.
        num_atoms: of the list.

    Returns:
        What :func:`energies_and_gradients` takes, of which the last tensor, (n_pairs,) int64, is
        the edge that stands for each pair. None if the list is not sorted by receivers, or an edge
        is without its reverse.
    """
    return torch.ops.mlff.training_graph(edge_index, shifts, num_atoms) or None


def energies_and_gradients(
    painn: PaiNN,
    species: Tensor,
    pairs: Sequence[Tensor],
    vectors: Tensor,
    radials: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Energies of PaiNN and the gradient of their sum, differentiable in the parameters alone.

    Args:
        painn: one that :func:`can_train`.
        species: (n_atoms,) int64, rows of the embedding.
        pairs: of :func:`pairs_of`.
        vectors: (n_pairs, 3), Å, of the edges that stand for the pairs; in the dtype of the
            parameters.
        radials: (n_pairs, 2, num_rbf + 1) of each interaction, or one of all; see
            :func:`~mlff_distiller.students.radial.values_and_slopes`.

    Returns:
        (n_atoms,) in eV, without reference energies; and (n_pairs, 3) in eV/Å, by the vector of a
        pair whose other edge has the opposite one.
    """
    vectors = vectors.detach()
    first: Any = painn.interactions[0]
    step = _Step(
        pairs=list(pairs),
        species=species,
        vectors=vectors,
        radials=radials,
        scales=painn.scales,
        norm=(first.norm_epsilon, first.norm_shift),
        threads=torch.get_num_threads(),
    )
    return _EnergiesAndGradients.apply(step, *painn.parameters())


class _Step:
    """Arguments of a step, and its work space, which it takes from the free ones and returns."""

    def __init__(
        self,
        pairs: list[Tensor],
        species: Tensor,
        vectors: Tensor,
        radials: list[Tensor],
        scales: Tensor,
        norm: tuple[float, float],
        threads: int,
    ) -> None:
        self.inputs = (species, vectors, radials, scales, *norm)
        self.pairs = pairs
        self.threads = threads
        self.work = _free.pop() if _free else torch.empty(0, dtype=torch.uint8)

    def __del__(self) -> None:
        if len(_free) < 2:
            _free.append(self.work)

    def forward(self, parameters: Sequence[Tensor], gradients: bool) -> tuple[Tensor, Tensor]:
        energies, gradient, self.work = torch.ops.mlff.training_forward(
            self.pairs, parameters, *self.inputs, gradients, self.threads, self.work
        )
        return energies, gradient

    def backward(self, parameters: Sequence[Tensor], *weights: Tensor) -> list[Tensor]:
        return torch.ops.mlff.training_backward(
            self.pairs, parameters, *self.inputs, self.threads, self.work, *weights
        )


class _EnergiesAndGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.step = step
        ctx.save_for_backward(*parameters)
        return step.forward(parameters, any(ctx.needs_input_grad))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.step.backward(ctx.saved_tensors, *weights)


__all__ = [
    "can_train",
    "energies_and_gradients",
    "native_training",
    "pairs_of",
]
