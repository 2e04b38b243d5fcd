"""What holds atoms in place: ASE's constraints as one mask of Cartesian coordinates, and back."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from mlff_distiller.errors import InputError


def fixed_of(atoms: Atoms) -> tuple[np.ndarray | None, list[str]]:
    """The coordinates that the constraints of ``atoms`` hold.

    Returns:
        (n, 3) bool, None where nothing is held, and the names of constraints that are none of
        Cartesian coordinates (bond lengths, planes, selective dynamics of a skewed cell).
    """
    fixed = np.zeros((len(atoms), 3), dtype=bool)
    others = []
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
        elif isinstance(constraint, FixCartesian) or (
            isinstance(constraint, FixScaled)
            and (constraint.mask.all() or scaled_is_cartesian(atoms.cell.array, constraint.mask))
        ):
            fixed[constraint.index] |= constraint.mask
        else:
            others.append(type(constraint).__name__)
    return (fixed if fixed.any() else None), sorted(set(others))


def constraints_of(fixed: np.ndarray | None) -> list[FixAtoms | FixCartesian]:
    """The mask as few constraints of ASE: one per kind of coordinates that are held."""
    if fixed is None:
        return []
    constraints: list[FixAtoms | FixCartesian] = []
    for mask in np.unique(fixed, axis=0):
        atoms = np.flatnonzero((fixed == mask).all(axis=1))
        if mask.all():
            constraints.append(FixAtoms(atoms))
        elif mask.any():
            constraints.append(FixCartesian(atoms, mask))
    return constraints


def selective_dynamics(atoms: Atoms) -> list[FixAtoms | FixScaled]:
    """Constraints of ``atoms`` as POSCAR files hold them: along lattice vectors.

    Raises:
        InputError: single Cartesian coordinates are held that are none of this cell.
    """
    constraints: list[FixAtoms | FixScaled] = []
    for c in atoms.constraints:
        if isinstance(c, FixAtoms):
            constraints.append(c)
        elif scaled_is_cartesian(atoms.cell.array, c.mask):
            constraints.append(FixScaled(c.index, c.mask))
        else:
            raise InputError(
                f"selective dynamics hold lattice coordinates, and those of atom {c.index[0]} that "
                "are held are Cartesian ones of a skewed cell; write .extxyz"
            )
    return constraints


def scaled_is_cartesian(cell: np.ndarray, mask: np.ndarray) -> bool:
    """Whether to hold these lattice coordinates is to hold the Cartesian ones of the same names:
    with x_k = Σ_i s_i cell[i, k], free s_i must not move held x_k."""
    reach = np.abs(cell[~mask][:, mask])
    return bool((reach < 1e-8 * np.abs(cell).max()).all())
