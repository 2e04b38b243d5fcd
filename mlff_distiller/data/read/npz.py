"""NumPy archives: sGDML and (r)MD17, PhysNet and DimeNet (padded or flat), NequIP.

| quantity  | names                                             | shapes (F frames, n atoms)          |
|-----------|---------------------------------------------------|-------------------------------------|
| elements  | z Z nuclear_charges atomic_numbers numbers species| (n,), (F, n) padded with 0 or -1, flat |
| positions | R coords coordinates positions pos xyz            | (F, n, 3), (n, 3), flat with N      |
| lattice   | lattice (columns, sGDML), cell cells box (rows)   | (3, 3), (F, 3, 3), (3,) lengths     |
| atoms     | N                                                 | (F,)                                |

Units: ``e_unit``, ``r_unit`` (sGDML) and the like where stated. Where not, those that rMD17, sGDML
(kcal/mol) and PhysNet (eV) define for their names, else eV; a note says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers as number_of

from mlff_distiller.data.read.frame import Frame, RawFile, ReadOptions, listed
from mlff_distiller.data.read.names import parse_name
from mlff_distiller.errors import InputError

_NUMBERS = ("nuclear_charges", "atomic_numbers", "z", "Z", "numbers", "species", "elements")
_POSITIONS = ("coords", "coordinates", "positions", "R", "pos", "xyz")
_CELLS = ("lattice", "cell", "cells", "box", "unit_cell", "lattices")
_UNIT_KEYS = {
    "energy": ("e_unit", "energy_unit", "energy_units", "E_unit", "units_energy"),
    "length": ("r_unit", "length_unit", "distance_unit", "R_unit", "pos_unit"),
    "forces": ("f_unit", "force_unit", "forces_unit", "F_unit"),
    "stress": ("stress_unit", "s_unit"),
}
# Units that those define who chose these names.
_CONVENTIONS = {
    ("nuclear_charges", "coords"): ("kcal/mol", "as rMD17 defines it"),
    ("z", "R"): ("kcal/mol", "as MD17 and sGDML define it"),
    ("Z", "R"): ("eV", "as PhysNet defines it"),
}
_CONFIG = ("charge", "spin", "multiplicity", "total_charge", "Q")


def read(path: Path, options: ReadOptions) -> RawFile:
    """All frames.

    Raises:
        InputError: no elements or positions, or arrays of other lengths.
    """
    with np.load(path, allow_pickle=False) as archive:
        data = {name: archive[name] for name in archive.files}
    numbers_key = next((k for k in _NUMBERS if k in data), None)
    positions_key = next((k for k in _POSITIONS if k in data), None)
    if numbers_key is None or positions_key is None:
        raise InputError(
            "an .npz file must hold elements (nuclear_charges, z, atomic_numbers ...) and positions "
            f"(coords, R, pos ...), got {listed(data, 12) or 'nothing'}; save them under such names"
        )
    numbers, positions = _elements(data[numbers_key]), np.asarray(data[positions_key], float)
    counts = np.asarray(data["N"], dtype=np.int64).reshape(-1) if "N" in data else None
    pieces = _Pieces(numbers, positions, counts, numbers_key, positions_key)
    labels = _labels(data, options, {numbers_key, positions_key, "N"}, pieces)
    cells, periodic = _cells(data, len(pieces))
    frames = []
    for i in range(len(pieces)):
        mine, where = pieces.numbers(i), pieces.cut(positions, i, positions_key)
        keep = mine > 0  # padding
        atoms = Atoms(numbers=mine[keep], positions=where[keep], cell=cells[i], pbc=periodic[i])
        found: dict[str, Any] = {}
        for name, array in labels.items():
            if _per_atom(name, options):
                found[name] = pieces.cut(array, i, name)[keep]
            else:
                found[name] = array[i]
        for name in _CONFIG:
            if name in data and data[name].shape[:1] == (len(pieces),) and data[name].ndim == 1:
                atoms.info[{"Q": "charge"}.get(name, name)] = data[name][i].item()
        frames.append(Frame(atoms, found, f"frame {i}"))
    units, notes = _units(data, numbers_key, positions_key, bool(labels))
    return RawFile(frames, "NumPy archive", units, notes)


class _Pieces:
    """Frames of arrays that are equal, padded or one after another."""

    def __init__(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        counts: np.ndarray | None,
        numbers_key: str,
        positions_key: str,
    ) -> None:
        self._numbers, self._counts = numbers, counts
        if positions.ndim not in (2, 3) or positions.shape[-1] != 3:
            raise InputError(
                f"{positions_key} must have shape (frames, atoms, 3), got {positions.shape}; "
                "save it so"
            )
        self.flat = positions.ndim == 2 and counts is not None
        self.one = positions.ndim == 2 and counts is None
        self._count = 1 if self.one else len(positions)
        if self.flat:
            assert counts is not None
            self._count = len(counts)
            self._ends = np.cumsum(counts)
            if self._ends[-1] != len(positions):
                raise InputError(
                    f"N must add up to the {len(positions)} rows of {positions_key}, got "
                    f"{int(self._ends[-1])}; save it again"
                )
        self._atoms = len(positions) if self.one else positions.shape[-2]
        atoms = len(positions) if self.flat else self._atoms
        shapes = [(atoms,)] if self.flat else [(atoms,), (self._count, atoms)]
        if numbers.shape not in shapes:
            raise InputError(
                f"{numbers_key} must have shape {' or '.join(map(str, shapes))} to match "
                f"{positions_key}, got {numbers.shape}; save it again"
            )

    def __len__(self) -> int:
        return self._count

    def numbers(self, index: int) -> np.ndarray:
        """(n,) of one frame; 0 or negative where padded."""
        if self.flat:
            return self._cut_flat(self._numbers, index)
        row = self._numbers if self._numbers.ndim == 1 else self._numbers[index]
        if self._counts is not None:
            row = np.where(np.arange(len(row)) < self._counts[index], row, 0)
        return row

    def cut(self, array: np.ndarray, index: int, name: str) -> np.ndarray:
        """(n, 3) of one frame."""
        if self.flat:
            return self._cut_flat(array, index)
        return array.reshape(self._count, self._atoms, 3)[index]

    def check(self, array: np.ndarray, name: str, per_atom: bool) -> None:
        """Raise InputError for an array of another length."""
        rows = int(self._ends[-1]) if self.flat and per_atom else self._count
        wanted = (rows if self.flat else self._count * self._atoms) * 3
        if per_atom:
            if array.size != wanted:
                raise InputError(
                    f"{name} must have {wanted} numbers like the positions, got {array.size}; "
                    "save it again"
                )
        elif len(np.atleast_1d(array)) != rows:
            raise InputError(
                f"{name} must have {rows} rows like coords, got {len(np.atleast_1d(array))}; "
                "save it again"
            )

    def _cut_flat(self, array: np.ndarray, index: int) -> np.ndarray:
        assert self._counts is not None
        end = int(self._ends[index])
        return array[end - int(self._counts[index]) : end]


def _elements(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "US":
        try:
            return np.vectorize(lambda s: number_of.get(str(s), 0) if str(s) else 0)(values)
        except (TypeError, ValueError):
            raise InputError(
                f"elements must be symbols, got {values!r:.60}; correct them"
            ) from None
    if values.dtype.kind not in "iuf":
        raise InputError(f"elements must be atomic numbers, got {values.dtype}; save them so")
    return values.astype(np.int64)


def _labels(
    data: dict[str, np.ndarray], options: ReadOptions, used: set[str], pieces: _Pieces
) -> dict[str, np.ndarray]:
    labels = {}
    keys = set(options.keys().values())
    for name, array in data.items():
        if name in used or (parse_name(name) is None and name not in keys):
            continue
        if array.dtype.kind not in "iuf":
            continue
        pieces.check(array, name, _per_atom(name, options))
        per_frame = array.reshape(1) if array.ndim == 0 else array
        labels[name] = per_frame
    return labels


def _per_atom(name: str, options: ReadOptions) -> bool:
    if name in options.keys().values():
        return name == options.forces_key
    parsed = parse_name(name)
    return parsed is not None and parsed.quantity in ("forces", "gradient")


def _cells(data: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    key = next((k for k in _CELLS if k in data), None)
    if key is None:
        return np.zeros((count, 3, 3)), np.zeros((count, 3), dtype=bool)
    cells = np.asarray(data[key], dtype=np.float64)
    if cells.shape == (3,):
        cells = np.diag(cells)
    if cells.shape in ((count, 9), (9,)):
        cells = cells.reshape(*cells.shape[:-1], 3, 3)
    if cells.shape not in ((3, 3), (count, 3, 3)):
        raise InputError(
            f"{key} must have shape (3, 3) or ({count}, 3, 3), got {cells.shape}; save it so"
        )
    if key.startswith("lattice"):  # sGDML: lattice vectors are columns
        cells = np.swapaxes(cells, -1, -2)
    cells = np.broadcast_to(cells, (count, 3, 3))
    if "pbc" in data:
        return cells, np.broadcast_to(np.asarray(data["pbc"], dtype=bool), (count, 3))
    return cells, np.any(cells != 0.0, axis=2)


def _units(
    data: dict[str, np.ndarray], numbers: str, positions: str, labelled: bool
) -> tuple[dict[str, str], list[str]]:
    units = {}
    for quantity, names in _UNIT_KEYS.items():
        key = next((k for k in names if k in data), None)
        if key is not None and data[key].dtype.kind in "US" and data[key].size == 1:
            stated = data[key].reshape(-1)[0]
            units[quantity] = stated.decode() if isinstance(stated, bytes) else str(stated)
    notes = []
    if labelled and "energy" not in units:
        units["energy"], why = _CONVENTIONS.get(
            (numbers, positions), ("eV", "which is a guess: the names do not tell either")
        )
        notes.append(
            f"the file states no unit of energy; {units['energy']} assumed, {why} (if it is "
            "another, say --units UNIT)"
        )
    return units, notes
