"""Neighbour lists and edge vectors.

Conventions: ``senders, receivers = edge_index``; an edge vector points from the receiver to its
neighbour, ``positions[senders] - positions[receivers] + shifts @ cell``. Each pair appears once
in either direction. Images of an atom are neighbours like any other, its own included.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mlff_distiller.errors import InputError
from mlff_distiller.lattice import is_flat, volume_of
from mlff_distiller.ops.library import has_kernel, load_library
from mlff_distiller.ops.reference import neighbor_list_reference

Backend = Literal["native", "reference"]


def neighbor_list(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, *, backend: Backend = "native"
) -> tuple[Tensor, Tensor]:
    """All pairs of atoms closer than ``cutoff``, periodic images included.

    Both backends return the same edges in the same order: by receiver, then sender, then shift; on
    a GPU ``"native"`` keeps to the first of these only, in an order that is the same in every run.
    Distances are evaluated in float64 whatever the dtype of ``positions``. Cost: O(n_atoms).

    Args:
        positions: (n_atoms, 3) float32 or float64, Å; atoms may lie outside of the cell.
        cell: (3, 3), Å, rows are lattice vectors; rows of open directions are ignored.
        pbc: (3,) bool.
        cutoff: Å, > 0; a pair at exactly the cutoff is left out.
        backend: ``"native"`` (C++; on the CPU with as many threads as torch uses, on a GPU where
            the library was built with CUDA) or ``"reference"`` (torch operations, any device).

    Returns:
        ``edge_index`` (2, n_edges) int64 and ``shifts`` (n_edges, 3) int64, the lattice vectors
        added to the sender, both on the device of ``positions``.

    Raises:
        InputError: wrong shape or dtype, NaN or infinity, a singular or left-handed periodic
            cell, cutoff <= 0, or no native library (the message says how to build it).
    """
    _check_shapes(positions, cell, pbc)
    if not torch.compiler.is_compiling():  # values are unknown there; the operator checks them
        _check_values(positions, cell, pbc, cutoff)
    if backend == "reference":
        return neighbor_list_reference(positions, cell, pbc, cutoff)
    if backend != "native":
        raise InputError(f"backend must be 'native' or 'reference', got {backend!r}")
    load_library()
    device = positions.device
    if device.type not in ("cpu", "meta") and not has_kernel("neighbor_list", device.type):
        raise InputError(
            f"the native neighbour list of this build takes CPU tensors, got positions on {device}; "
            "move them or use backend='reference'"
        )
    return torch.ops.mlff.neighbor_list(positions.detach(), cell.detach(), pbc, float(cutoff))


def edge_vectors(
    positions: Tensor,
    cell: Tensor,
    edge_index: Tensor,
    shifts: Tensor,
    structure_index: Tensor | None = None,
) -> Tensor:
    """Vectors from each receiver to its neighbour; differentiable in positions and cell.

    Args:
        positions: (n_atoms, 3), Å.
        cell: (3, 3), Å; or (n_structures, 3, 3) together with ``structure_index``.
        edge_index: (2, n_edges) int64, senders then receivers.
        shifts: (n_edges, 3) integer, lattice vectors added to the sender.
        structure_index: (n_atoms,) int64, the structure of each atom of a batch.

    Returns:
        (n_edges, 3), Å.
    """
    # index_select, not advanced indexing: its backward is a plain index_add.
    senders, receivers = edge_index[0], edge_index[1]
    vectors = positions.index_select(0, senders) - positions.index_select(0, receivers)
    translations = shifts.to(positions.dtype)
    if structure_index is None:
        return vectors + translations @ cell
    cells = cell.index_select(0, structure_index.index_select(0, receivers))
    return vectors + torch.bmm(translations.unsqueeze(1), cells).squeeze(1)


def _check_shapes(positions: Tensor, cell: Tensor, pbc: Tensor) -> None:
    """Raise InputError unless shapes and dtypes are those of one structure."""
    if positions.dim() != 2 or positions.shape[1] != 3:
        raise InputError(f"positions must have shape (n_atoms, 3), got {tuple(positions.shape)}")
    if cell.shape != (3, 3):
        raise InputError(
            f"cell must have shape (3, 3), rows are lattice vectors, got {tuple(cell.shape)}"
        )
    if pbc.shape != (3,) or pbc.dtype != torch.bool:
        raise InputError(
            f"pbc must be a bool tensor of shape (3,), got {pbc.dtype} {tuple(pbc.shape)}"
        )
    for name, tensor in (("positions", positions), ("cell", cell)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} must be float32 or float64, got {tensor.dtype}; convert it")


def _check_values(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> None:
    """Raise InputError for values without a neighbour list (as csrc/core/lattice.cpp does)."""
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise InputError(f"cutoff must be > 0 Å, got {cutoff}; set cutoff")
    finite = torch.isfinite(positions.detach())
    if not bool(finite.all()):
        atom = int(torch.nonzero(~finite)[0, 0])
        raise InputError(
            f"positions must be finite, got NaN or infinity for atom {atom}; check the structure"
        )
    flags = pbc.tolist()
    rows = [row for row, periodic in zip(cell.tolist(), flags, strict=True) if periodic]
    for k, row in zip((k for k in range(3) if flags[k]), rows, strict=True):
        if not all(map(math.isfinite, row)) or not any(row):
            raise InputError(
                f"cell row {k} must be a finite, non-zero vector where pbc is true, got {row}; "
                "set the cell or switch pbc off"
            )
    if not rows:
        return
    if is_flat(rows):
        raise InputError(
            "cell must have linearly independent rows where pbc is true, got volume 0; "
            "set the cell or switch pbc off"
        )
    volume = volume_of(rows)
    if volume < 0:
        raise InputError(
            f"cell must be right-handed, got volume {volume:.6g} Å^3; swap two lattice vectors"
        )
