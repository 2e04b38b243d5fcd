"""The message pass of PaiNN: a pure-torch form and, for training, a fused operator.

Training differentiates forces, that is, it takes second derivatives of this sum over edges. Plain
autograd then writes and reads some fifty temporaries of (n_edges, 3F) numbers; the fused operator
(csrc/core/kernels_messages-inl.h; csrc/cuda/message.cu where the library was built with CUDA) makes
one pass over the edges for each order of derivative.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.ops.library import has_kernel


def message_reference(
    features: Tensor, vectors: Tensor, filters: Tensor, directions: Tensor, edge_index: Tensor
) -> tuple[Tensor, Tensor]:
    """What each atom receives from its neighbours: ``Σ w0 x0`` and ``Σ w1 x1 r + w2 x2 v``.

    Args:
        features: (n_atoms, 3F), x of the senders; or (n_atoms, 2F) where all vectors are zero.
        vectors: (n_atoms, 3, F), v; not read with 2F features.
        filters: (n_edges, 3F or 2F), w.
        directions: (n_edges, 3), unit vectors r from receiver to sender.
        edge_index: (2, n_edges) int64, senders and receivers.

    Returns:
        (n_atoms, F) scalars and (n_atoms, 3, F) vectors.
    """
    senders, receivers = edge_index[0], edge_index[1]
    hidden_dim = vectors.shape[2]
    messages = filters * features.index_select(0, senders)
    to_scalars = messages[:, :hidden_dim]
    along_edge = messages[:, hidden_dim : 2 * hidden_dim]
    to_vectors = along_edge.unsqueeze(1) * directions.unsqueeze(-1)
    if messages.shape[1] == 3 * hidden_dim:
        along_vectors = messages[:, 2 * hidden_dim :].unsqueeze(1)
        to_vectors = to_vectors + along_vectors * vectors.index_select(0, senders)
    scalars = torch.zeros_like(vectors[:, 0]).index_add(0, receivers, to_scalars)
    return scalars, torch.zeros_like(vectors).index_add(0, receivers, to_vectors)


def group_edges(edge_index: Tensor, num_atoms: int) -> Tensor | None:
    """The edges of each atom, for all calls of :func:`message` with these edges: one sort on a GPU,
    nothing on the CPU.

    Args:
        edge_index: (2, n_edges) int64, within 0 .. num_atoms - 1.
        num_atoms: of the graph.

    Returns:
        What only the operator understands; None where there is none.
    """
    if torch.compiler.is_compiling() or not _available(edge_index.device.type):
        return None
    return torch.ops.mlff.group_edges(edge_index, num_atoms)


def message(
    features: Tensor,
    vectors: Tensor,
    filters: Tensor,
    directions: Tensor,
    edge_index: Tensor,
    edge_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`message_reference`, by the fused operator where the device has one.

    Twice differentiable in all but the edges. ``edge_groups`` are those of :func:`group_edges`;
    without, they are made here.
    """
    if edge_groups is None:
        edge_groups = group_edges(edge_index, vectors.shape[0])
    if edge_groups is None:
        return message_reference(features, vectors, filters, directions, edge_index)
    return _Message.apply(features, vectors, filters, directions, edge_index, edge_groups)


@functools.cache
def _available(device_type: str) -> bool:
    return has_kernel("painn_message", device_type)


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        return torch.ops.mlff.painn_message(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_MessageBackward.apply(*gradients, *ctx.saved_tensors), None, None


class _MessageBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        return torch.ops.mlff.painn_message_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.mlff.painn_message_double_backward(*gradients, *ctx.saved_tensors)
        return *found, None, None
