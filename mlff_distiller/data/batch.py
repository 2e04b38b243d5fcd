"""Batches: atoms of several structures one after another, with their neighbour lists.

Neighbour lists depend only on the structure and the cutoff, so each is built once and kept for
as long as its Structure lives (a dataset keeps its structures, an epoch therefore builds none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.data.structure import Structure, complete_cell
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import FLAT_CELL

# Edges as int32: half the memory of what the model takes. Structure -> {cutoff: (index, shifts)}
_CACHE: WeakKeyDictionary[Structure, dict[float, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
_OPEN = np.eye(3)


@dataclass(frozen=True)
class Batch:
    """B structures with N atoms and E edges.

    | field           | shape     | type    | unit   |                                         |
    |-----------------|-----------|---------|--------|-----------------------------------------|
    | atomic_numbers  | (N,)      | int64   |        |                                         |
    | positions       | (N, 3)    | dtype   | Å      |                                         |
    | cell            | (B, 3, 3) | dtype   | Å      | rows are lattice vectors                |
    | pbc             | (B, 3)    | bool    |        |                                         |
    | structure_index | (N,)      | int64   |        | structure of each atom, ascending       |
    | edge_index      | (2, E)    | int64   |        | senders, receivers                      |
    | shifts          | (E, 3)    | int64   |        | images: r_s - r_r + shift @ cell        |
    | energy          | (B,)      | float64 | eV     | float32 has only 1 meV at 17 keV        |
    | forces          | (N, 3)    | dtype   | eV/Å   | 0 where has_forces is false             |
    | stress          | (B, 3, 3) | dtype   | eV/Å^3 | 0 where has_stress is false             |
    | has_energy, has_forces, has_stress | (B,) | bool | | which labels exist                     |
    """

    atomic_numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    structure_index: Tensor
    edge_index: Tensor
    shifts: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    has_energy: Tensor
    has_forces: Tensor
    has_stress: Tensor
    num_structures: int

    @property
    def num_atoms(self) -> Tensor:
        """Atoms of each structure, (B,) int64."""
        return torch.bincount(self.structure_index, minlength=self.num_structures)

    @property
    def has_volume(self) -> Tensor:
        """Which structures have a stress, (B,) bool; see :func:`lattice.stress_volume`."""
        lengths = torch.linalg.vector_norm(self.cell, dim=2)
        volumes = torch.linalg.det(self.cell).abs()
        return self.pbc.any(dim=1) & (volumes > FLAT_CELL * lengths.prod(dim=1))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Move to ``device`` and cast the real tensors (except ``energy``) to ``dtype``."""
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                cast = dtype if value.is_floating_point() and f.name != "energy" else None
                changes[f.name] = value.to(device=device, dtype=cast or value.dtype)
        return replace(self, **changes)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, as a DataLoader asks for."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        pinned: dict[str, Any] = {
            k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in values.items()
        }
        return replace(self, **pinned)


class NeighborMemory:
    """How much memory neighbour lists may still take.

    Args:
        limit: bytes; lists beyond it are built each time that they are asked for.
    """

    def __init__(self, limit: float) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Whether a list of ``size`` bytes may be kept."""
        if size > self._left:
            return False
        self._left -= size
        return True


def neighbors_of(
    structure: Structure, cutoff: float, memory: NeighborMemory | None = None
) -> tuple[Tensor, Tensor]:
    """Neighbour list of one structure, cached while the structure lives.

    Args:
        structure: a valid structure.
        cutoff: Å.
        memory: where to ask whether a new list may be cached; always when left out.

    Returns:
        edge_index (2, E) and shifts (E, 3), both int32.
    """
    from mlff_distiller.ops import neighbor_list

    known = _CACHE.get(structure, {}).get(cutoff)
    if known is not None:
        return known
    pbc = structure.pbc.tolist()
    # Rows of open directions are ignored, and those of periodic ones are there.
    cell = structure.cell if all(pbc) else complete_cell(structure.cell) if any(pbc) else _OPEN
    edge_index, shifts = neighbor_list(
        torch.from_numpy(structure.positions),
        torch.from_numpy(cell),
        torch.from_numpy(structure.pbc),
        cutoff,
    )
    lists = (edge_index.to(torch.int32), shifts.to(torch.int32))
    if memory is None or memory.take(sum(t.numel() * t.element_size() for t in lists)):
        _CACHE.setdefault(structure, {})[cutoff] = lists
    return lists


def collate(
    structures: Sequence[Structure],
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    memory: NeighborMemory | None = None,
) -> Batch:
    """Concatenate structures into a :class:`Batch` on the CPU.

    Args:
        structures: at least one.
        cutoff: Å, of the neighbour lists.
        dtype: of positions, cell, forces and stress.
        memory: of the neighbour lists, see :func:`neighbors_of`.

    Raises:
        InputError: no structures.
    """
    if not structures:
        raise InputError("a batch must hold at least one structure, got none; pass some")
    sizes = [len(s) for s in structures]
    starts = np.cumsum([0, *sizes])
    lists = [neighbors_of(s, float(cutoff), memory) for s in structures]
    edges = np.cumsum([0, *(len(shift) for _, shift in lists)])
    # NumPy, not torch: it may run beside a training step and must not start threads of its own.
    edge_index = np.empty((2, edges[-1]), dtype=np.int64)
    shifts = np.empty((edges[-1], 3), dtype=np.int64)
    for k, (index, shift) in enumerate(lists):
        mine = slice(edges[k], edges[k + 1])
        np.add(index.numpy(), starts[k], out=edge_index[:, mine])
        shifts[mine] = shift.numpy()
    types = np.float32 if dtype == torch.float32 else np.float64

    def stack(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays).astype(types)).to(dtype)

    def rows(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(types)).to(dtype)

    zero = np.zeros((3, 3))
    return Batch(
        atomic_numbers=torch.from_numpy(np.concatenate([s.atomic_numbers for s in structures])),
        positions=rows([s.positions for s in structures]),
        cell=stack([s.cell for s in structures]),
        pbc=torch.from_numpy(np.stack([s.pbc for s in structures])),
        structure_index=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        edge_index=torch.from_numpy(edge_index),
        shifts=torch.from_numpy(shifts),
        energy=torch.tensor([s.energy or 0.0 for s in structures], dtype=torch.float64),
        forces=rows(
            [np.zeros_like(s.positions) if s.forces is None else s.forces for s in structures]
        ),
        stress=stack([zero if s.stress is None else s.stress for s in structures]),
        has_energy=torch.tensor([s.energy is not None for s in structures]),
        has_forces=torch.tensor([s.forces is not None for s in structures]),
        has_stress=torch.tensor([s.stress is not None for s in structures]),
        num_structures=len(structures),
    )
