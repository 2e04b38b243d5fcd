"""Structure: one configuration of atoms with its labels, and the checks that it must pass.

| field          | shape  | unit    |                                          |
|----------------|--------|---------|------------------------------------------|
| atomic_numbers | (n,)   |         | int64                                    |
| positions      | (n, 3) | Å       |                                          |
| cell           | (3, 3) | Å       | rows are lattice vectors, 0 where open   |
| pbc            | (3,)   |         | bool                                     |
| energy         |        | eV      | or None                                  |
| forces         | (n, 3) | eV/Å    | or None                                  |
| stress         | (3, 3) | eV/Å^3  | ASE's sign (positive: tension), or None  |
| momenta        | (n, 3) | ASE's   | amu · Å / (ASE's unit of time), or None  |
| fixed          | (n, 3) |         | bool, coordinates that dynamics hold     |
| masses         | (n,)   | amu     | or None: those of the elements; no label |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.data.constraints import constraints_of, fixed_of
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import is_flat, right_handed, volume_of


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, cell and labels; see the table at the top of this file.

    ``info`` carries what is worth keeping besides: ``group`` (frames of one group are relatives
    and never lie on both sides of a split), ``source``, ``temperature`` ...  It must be plain
    JSON. Objects compare by identity, so that neighbour lists can be cached for them.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    momenta: np.ndarray | None = None
    fixed: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    masses: np.ndarray | None = None

    def __post_init__(self) -> None:
        def convert(name: str, dtype: type, shape: tuple[int, ...] | None = None) -> None:
            value = getattr(self, name)
            if value is None:
                return
            try:
                array: np.ndarray = np.array(value, dtype=dtype)
            except (TypeError, ValueError):
                raise InputError(
                    f"{name} must be an array of numbers, got {value!r:.60}; correct it"
                ) from None
            if shape is not None and array.shape != shape:
                raise InputError(f"{name} must have shape {shape}, got {array.shape}; correct it")
            object.__setattr__(self, name, array)

        convert("atomic_numbers", np.int64)
        convert("positions", np.float64)
        convert("forces", np.float64)
        convert("cell", np.float64, (3, 3))
        convert("stress", np.float64, (3, 3))
        convert("momenta", np.float64)
        convert("fixed", np.bool_)
        convert("masses", np.float64)
        if np.ndim(self.pbc) == 0:
            object.__setattr__(self, "pbc", [bool(self.pbc)] * 3)
        convert("pbc", np.bool_, (3,))
        object.__setattr__(self, "info", dict(self.info))  # copies must not share it
        if self.energy is not None:
            object.__setattr__(self, "energy", float(self.energy))

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def formula(self) -> str:
        """Chemical formula, for messages."""
        return str(Atoms(numbers=self.atomic_numbers).get_chemical_formula())

    def with_labels(
        self,
        energy: float | None,
        forces: np.ndarray | None = None,
        stress: np.ndarray | None = None,
        **info: Any,
    ) -> Structure:
        """A copy with other labels; ``info`` is added to the existing one."""
        return replace(
            self, energy=energy, forces=forces, stress=stress, info={**self.info, **info}
        )

    def to_atoms(self, *, labels: bool = True, dynamics: bool = False) -> Atoms:
        """ASE atoms.

        Args:
            labels: those that exist sit in a SinglePointCalculator.
            dynamics: momenta and constraints too. Not by default: ASE leaves the forces on held
                atoms out, which would be wrong labels.
        """
        atoms = Atoms(
            numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc
        )
        atoms.info.update(self.info)
        if self.masses is not None:
            atoms.set_masses(self.masses)
        if dynamics:
            if self.momenta is not None:
                atoms.set_momenta(self.momenta)
            atoms.set_constraint(constraints_of(self.fixed))
        if labels and (self.energy is not None or self.forces is not None):
            results: dict[str, Any] = {}
            if self.energy is not None:
                results["energy"] = self.energy
            if self.forces is not None:
                results["forces"] = self.forces
            if self.stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(self.stress)
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    @classmethod
    def from_atoms(cls, atoms: Atoms, *, labels: bool = True) -> Structure:
        """From ASE atoms; takes labels that are already computed, never computes any.

        Labels come from the attached calculator, ``info`` and ``arrays``, under any of the names
        in use, chosen as docs/data.md says; units are those of ASE. A left-handed cell is turned
        over, with the positions kept. Constraints that are none of Cartesian coordinates are named
        in ``info["other_constraints"]``: dynamics refuse them.

        Args:
            atoms: any atoms.
            labels: False leaves ``info`` as it is and takes no labels.

        Raises:
            InputError: two sets of labels, of which none goes before the other.
        """
        if labels:
            from mlff_distiller.data.read.reading import structure_of  # it builds Structures

            return structure_of(atoms)
        cell, pbc = right_handed(np.asarray(atoms.get_cell()), atoms.get_pbc())
        info = {k: _plain(v) for k, v in atoms.info.items()}
        fixed, others = fixed_of(atoms)
        if others:
            info["other_constraints"] = others
        return cls(
            atomic_numbers=atoms.get_atomic_numbers(),
            positions=atoms.get_positions(),
            cell=cell,
            pbc=pbc,
            momenta=atoms.get_momenta() if atoms.has("momenta") else None,
            fixed=fixed,
            info={k: v for k, v in info.items() if v is not None},
        )


def full_stress(stress: np.ndarray) -> np.ndarray:
    """(..., 6) Voigt (xx yy zz yz xz xy) or (..., 3, 3) stress as (..., 3, 3)."""
    stress = np.asarray(stress, dtype=np.float64)
    if stress.shape[-2:] == (3, 3):
        return stress
    if stress.shape[-1:] == (9,):
        return stress.reshape(*stress.shape[:-1], 3, 3)
    if stress.shape[-1:] == (6,):
        return stress[..., [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    raise InputError(f"stress must have shape (3, 3) or (6,), got {stress.shape}; convert it")


def check_structure(structure: Structure, name: str = "structure") -> Structure:
    """Return ``structure`` if it can be used.

    Args:
        structure: what to check.
        name: what to call it in messages, e.g. ``frames.xyz, frame 3``.

    Raises:
        InputError: no atoms, mismatched lengths, atomic numbers outside 1..118, NaN or infinite
            numbers, a zero, flat or left-handed cell with periodic directions.
    """
    s = structure
    n = len(s.atomic_numbers)
    if s.atomic_numbers.ndim != 1:
        raise InputError(
            f"{name}: atomic numbers must have shape (atoms,), got {s.atomic_numbers.shape}; "
            "split it into one structure for each row"
        )
    if n == 0:
        raise InputError(f"{name} must have at least one atom, got {n}; remove it")
    for label, array in (
        ("positions", s.positions),
        ("forces", s.forces),
        ("momenta", s.momenta),
        ("fixed", s.fixed),
    ):
        if array is not None and array.shape != (n, 3):
            raise InputError(
                f"{name}: {label} must have shape ({n}, 3) to match {n} atomic numbers, got "
                f"{array.shape}; correct the file"
            )
    if s.atomic_numbers.min() < 1 or s.atomic_numbers.max() > MAX_Z:
        bad = np.flatnonzero((s.atomic_numbers < 1) | (s.atomic_numbers > MAX_Z))
        ghost = " (a ghost atom or an unknown symbol)" if s.atomic_numbers[bad[0]] == 0 else ""
        raise InputError(
            f"{name}: atomic numbers must be 1..{MAX_Z}, got {int(s.atomic_numbers[bad[0]])} at "
            f"atom {int(bad[0])}{ghost}; remove that atom or name its element"
        )
    _check_finite(s, name)
    check_cell(s.cell, s.pbc, name)
    return structure


def check_cell(cell: np.ndarray, pbc: np.ndarray, name: str = "structure") -> None:
    """Raise InputError for a periodic cell that is zero, flat or left-handed.

    Args:
        cell: (3, 3), Å; rows of open directions do not count.
        pbc: (3,) bool.
        name: what to call it in messages.
    """
    if not np.any(pbc):
        return
    missing = [i for i in range(3) if pbc[i] and not np.any(cell[i])]
    if missing:
        raise InputError(
            f"{name}: lattice vector {missing[0]} is periodic and must not be zero; "
            "set the cell, or pbc to false"
        )
    rows = cell[np.asarray(pbc, dtype=bool)].tolist()
    volume = volume_of(rows)
    if is_flat(rows):
        raise InputError(
            f"{name}: the lattice vectors must span a volume, got {abs(volume):.3g} Å^3; "
            "correct the cell, or set pbc to false"
        )
    if volume < 0:
        raise InputError(
            f"{name}: the cell must be right-handed, got a determinant of {volume:.6g} Å^3; "
            "exchange two lattice vectors (and their pbc)"
        )


def check_constraints(structure: Structure, name: str = "structure") -> None:
    """Raise InputError for constraints of the file that :attr:`Structure.fixed` cannot express."""
    others = structure.info.get("other_constraints")
    if others:
        raise InputError(
            f"{name} has constraints that only hold lattice coordinates of a skewed cell, bonds or "
            f"the like ({', '.join(others)}), expected held atoms or Cartesian coordinates (FixAtoms, "
            "FixCartesian, move_mask); replace or remove them"
        )


def complete_cell(cell: np.ndarray) -> np.ndarray:
    """(3, 3) cell whose zero rows are replaced by unit vectors that keep it right-handed, Å."""
    full = np.array(cell, dtype=np.float64)
    missing = [i for i in range(3) if not np.any(full[i])]
    if len(missing) == 3:
        return np.eye(3)
    if len(missing) == 2:
        (i,) = set(range(3)) - set(missing)
        axis = np.eye(3)[int(np.argmin(np.abs(full[i])))]
        j, k = (i + 1) % 3, (i + 2) % 3
        full[j] = np.cross(full[i], axis)
        full[j] /= np.linalg.norm(full[j])
        missing = [k]
    if len(missing) == 1:
        k = missing[0]
        normal = np.cross(full[(k + 1) % 3], full[(k + 2) % 3])
        length = np.linalg.norm(normal)
        full[k] = normal / length if length > 0 else 0.0
    return full


def without_labels(structure: Structure) -> Structure:
    """The same atoms without energy, forces and stress."""
    return replace(structure, energy=None, forces=None, stress=None)


def elements_of(structures: Sequence[Structure]) -> list[int]:
    """Atomic numbers that occur, ascending."""
    return sorted({int(z) for s in structures for z in np.unique(s.atomic_numbers)})


def is_isolated(atomic_numbers: np.ndarray, info: Mapping[str, Any]) -> bool:
    """Whether a structure is marked as an isolated atom: ``config_type=IsolatedAtom`` and alike."""
    if len(atomic_numbers) != 1:
        return False
    for key in ("config_type", "config", "source", "group", "type"):
        text = "".join(c for c in str(info.get(key, "")).lower() if c.isalpha())
        if text.startswith(("isolatedatom", "isoatom", "freeatom")) or text == "isolated":
            return True
    return False


def _check_finite(s: Structure, name: str) -> None:
    arrays = (s.positions, s.cell, s.forces, s.stress, s.momenta)
    total = sum((a.sum() for a in arrays if a is not None), s.energy or 0.0)
    if math.isfinite(total):  # no NaN or infinity could have vanished from a sum
        return
    for label, value in (
        ("positions", s.positions),
        ("cell", s.cell),
        ("energy", s.energy),
        ("forces", s.forces),
        ("stress", s.stress),
        ("momenta", s.momenta),
    ):
        if value is not None and not np.all(np.isfinite(value)):
            where = ""
            if label in ("positions", "forces", "momenta"):
                atom = int(np.argmin(np.isfinite(np.asarray(value)).all(axis=1)))
                symbol = chemical_symbols[int(s.atomic_numbers[atom])]
                where = f" at atom {atom} ({symbol})"
            raise InputError(
                f"{name}: {label} must be finite, got NaN or infinity{where}; remove or mend it"
            )


def _plain(value: Any) -> Any:
    """``value`` as plain JSON types, or None where that is impossible."""
    if isinstance(value, np.generic):  # first: np.float64 is a float too
        return value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.tolist()
    if isinstance(value, (list, tuple)):
        items = [_plain(v) for v in value]
        return None if any(v is None for v in items) else items
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return None
