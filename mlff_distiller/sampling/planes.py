"""A crystal as a stack of layers along the normal of a plane, cut in a gap between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.build import surface

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import is_translation, smallest_repeat, unlabelled

_LAYER = 0.3  # Å: atoms whose heights differ by less are one layer
_GRID = 12  # of shifts along each vector of a plane: it holds halves, thirds, quarters and sixths


class Block(NamedTuple):
    """A piece of a perfect crystal: vectors 1 and 2 lie in the plane, z is its normal."""

    structure: Structure
    """Periodic in three directions; no atom lies near the faces z = 0 and z = height."""
    periods: int
    """Repeats along the third vector."""

    @property
    def period(self) -> float:
        """Height of one repeat, Å; its face is a gap of the same kind."""
        return float(self.structure.cell[2, 2]) / self.periods


def cut_block(
    structure: Structure, miller: Sequence[int], thickness: float, termination: int = 0
) -> Block:
    """Turn a crystal and repeat it along the normal of a plane.

    Args:
        structure: a crystal; if it repeats a smaller cell along its vectors, Miller indices count
            in that.
        miller: of the plane.
        thickness: of the block at least, Å.
        termination: 0 puts the faces into the widest gap between layers, 1 into the next ...

    Raises:
        InputError: held atoms, Miller indices of zeros, a structure that is not periodic, or no
            such termination.
    """
    unit, indices = _checked(structure, miller)
    periods = max(1, int(np.ceil(thickness / _stack(unit, indices, 1).period - 1e-6)))
    block = _stack(unit, indices, periods)
    cuts, gaps = _gaps(block)
    if not 0 <= termination < len(gaps):
        raise InputError(
            f"the plane {tuple(indices)} of {structure.formula} has the terminations "
            f"0..{len(gaps) - 1}, got {termination}; choose one"
        )
    # Widest first; of equal ones the lowest.
    order = np.lexsort([cuts, -np.round(gaps, 3)])
    piece = block.structure
    positions = piece.positions - [[0.0, 0.0, float(cuts[order[termination]])]]
    positions -= np.floor(positions[:, 2:] / piece.cell[2, 2]) * piece.cell[2]
    # Into the cell along the plane; atoms on its edge stay together.
    flat = np.linalg.solve(piece.cell[:2, :2].T, positions[:, :2].T).T
    positions -= np.floor(flat + 1e-6) @ piece.cell[:2]
    return Block(unlabelled(piece, positions=positions), periods)


def plane_gaps(structure: Structure, miller: Sequence[int]) -> list[float]:
    """Gaps between the layers of one period, Å, widest first: one for each termination."""
    unit, indices = _checked(structure, miller)
    return sorted(_gaps(_stack(unit, indices, 1))[1].tolist(), reverse=True)


def fault_shifts(block: Block, upper: np.ndarray) -> list[tuple[float, float]]:
    """Shifts of the upper half that lead to another stacking, by fractions of vectors 1 and 2.

    Where two layers slide over each other, the atoms across the plane come nearest on top of each
    other and are farthest apart in the hollows: the hollows that are no translation of the crystal
    are the faults. Farthest apart first; where there are none, the shift that is farthest from
    all translations.

    Args:
        block: a crystal.
        upper: (n,) bool, the half that shifts.
    """
    structure = block.structure
    plane = structure.cell[:2]
    steps = np.arange(_GRID) / _GRID
    shifts = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)
    face = 0.5 * (structure.positions[upper, 2].min() + structure.positions[~upper, 2].max())
    near = np.abs(structure.positions[:, 2] - face) < 5.0
    apart = _closest(structure, near & upper, near & ~upper, shifts @ plane)
    same = np.array([[is_translation(structure, v) for v in row] for row in shifts @ plane])
    ring = [
        np.roll(apart, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)
    ]
    hollow = np.all([apart >= other - 1e-6 for other in ring], axis=0) & ~same
    # A long hollow is several points of the grid: all of them count.
    found = [(float(apart[a, b]), a, b) for a, b in np.argwhere(hollow)]
    if not found:
        rest = [[_to_nearest(v, shifts[same], plane) for v in row] for row in shifts]
        a, b = np.unravel_index(int(np.argmax(np.round(rest, 6))), same.shape)
        found = [(0.0, int(a), int(b))]
    found.sort(key=lambda f: (-round(f[0], 4), f[1:]))
    return [(float(steps[a]), float(steps[b])) for _, a, b in found]


def _checked(structure: Structure, miller: Sequence[int]) -> tuple[Structure, list[int]]:
    indices = [int(m) for m in miller]
    if len(indices) != 3 or not any(indices) or indices != [float(m) for m in miller]:
        raise InputError(
            f"Miller indices must be three integers that are not all 0, got {list(miller)}; "
            "use e.g. [1, 1, 0]"
        )
    if not structure.pbc.all():
        raise InputError(
            f"a plane is cut from a crystal with three periodic directions, got "
            f"{structure.formula} with pbc {structure.pbc.tolist()}; give a crystal"
        )
    if structure.fixed is not None:
        raise InputError(
            f"surfaces and stacking faults move every atom, but {structure.formula} has held ones; "
            "remove the constraints, or leave those kinds out"
        )
    return smallest_repeat(structure)[0], indices


def _stack(unit: Structure, indices: list[int], periods: int) -> Block:
    """The crystal with z along the normal, cut anywhere."""
    n = len(unit)
    atoms = surface(unit.to_atoms(labels=False), indices, periods + 1, periodic=True)
    plane = np.array(atoms.cell[:2])
    # ASE makes the third vector the normal; that of the crystal leads from an atom to its copy.
    step = atoms.positions[n] - atoms.positions[0]
    flat = periods * step[:2]
    flat = flat - np.round(np.linalg.solve(plane[:, :2].T, flat)) @ plane[:, :2]
    cell = np.vstack([plane, [*flat, periods * step[2]]])
    first = atoms[: n * periods]
    structure = unlabelled(
        unit,
        atomic_numbers=first.numbers,
        positions=first.positions,
        cell=cell,
        pbc=np.ones(3, dtype=bool),
    )
    return Block(structure, periods)


def _gaps(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Middle heights and widths of the gaps between layers in one period, from below, Å."""
    heights = np.sort(block.structure.positions[:, 2] % block.period)
    gaps = np.diff(np.append(heights, heights[0] + block.period))
    wide = gaps > min(_LAYER, 0.999 * float(gaps.max()))
    return (heights + 0.5 * gaps)[wide], gaps[wide]


def _closest(
    structure: Structure, above: np.ndarray, below: np.ndarray, shifts: np.ndarray
) -> np.ndarray:
    """Smallest distance across the plane for each shift (a, b, 3), Å."""
    plane = structure.cell[:2]
    apart = structure.positions[above][:, None] - structure.positions[below][None]
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1) @ plane
    result = np.empty(shifts.shape[:2])
    for a, b in np.ndindex(*result.shape):
        d = apart + shifts[a, b]
        d = (
            d
            - np.round(np.linalg.solve(plane[:, :2].T, d[..., :2].reshape(-1, 2).T).T).reshape(
                *d.shape[:2], 2
            )
            @ plane
        )
        result[a, b] = np.linalg.norm(d[:, :, None, None] + images, axis=-1).min()
    return result


def _to_nearest(shift: np.ndarray, translations: np.ndarray, plane: np.ndarray) -> float:
    apart = translations - shift
    return float(np.linalg.norm((apart - np.round(apart)) @ plane, axis=1).min())
