"""Point defects, surfaces and stacking faults of crystals, as plain functions.

Each takes a structure that is periodic in three directions and returns a new one without labels;
``info`` says what was done. Supercells are the caller's (:func:`~.geometry.roomy_cell`), and so
are displacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import Voronoi, cKDTree

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import smallest_repeat, unlabelled
from mlff_distiller.sampling.planes import cut_block, fault_shifts, plane_gaps

__all__ = [
    "Site",
    "interstitial_sites",
    "make_antisite",
    "make_dumbbell",
    "make_interstitial",
    "make_stacking_fault",
    "make_surface",
    "make_vacancy",
    "plane_gaps",
]


class Site(NamedTuple):
    """A void of a crystal."""

    position: np.ndarray
    """(3,), Å."""
    radius: float
    """Distance to the nearest atoms, Å."""
    coordination: int
    """Atoms at that distance: 4 where it is tetrahedral, 6 where it is octahedral."""


def make_vacancy(structure: Structure, atom: int = 0) -> Structure:
    """Remove one atom.

    Raises:
        InputError: no such atom, the only one, or a held one.
    """
    _check_atom(structure, atom)
    if len(structure) == 1:
        raise InputError(
            f"a vacancy needs a cell of two atoms or more, got {structure.formula}; repeat it"
        )
    keep = np.arange(len(structure)) != atom
    return unlabelled(
        structure,
        atomic_numbers=structure.atomic_numbers[keep],
        positions=structure.positions[keep],
        fixed=None if structure.fixed is None else structure.fixed[keep],
        info={**structure.info, "defect": "vacancy", "atom": int(atom)},
    )


def make_antisite(structure: Structure, atom: int, other: int) -> Structure:
    """Exchange the elements of two atoms, which must differ; the composition stays.

    Raises:
        InputError: no such atom, a held one, or two of one element.
    """
    _check_atom(structure, atom)
    _check_atom(structure, other)
    numbers = structure.atomic_numbers.copy()
    if numbers[atom] == numbers[other]:
        raise InputError(
            f"an antisite needs atoms of two elements, got {atom} and {other} of one; choose others"
        )
    numbers[[atom, other]] = numbers[[other, atom]]
    info = {**structure.info, "defect": "antisite", "atom": int(atom), "other": int(other)}
    return unlabelled(structure, atomic_numbers=numbers, info=info)


def interstitial_sites(structure: Structure, *, min_radius: float = 0.8) -> list[Site]:
    """The voids of a crystal, one of each kind, largest first.

    They are the corners of the Voronoi cells, which have four or more nearest atoms at one
    distance: the tetrahedral, octahedral, hexagonal ... sites of any crystal. Sites of one radius
    and one number of nearest atoms are of one kind; the one with the smallest z, then y, then x in
    the cell (that which a supercell repeats) stands for them.

    Args:
        structure: periodic in three directions.
        min_radius: smaller voids are left out, Å.
    """
    structure, _ = smallest_repeat(structure)
    points, _ = _images(structure, 8.0)
    corners = Voronoi(points).vertices
    fractional = np.linalg.solve(structure.cell.T, corners.T).T
    inside = np.all((fractional > -1e-6) & (fractional < 1.0 - 1e-6), axis=1)
    found: dict[tuple[float, int], Site] = {}
    tree = cKDTree(points)
    inner = corners[inside]
    for position in inner[np.lexsort(np.round(inner, 4).T)]:
        radius = float(tree.query(position)[0])
        if radius < min_radius:
            continue
        coordination = len(tree.query_ball_point(position, 1.05 * radius))
        found.setdefault((round(radius, 2), coordination), Site(position, radius, coordination))
    return sorted(found.values(), key=lambda site: -site.radius)


def make_interstitial(
    structure: Structure, position: np.ndarray | None = None, element: int | None = None
) -> Structure:
    """Add an atom.

    Args:
        structure: periodic in three directions.
        position: (3,), Å; by default the largest void, see :func:`interstitial_sites`.
        element: atomic number; by default that of atom 0.

    Raises:
        InputError: no position was given, and there is no void.
    """
    if position is None:
        sites = interstitial_sites(structure)
        if not sites:
            raise InputError(
                f"{structure.formula} has no void for an interstitial; give a position"
            )
        position = sites[0].position
    return _added(structure, position, element, {"defect": "interstitial"})


def make_dumbbell(
    structure: Structure,
    atom: int = 0,
    direction: Sequence[float] = (1.0, 0.0, 0.0),
    *,
    element: int | None = None,
    separation: float | None = None,
) -> Structure:
    """A split interstitial: an atom makes room, and a second one shares its site.

    Args:
        structure: any.
        atom: the one that makes room.
        direction: of the pair, Cartesian.
        element: of the second atom; by default that of the first.
        separation: of the pair, Å; by default 0.85 of the distance of its nearest neighbour.

    Raises:
        InputError: no such atom, or a held one.
    """
    _check_atom(structure, atom)
    points, _ = _images(structure, 8.0)
    site = structure.positions[atom]
    if separation is None:
        separation = 0.85 * float(cKDTree(points).query(site, 2)[0][1])
    half = 0.5 * separation * np.asarray(direction) / np.linalg.norm(direction)
    positions = structure.positions.copy()
    positions[atom] = site - half
    element = int(structure.atomic_numbers[atom]) if element is None else element
    info = {"defect": "dumbbell", "atom": int(atom), "separation": round(separation, 4)}
    return _added(unlabelled(structure, positions=positions), site + half, element, info)


def make_surface(
    structure: Structure,
    miller: Sequence[int] = (1, 0, 0),
    *,
    thickness: float = 10.0,
    vacuum: float = 12.0,
    periodic: bool = False,
    termination: int = 0,
) -> Structure:
    """A slab of a crystal with vacuum on both sides.

    Args:
        structure: a crystal; if it repeats a smaller cell along its vectors, Miller indices count
            in that.
        miller: of the surface.
        thickness: of the crystal that makes the slab at least, Å; whole periods are taken.
        vacuum: between the outermost atoms of the slab and of its image, Å.
        periodic: in all three directions, for teachers that need it; else in those of the plane.
        termination: 0 cuts through the widest gap between layers, 1 through the next ... (see
            :func:`plane_gaps`).

    Returns:
        a slab with the composition of the crystal, its third vector along the normal.

    Raises:
        InputError: held atoms, Miller indices of zeros, a structure that is not periodic, or no
            such termination.
    """
    block = cut_block(structure, miller, thickness, termination).structure
    low, high = block.positions[:, 2].min(), block.positions[:, 2].max()
    cell = block.cell.copy()
    cell[2] = [0.0, 0.0, high - low + vacuum]
    info = {"defect": "surface", "miller": [int(m) for m in miller], "termination": termination}
    return unlabelled(
        block,
        positions=block.positions + np.array([0.0, 0.0, 0.5 * vacuum - low]),
        cell=cell,
        pbc=np.array([True, True, periodic]),
        info={**structure.info, **info},
    )


def make_stacking_fault(
    structure: Structure,
    miller: Sequence[int] = (1, 1, 1),
    *,
    shift: Sequence[float] | None = None,
    thickness: float = 12.0,
    termination: int = 0,
) -> Structure:
    """Shift the upper half of a crystal along a plane.

    The third vector of the cell shifts with it, so that each cell holds one fault. For fcc and
    (111) the default is the intrinsic one: the two layers at the plane have the neighbours of hcp.

    Args:
        structure: a crystal, see :func:`make_surface`.
        miller: of the plane.
        shift: fractions of the two vectors of the plane; by default the first of
            :func:`~.planes.fault_shifts`.
        thickness: of the crystal between two faults at least, Å.
        termination: 0 shifts along the widest gap between layers, 1 along the next ...

    Raises:
        InputError: as :func:`make_surface`.
    """
    block = cut_block(structure, miller, thickness, termination)
    if block.periods == 1:
        block = cut_block(structure, miller, 2 * block.period, termination)
    crystal = block.structure
    upper = crystal.positions[:, 2] > (block.periods // 2) * block.period
    fractions = fault_shifts(block, upper)[0] if shift is None else shift
    vector = np.asarray(fractions, dtype=np.float64) @ crystal.cell[:2]
    positions = crystal.positions.copy()
    positions[upper] += vector
    cell = crystal.cell.copy()
    flat = cell[2, :2] + vector[:2]
    # Of all vectors that lead to the next block the steepest: a skewed cell would be narrow.
    cell[2, :2] = flat - np.round(np.linalg.solve(cell[:2, :2].T, flat)) @ cell[:2, :2]
    info = {
        "defect": "stacking",
        "miller": [int(m) for m in miller],
        "shift": [round(float(f), 4) for f in fractions],
        "termination": termination,
    }
    return unlabelled(crystal, positions=positions, cell=cell, info={**structure.info, **info})


def _check_atom(structure: Structure, atom: int) -> None:
    if not 0 <= atom < len(structure):
        raise InputError(
            f"atom must be 0..{len(structure) - 1} of {structure.formula}, got {atom}; choose one"
        )
    if structure.fixed is not None and structure.fixed[atom].any():
        raise InputError(f"atom {atom} of {structure.formula} is held; choose another")


def _images(structure: Structure, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all images within ``reach`` of the cell, and the atoms they belong to."""
    if not structure.pbc.all():
        return structure.positions, np.arange(len(structure))
    widths = 1.0 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    fractional = np.linalg.solve(structure.cell.T, structure.positions.T).T
    fractional -= np.floor(fractional)
    margin = reach / widths
    steps = [np.arange(-np.ceil(m), np.ceil(m) + 1) for m in margin]
    shifts = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    every = fractional[None] + shifts[:, None]
    near = np.all((every > -margin) & (every < 1.0 + margin), axis=2)
    atoms = np.broadcast_to(np.arange(len(structure)), near.shape)[near]
    return every[near] @ structure.cell, atoms


def _added(
    structure: Structure, position: np.ndarray, element: int | None, info: dict[str, object]
) -> Structure:
    element = int(structure.atomic_numbers[0]) if element is None else int(element)
    fixed = structure.fixed
    return unlabelled(
        structure,
        atomic_numbers=np.append(structure.atomic_numbers, element),
        positions=np.vstack([structure.positions, position]),
        fixed=None if fixed is None else np.vstack([fixed, np.zeros((1, 3), dtype=bool)]),
        info={**structure.info, **info, "element": element},
    )
