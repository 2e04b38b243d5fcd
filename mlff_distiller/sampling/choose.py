"""Which frames are worth a label: farthest-point selection over the environments of atoms."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from ase.neighborlist import neighbor_list
from scipy import sparse

from mlff_distiller.data.structure import Structure, elements_of
from mlff_distiller.errors import InputError

_BLOCK = 1 << 22  # distances in memory at a time: 32 MiB
_RADIAL, _ANGULAR = 8, 3  # radial functions of the two kinds of descriptors


def farthest_points(
    descriptors: Sequence[np.ndarray], number: int, *, given: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Choose frames one by one, each as far as possible from all that were chosen before.

    The distance of a frame to the chosen ones is that of its most unusual atom: the largest over
    its atoms of the distance to the nearest environment among the chosen frames. So one atom
    beside a vacancy counts, however many ordinary ones surround it. Columns are divided by their
    standard deviation over all frames first. Without ``given`` the first frame is the one with
    the atom farthest from the mean. Ties go to the earlier frame; nothing is random.

    Greedy selection of k centres (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5). A distance
    can only shrink while frames are added, so that those of a frame are brought up to date when
    it leads, not before: the choice is the same, and most of the distances are never computed.

    Args:
        descriptors: (n_i, d) of each frame, a row for each atom: features of a student or
            :func:`geometric_descriptors`. Any unit.
        number: how many to choose; all, if there are fewer.
        given: (m_i, d) of frames that count as chosen already, such as the training set.

    Returns:
        (min(number, len(descriptors)),) int64, indices in the order of choice.

    Raises:
        InputError: a negative number, arrays of other shapes, NaN or infinite descriptors.
    """
    given = [] if given is None else given
    if number < 0:
        raise InputError(f"the number of frames to choose must be >= 0, got {number}; raise it")
    number = min(number, len(descriptors))
    _check([*descriptors, *given])
    if number == 0:
        return np.empty(0, dtype=np.int64)
    mean, scale = _moments([*descriptors, *given])

    def rows(frame: np.ndarray) -> np.ndarray:
        return (np.asarray(frame, dtype=np.float64) - mean) / scale

    chosen = _Rows(rows(np.concatenate([np.asarray(g) for g in given])) if given else None)
    # Squared distance of each atom to the nearest chosen environment, and how many of those
    # environments it has seen.
    nearest = [np.full(len(d), np.inf) for d in descriptors]
    seen = [0] * len(descriptors)
    order: list[int] = []
    if not given:
        norms = [float(np.square(rows(d)).sum(axis=1).max()) for d in descriptors]
        first = int(np.argmax(norms))
        order.append(first)
        chosen.add(rows(descriptors[first]))
    heap = [(-np.inf, i) for i in range(len(descriptors)) if i not in order]
    while len(order) < number:
        _, i = heapq.heappop(heap)
        if seen[i] < len(chosen):
            new = chosen.nearest(rows(descriptors[i]), seen[i])
            np.minimum(nearest[i], new, out=nearest[i])
            seen[i] = len(chosen)
            heapq.heappush(heap, (-float(nearest[i].max()), i))
            continue
        order.append(i)
        chosen.add(rows(descriptors[i]))
    return np.array(order, dtype=np.int64)


