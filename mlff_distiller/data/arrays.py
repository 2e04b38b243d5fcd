"""Flat arrays <-> structures: what lies in an HDF5 file and in the journal beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlff_distiller.data import sums
from mlff_distiller.data.journal import Record, journal_path, read_journal
from mlff_distiller.data.splits import SPLITS
from mlff_distiller.data.structure import Structure, full_stress
from mlff_distiller.errors import DamagedFileError, InputError
from mlff_distiller.units import energy_in_ev, length_in_angstrom

#: Of the layout; raised when a reader of the old number could not use a new file.
FORMAT_VERSION = 1
#: Files whose structures take less are held in memory unless that is settled otherwise.
IN_MEMORY_BYTES = 2**31
# Of a Structure in memory: its arrays twice (file's and own), and the objects around them.
_BYTES_PER_ATOM, _BYTES_PER_STRUCTURE = 2 * 8 * 7, 3000
# Texts of info are read one by one below this, which costs 0.1 ms each, and in blocks above.
_FEW_INFOS = 20_000
_INFO_BLOCK = 2048
# Structures closer than this in the file are read together, though not more than so many.
_READ_GAP, _READ_MOST = 64, 1024
# Name in ArrayStore -> place in the file.
_PLACES = {
    "atomic_numbers": "structures/atomic_numbers",
    "positions": "structures/positions",
    "cells": "structures/cells",
    "pbc": "structures/pbc",
    "info": "structures/info",
    "energy": "labels/energy",
    "forces": "labels/forces",
    "stress": "labels/stress",
    "has_energy": "labels/has_energy",
    "has_forces": "labels/has_forces",
}
# Name of the held coordinates in the info of a structure, indices into (n, 3).
_FIXED = "fixed_coordinates"
_PER_ATOM = ("atomic_numbers", "positions", "forces")


def pack(structures: Sequence[Structure]) -> dict[str, np.ndarray]:
    """Concatenate structures; a label appears when any structure has it.

    Returns:
        ``sizes`` (S,), ``info`` (S,) JSON text and the arrays of the HDF5 layout, with NaN for
        structures that lack a label; then ``has_energy`` and ``has_forces`` (S,) bool say which.
    """
    rows = np.zeros((0, 3))
    arrays = {
        "sizes": np.array([len(s) for s in structures], dtype=np.int64),
        "atomic_numbers": np.concatenate(
            [np.zeros(0, np.int64), *(s.atomic_numbers for s in structures)]
        ),
        "positions": np.concatenate([rows, *(s.positions for s in structures)]),
        "cells": np.array([s.cell for s in structures]).reshape(-1, 3, 3),
        "pbc": np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
        "info": np.array([json.dumps(_info(s)) for s in structures], dtype=np.str_),
    }
    for name in ("energy", "forces", "stress"):
        present = np.array([getattr(s, name) is not None for s in structures], dtype=bool)
        if not present.any():
            continue
        values = [
            missing_label(name, len(s)) if getattr(s, name) is None else getattr(s, name)
            for s in structures
        ]
        arrays[name] = np.concatenate(values) if name == "forces" else np.array(values, np.float64)
        if name != "stress" and not present.all():
            arrays[f"has_{name}"] = present
    return arrays


def missing_label(name: str, num_atoms: int) -> np.ndarray:
    """NaN in the shape of a label of one structure."""
    shape = {"energy": (), "forces": (num_atoms, 3), "stress": (3, 3)}[name]
    return np.full(shape, np.nan)


def _info(structure: Structure) -> dict[str, Any]:
    """``info`` with what is too rare for an array of its own."""
    if structure.fixed is None:
        return structure.info
    return {**structure.info, _FIXED: np.flatnonzero(structure.fixed).tolist()}


class ArrayStore:
    """The arrays of one HDF5 file followed by those of its journal.

    Args:
        path: the HDF5 file; it may not exist yet when there is a journal.
        in_memory: read all at once; None decides by size.

    Raises:
        InputError: missing, truncated or foreign file, or arrays that do not fit together.
    """

    def __init__(self, path: Path, *, in_memory: bool | None) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._process = 0
        self._length, self._energy = 1.0, 1.0
        header, self._records = read_journal(journal_path(path))
        _refuse_newer(journal_path(path), header or {})
        self.attributes: dict[str, Any] = dict(header or {})
        self.splits: dict[str, np.ndarray] = {}
        self.units: dict[str, str] = {}
        self._arrays: dict[str, Any] = {}
        self._infos: Any = None
        self._info_block: tuple[int, Any] = (-1, None)
        self._count, self.offsets = 0, np.zeros(1, dtype=np.int64)
        names: set[str] = set()
        if path.exists() or header is None:
            self._open_main(header)
            names = set(self._arrays)
        self._records = [r for r in self._records if r.first >= self._count]
        self._check_records()
        self._progress_of(self._records)
        self._add_records(names)
        wanted = in_memory
        if wanted is None:
            wanted = self.held_bytes() < IN_MEMORY_BYTES
        self.in_memory = wanted
        if wanted:
            self._read_all()

    @property
    def num_structures(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def has_energy(self) -> bool:
        """Whether any energy is stored."""
        return "energy" in self._names

    @property
    def has_forces(self) -> bool:
        """Whether any forces are stored."""
        return "forces" in self._names

    def atomic_numbers(self) -> np.ndarray:
        """(N,) of all structures."""
        parts = [record.arrays["atomic_numbers"] for record in self._records]
        main = self._main().get("atomic_numbers")
        return np.concatenate([np.zeros(0, np.int64) if main is None else main[()], *parts])

    def held_bytes(self) -> int:
        """Memory that all structures would take, roughly, without neighbour lists."""
        return _BYTES_PER_ATOM * int(self.offsets[-1]) + _BYTES_PER_STRUCTURE * self.num_structures

    def labelled(self) -> np.ndarray:
        """(S,) bool, which structures have an energy or forces."""
        parts = [(self._count, self._main())]
        parts += [(len(r.arrays["sizes"]), r.arrays) for r in self._records]
        found = []
        for count, source in parts:
            has = np.zeros(count, dtype=bool)
            for name in ("energy", "forces"):
                if name in source:
                    mask = source.get(f"has_{name}")
                    has |= np.ones(count, dtype=bool) if mask is None else mask[()].astype(bool)
            found.append(has)
        return np.concatenate(found)

    def close(self) -> None:
        """Close the file; it opens again when it is read from."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_file": None, "_process": 0}
        if not self.in_memory:
            state["_arrays"] = {}
        return state

    def _read_all(self) -> None:
        try:
            self._arrays = {k: v[()] for k, v in self._arrays.items()}
            self._infos = self._arrays.get("info")
        except Exception as error:  # see _open_main
            raise _damaged(self.path, error) from None
        finally:
            self.close()

    def _check_records(self) -> None:
        expected = self._count
        for record in self._records:
            if record.first != expected:
                raise InputError(
                    f"{journal_path(self.path)} must go on at structure {expected}, got "
                    f"{record.first}: it is damaged; move it away to give up what it holds"
                )
            expected += len(record.arrays["sizes"])

    def info(self, index: int) -> dict[str, Any]:
        """``info`` of one structure. Raises InputError where it is no JSON."""
        record, local = self._locate(index)
        text = record.arrays["info"][local] if record is not None else self._info_text(local)
        return self._info_of(index, text)

    def _info_text(self, local: int) -> Any:
        if self._infos is not None:
            return self._infos[local]
        texts = self._main().get("info")
        if texts is None:
            return "{}"
        start = local - local % _INFO_BLOCK
        if self._info_block[0] != start:
            try:
                self._info_block = (start, texts[start : start + _INFO_BLOCK])
            except Exception as error:  # see _open_main
                raise _damaged(self.path, error) from None
        return self._info_block[1][local - start]

    def _info_of(self, index: int, text: Any) -> dict[str, Any]:
        try:
            return dict(json.loads(text.decode() if isinstance(text, bytes) else str(text)))
        except (TypeError, ValueError):
            raise InputError(
                f"{self.path}, structure {index}: its info must be a JSON object, got "
                f"{text!r:.60}; write the file again"
            ) from None

    def read(self, index: int) -> Structure:
        """One structure, in eV and Å, not checked. Raises InputError where it is damaged."""
        try:
            return self._read(index)
        except OSError as error:  # a chunk with another checksum
            raise _damaged(self.path, error) from None

    def read_many(self, indices: np.ndarray) -> list[Structure]:
        """Structures in the order of ``indices``; those that lie close are read together.

        Raises:
            InputError: one is damaged.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if self.in_memory or len(chosen) < 2 or chosen.max() >= self._count:
            return [self.read(int(i)) for i in chosen]
        order = np.argsort(chosen, kind="stable")
        rows = chosen[order]
        found: list[Any] = [None] * len(chosen)
        start = 0
        while start < len(rows):
            near = rows[start : start + _READ_MOST]
            gaps = np.flatnonzero(np.diff(near) > _READ_GAP)
            near = near[: int(gaps[0]) + 1] if len(gaps) else near
            near = near[near - near[0] < _READ_MOST]
            for place, structure in zip(order[start:], self._read_block(near), strict=False):
                found[place] = structure
            start += len(near)
        return found

    def _read_block(self, rows: np.ndarray) -> list[Structure]:
        """Structures of ascending rows of the main file from one slice of each array."""
        first, stop = int(rows[0]), int(rows[-1]) + 1
        begin, end = int(self.offsets[first]), int(self.offsets[stop])
        try:
            block = {
                name: array[begin:end] if name in _PER_ATOM else array[first:stop]
                for name, array in self._main().items()
            }
        except Exception as error:  # a chunk with another checksum, see _open_main
            raise _damaged(self.path, error) from None
        units = (self._length, self._energy)
        found = []
        for row in rows.tolist():
            a, b = int(self.offsets[row]) - begin, int(self.offsets[row + 1]) - begin
            info = self._info_of(row, block["info"][row - first]) if "info" in block else {}
            found.append(_structure(block, row - first, a, b, info, *units))
        return found

    def _read(self, index: int) -> Structure:
        record, local = self._locate(index)
        if record is None:
            source: Any = self._main()
            start, stop = self.offsets[index : index + 2]
            return _structure(
                source, local, start, stop, self.info(index), self._length, self._energy
            )
        ends = np.cumsum(record.arrays["sizes"])
        start, stop = ends[local] - record.arrays["sizes"][local], ends[local]
        return _structure(record.arrays, local, start, stop, self.info(index), 1.0, 1.0)

    def _locate(self, index: int) -> tuple[Record | None, int]:
        if index < self._count:
            return None, index
        r = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._records[r], index - int(self._firsts[r])

    def _main(self) -> dict[str, Any]:
        # Each process needs a handle of its own: HDF5 files do not survive a fork.
        if not self.in_memory and self._process != os.getpid() and self.path.exists():
            self._file = open_hdf5(self.path)
            self._process = os.getpid()
            self._arrays = {k: self._file[p] for k, p in _PLACES.items() if p in self._file}
        return self._arrays

    def _open_main(self, header: dict[str, Any] | None) -> None:
        file = self._file = open_hdf5(self.path)
        self._process = os.getpid()
        try:
            attributes = {k: _text(v) for k, v in file.attrs.items()}
            _refuse_newer(self.path, attributes)
            if header is not None and header.get("identity") != attributes.get("identity"):
                raise InputError(
                    f"{journal_path(self.path)} must belong to {self.path.name}, got the journal "
                    "of another file; move it away"
                )
            self.attributes = attributes
            self._arrays = {k: file[p] for k, p in _PLACES.items() if p in file}
            self._read_units(file)
            self._check_main(file)
            if "info" in self._arrays and self._count <= _FEW_INFOS:
                self._infos = self._arrays["info"][()]
            self.splits = self._read_splits(file)
        except InputError:
            self.close()
            raise
        except Exception as error:
            # h5py raises whatever a damaged byte leads to: OSError, RuntimeError, KeyError,
            # UnicodeDecodeError in a name ...
            self.close()
            raise _damaged(self.path, error) from None

    def _read_units(self, file: h5py.File) -> None:
        found: Any = file.attrs.get("units")
        text = _text(found)
        if text is None:
            return
        try:
            units = json.loads(text)
        except (TypeError, ValueError):
            units = {"energy": text}
        if not isinstance(units, dict):
            units = {"energy": str(units)}
        self.units = {str(k): str(v) for k, v in units.items()}
        length = self.units.get("length", self.units.get("positions", "Ang"))
        try:
            self._energy = energy_in_ev(self.units.get("energy", "eV"))
            self._length = length_in_angstrom(length)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def _check_main(self, file: h5py.File) -> None:
        a = self._arrays
        for name in ("atomic_numbers", "positions"):
            if name not in a:
                raise InputError(
                    f"{self.path} must hold {_PLACES[name]}, got the groups "
                    f"{', '.join(map(repr, file)) or 'none'}; convert it with 'mlff-distiller convert'"
                )
        n = len(a["atomic_numbers"])
        self._count, self.offsets = self._read_offsets(file, n)
        expected: dict[str, tuple[int, ...]] = {"positions": (n, 3), "forces": (n, 3)}
        expected |= {"cells": (self._count, 3, 3), "pbc": (self._count, 3)}
        expected |= dict.fromkeys(("energy", "info", "has_energy", "has_forces"), (self._count,))
        for name, shape in expected.items():
            if name in a and a[name].shape != shape:
                raise InputError(
                    f"{self.path}: {_PLACES[name]} must have shape {shape} for {self._count} "
                    f"structures with {n} atoms, got {a[name].shape}; write the file again"
                )
        for name in set(a) - {"info"}:
            if a[name].dtype.kind not in "biuf":
                raise InputError(
                    f"{self.path}: {_PLACES[name]} must hold numbers, got {a[name].dtype}; "
                    "write the file again"
                )
        allowed = [(self._count, 3, 3), (self._count, 6), (self._count, 9)]
        if "stress" in a and a["stress"].shape not in allowed:
            raise InputError(
                f"{self.path}: labels/stress must have shape {allowed[0]} or {allowed[1]}, got "
                f"{a['stress'].shape}; write the file again"
            )

    def _read_offsets(self, file: h5py.File, n: int) -> tuple[int, np.ndarray]:
        place = "structures/atomic_numbers_splits"
        if place in file:
            offsets = np.asarray(file[place][()], dtype=np.int64)
            rising = len(offsets) >= 1 and offsets[0] == 0 and np.all(np.diff(offsets) > 0)
            if not rising or offsets[-1] != n:
                raise InputError(
                    f"{self.path}: {place} must rise from 0 to the {n} atoms of the file, got "
                    f"{_ends(offsets)}; write the file again"
                )
            return len(offsets) - 1, offsets
        lengths = [len(self._arrays[k]) for k in ("energy", "cells", "pbc") if k in self._arrays]
        count = lengths[0] if lengths else 1
        numbers = self._arrays["atomic_numbers"][()]
        if count < 1 or n % count or np.any(numbers.reshape(count, -1) != numbers[: n // count]):
            raise InputError(
                f"{self.path} must hold {place} (offsets of the structures), which is missing; "
                "it can be left out only when all structures have the same atoms"
            )
        return count, np.arange(count + 1, dtype=np.int64) * (n // count)

    def _read_splits(self, file: h5py.File) -> dict[str, np.ndarray]:
        if "splits" not in file:
            return {}
        splits: dict[str, np.ndarray] = {}
        for name in SPLITS:
            other = {"valid": "val"}.get(name, name)
            place = next((p for p in (name, other) if p in file["splits"]), None)
            indices = file["splits"][place][()] if place else np.zeros(0, np.int64)
            splits[name] = np.asarray(indices, dtype=np.int64)
        together = np.concatenate(list(splits.values()))
        inside = np.all((together >= 0) & (together < self._count))
        if len(np.unique(together)) != len(together) or not inside:
            raise InputError(
                f"{self.path}: splits must be indices below {self._count} that occur once; "
                "remove the group 'splits' and draw them again"
            )
        return splits

    def _progress_of(self, records: list[Record]) -> None:
        text = self.attributes.get("progress")
        for record in records:
            text = str(record.arrays["progress"]) if "progress" in record.arrays else text
        try:
            self.progress: dict[str, Any] = dict(json.loads(text)) if isinstance(text, str) else {}
        except (TypeError, ValueError) as error:
            raise _damaged(self.path, error) from None

    def _add_records(self, names: set[str]) -> None:
        self._records = [r for r in self._records if len(r.arrays["sizes"])]
        self._firsts = np.array([r.first for r in self._records], dtype=np.int64)
        for record in self._records:
            names |= set(record.arrays)
            ends = np.cumsum(record.arrays["sizes"]) + self.offsets[-1]
            self.offsets = np.concatenate([self.offsets, ends])
        self._names = names


def _structure(
    source: Any,
    local: int,
    start: int,
    stop: int,
    info: dict[str, Any],
    length: float,
    energy: float,
) -> Structure:
    """Structure ``local`` of some arrays, with atoms ``start`` to ``stop``, in eV and Å."""

    def has(name: str) -> bool:
        given = source.get(f"has_{name}")
        return name in source and (given is None or bool(given[local]))

    stress = full_stress(source["stress"][local]) if "stress" in source else None
    if stress is not None and np.all(np.isnan(stress)):
        stress = None
    cell = source["cells"][local] * length if "cells" in source else np.zeros((3, 3))
    pbc = source["pbc"][local] if "pbc" in source else np.full(3, bool(np.any(cell)))
    info = dict(info)
    held = info.pop(_FIXED, None)
    fixed = np.zeros((stop - start, 3), dtype=bool) if held else None
    if fixed is not None:
        np.put(fixed, held, True)
    return Structure(
        atomic_numbers=source["atomic_numbers"][start:stop],
        positions=source["positions"][start:stop] * length,
        cell=cell,
        pbc=pbc,
        energy=float(source["energy"][local]) * energy if has("energy") else None,
        forces=source["forces"][start:stop] * (energy / length) if has("forces") else None,
        stress=None if stress is None else stress * (energy / length**3),
        fixed=fixed,
        info=info,
    )


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading. Raises InputError for a missing, truncated or foreign file."""
    if not path.exists():
        raise InputError(f"{path} must be an HDF5 file, got no such file; check the path")
    try:
        sums.check(path)
        return h5py.File(path, "r")
    except OSError as error:
        if path.suffix.lower() not in (".h5", ".hdf5") and not h5py.is_hdf5(path):
            data = path.with_suffix(".h5").name
            raise InputError(
                f"{path} must be an HDF5 file, got one of another kind; make one of it with "
                f"'mlff-distiller convert {path} {data}'"
            ) from None
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> DamagedFileError:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return DamagedFileError(
        f"{path} must be a complete HDF5 file, got a truncated or foreign one ({reason}); "
        "write or copy it again",
        path,
    )


def _refuse_newer(path: Path, attributes: dict[str, Any]) -> None:
    """Raise InputError for a layout of a later version; files of other programs have no number."""
    program, _, number = str(attributes.get("format", "")).partition(" ")
    newer = program == "mlff-distiller" and number.isdecimal() and int(number) > FORMAT_VERSION
    if newer:
        raise InputError(
            f"{path} has format {program} {number[:20]}, written by a newer version; this one "
            f"reads up to {FORMAT_VERSION}; upgrade mlff_distiller"
        )


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _ends(offsets: np.ndarray) -> str:
    return f"{offsets[0]}..{offsets[-1]}" if len(offsets) else "nothing"
