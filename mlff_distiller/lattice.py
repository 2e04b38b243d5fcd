"""What makes a periodic cell unusable, and two atoms one: the limits of every engine.

Twin of ``csrc/core/lattice.h``; a test compares the numbers and the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: A cell is flat if its volume is no more than this share of the product of its lengths.
FLAT_CELL = 1e-6
#: Å. Atoms as near as this lie on one point: no direction is defined between them.
SAME_POINT = 1e-4
#: Images of the cell within reach of a neighbour list.
MOST_IMAGES = 1 << 24

Row = Sequence[float]


def cross(a: Row, b: Row) -> list[float]:
    """Cross product of two vectors."""
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def volume_of(rows: Sequence[Row]) -> float:
    """Volume of one to three lattice vectors with unit normals in place of the others.

    Args:
        rows: the periodic rows of a cell in their order, Å.

    Returns:
        Å^3; negative for three left-handed rows.
    """
    if len(rows) == 1:
        return math.hypot(*rows[0])
    normal = cross(rows[-2], rows[-1])
    if len(rows) == 2:
        return math.hypot(*normal)
    return sum(a * b for a, b in zip(rows[0], normal, strict=True))


def is_flat(rows: Sequence[Row]) -> bool:
    """Whether these lattice vectors are too near to linearly dependent for any engine."""
    return not abs(volume_of(rows)) > FLAT_CELL * math.prod(math.hypot(*row) for row in rows)


def is_left_handed(cell: np.ndarray, pbc: np.ndarray) -> bool:
    """Whether a cell with a periodic direction spans a negative volume.

    Open directions count, unless their vector is zero: the boxes of LAMMPS and others have three
    vectors.
    """
    return bool(np.any(pbc)) and volume_of(np.asarray(cell).tolist()) < 0.0


def right_handed(cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lattice with right-handed vectors; Cartesian positions stay where they are.

    Of the ways to turn it over (exchange two vectors, turn one or all of them round) the one is
    taken whose vectors lie closest to the axes x, y, z.

    Args:
        cell: (3, 3), Å.
        pbc: (3,) bool.

    Returns:
        cell and pbc; unchanged unless :func:`is_left_handed`.
    """
    if not is_left_handed(cell, pbc):
        return cell, pbc
    orders = [[1, 0, 2], [0, 2, 1], [2, 1, 0]]
    signs = [[-1, 1, 1], [1, -1, 1], [1, 1, -1], [-1, -1, -1]]
    ways = [(cell[order], np.asarray(pbc)[order]) for order in orders]
    ways += [(cell * np.array(sign)[:, None], np.asarray(pbc)) for sign in signs]
    return max(ways, key=lambda way: float(np.trace(way[0])))


def stress_volume(cell: np.ndarray, pbc: np.ndarray) -> float:
    """The volume that a stress refers to, Å^3; 0 where there is no stress.

    ASE's convention: a slab or a wire has the stress of its whole cell, vacuum included, if it has
    a cell of finite volume. Molecules have none, even in a box.
    """
    if not (pbc[0] or pbc[1] or pbc[2]):
        return 0.0
    rows = np.asarray(cell).tolist()
    return 0.0 if is_flat(rows) else abs(volume_of(rows))


def reduced(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The same lattice by shorter vectors: Gauss reduction of each pair, as in the native engine.

    Args:
        cell: (3, 3), Å, rows are lattice vectors, not flat.
        pbc: (3,) bool; rows of open directions stay as they are.

    Returns:
        (3, 3), Å; ``cell`` itself, bit by bit, where there is nothing to shorten.
    """
    rows = np.array(cell, dtype=np.float64)
    pairs = [(k, m) for k in range(3) for m in range(3) if k != m and pbc[k] and pbc[m]]
    changed = True
    while changed:
        changed = False
        for k, m in pairs:
            ratio = float(rows[k] @ rows[m]) / float(rows[m] @ rows[m])
            # Strictly above one half: every step shortens a vector, so the loop ends.
            if 0.5 + 1e-6 <= abs(ratio) <= 1e9:
                rows[k] -= round(ratio) * rows[m]
                changed = True
    return rows