class _Rows:
    """Environments that were chosen, in an array that grows by doubling."""

    def __init__(self, first: np.ndarray | None) -> None:
        self._count = 0
        self._rows = np.empty((0, 0))
        if first is not None:
            self.add(first)

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        total = self._count + len(rows)
        if total > len(self._rows):
            larger = np.empty((max(total, 2 * len(self._rows)), rows.shape[1]))
            if self._count:
                larger[: self._count] = self._rows[: self._count]
            self._rows = larger
        self._rows[self._count : total] = rows
        self._count = total

    def nearest(self, rows: np.ndarray, begin: int) -> np.ndarray:
        """Squared distance of each of ``rows`` to the nearest one from number ``begin`` on."""
        best = np.full(len(rows), np.inf)
        step = max(1, _BLOCK // len(rows))
        own = np.square(rows).sum(axis=1)
        for k in range(begin, self._count, step):
            others = self._rows[k : min(k + step, self._count)]
            squares = np.square(others).sum(axis=1) - 2.0 * (rows @ others.T)
            np.minimum(best, own + squares.min(axis=1), out=best)
        return np.maximum(best, 0.0)


def _check(frames: Sequence[np.ndarray]) -> None:
    widths = set()
    for i, frame in enumerate(frames):
        shape = np.shape(frame)
        if len(shape) != 2 or 0 in shape:
            raise InputError(
                f"descriptors of frame {i} must have shape (atoms, d), got {shape}; pass a row "
                "for each atom"
            )
        widths.add(shape[1])
        if not np.all(np.isfinite(frame)):
            raise InputError(f"descriptors of frame {i} must be finite, got NaN; leave it out")
    if len(widths) > 1:
        raise InputError(
            f"descriptors must have one width, got {sorted(widths)}; compute them in one call"
        )


def _moments(frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over all atoms; 1 where a column is constant."""
    count = sum(len(f) for f in frames)
    mean = sum(np.sum(f, axis=0, dtype=np.float64) for f in frames) / count
    squares = sum(np.square(np.asarray(f, dtype=np.float64) - mean).sum(axis=0) for f in frames)
    scale = np.sqrt(squares / count)
    # Of a constant column only rounding is left, which must not be blown up.
    constant = scale <= 1e-7 * np.maximum(np.abs(mean), 1.0)
    return np.asarray(mean), np.where(constant, 1.0, scale)


def geometric_descriptors(
    structures: Sequence[Structure],
    *,
    cutoff: float = 5.0,
    elements: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Descriptors of atoms from geometry alone, for choosing frames before there is a student.

    Of the neighbours of each element: smooth radial densities, and for each pair of elements the
    contracted moments ``sum_jk g(r_j) g(r_k) cos(angle_jk)^l`` for l = 1, 2, 3 (the invariants of
    moment tensors, Shapeev 2016, arXiv:1512.06054, which span those of the power spectrum). They
    do not change under rotation, reflection, translation and exchange of like atoms, and go
    smoothly to zero at the cutoff. The element of the atom itself is one column for each element.

    Args:
        structures: any.
        cutoff: of the neighbours, Å.
        elements: atomic numbers that columns stand for; by default those that occur. Pass the
            same for sets that are to be compared.

    Returns:
        (n_i, d) float32 of each structure; d depends on the number of elements alone.

    Raises:
        InputError: an element outside of ``elements``.
    """
    known = elements_of(structures) if elements is None else sorted({int(z) for z in elements})
    unknown = sorted(set(elements_of(structures)) - set(known))
    if unknown:
        raise InputError(
            f"geometric_descriptors got elements {known}, but the structures hold {unknown} too; "
            "add them"
        )
    return [_describe(s, cutoff, known) for s in structures]


def _describe(structure: Structure, cutoff: float, elements: Sequence[int]) -> np.ndarray:
    n = len(structure)
    i, j, d, vectors = neighbor_list("ijdD", structure.to_atoms(labels=False), cutoff)
    d = np.maximum(d, 1e-6)
    unit = vectors / d[:, None]
    fade = np.square(1.0 - np.square(d / cutoff))[:, None]  # its slope is zero at the cutoff too
    radial = _gaussians(d, cutoff, _RADIAL) * fade
    angular = _gaussians(d, cutoff, _ANGULAR) * fade
    pairs = (unit[:, :, None] * unit[:, None, :]).reshape(-1, 9)
    triples = (pairs[:, :, None] * unit[:, None, :]).reshape(-1, 27)
    tensors = np.concatenate([unit, pairs, triples], axis=1)
    moments = (angular[:, :, None] * tensors[:, None, :]).reshape(-1, _ANGULAR * 39)
    numbers = structure.atomic_numbers
    columns = [(numbers[:, None] == np.array(elements)).astype(np.float64)]
    by_element = []
    for z in elements:
        mine = np.flatnonzero(numbers[j] == z)
        total = sparse.csr_matrix(
            (np.ones(len(mine)), (i[mine], np.arange(len(mine)))), shape=(n, len(mine))
        )
        columns.append(total @ radial[mine])
        by_element.append((total @ moments[mine]).reshape(n, _ANGULAR, 39))
    for a, left in enumerate(by_element):
        for right in by_element[a:]:
            product = left * right
            for begin, end in ((0, 3), (3, 12), (12, 39)):
                columns.append(product[:, :, begin:end].sum(axis=2))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _gaussians(d: np.ndarray, cutoff: float, number: int) -> np.ndarray:
    """(edges, number): bumps whose centres are spread from the shortest bonds to the cutoff."""
    centres = np.linspace(0.15 * cutoff, 0.95 * cutoff, number)
    width = centres[1] - centres[0]
    return np.exp(-0.5 * np.square((d[:, None] - centres) / width))
