"""Labelled structures in one HDF5 file.

    structures/atomic_numbers (N,)  atomic_numbers_splits (S+1,) int64, offsets of the structures
    structures/positions (N, 3)  cells (S, 3, 3)  pbc (S, 3)  info (S,) JSON
    labels/energy (S,)  forces (N, 3)  stress (S, 3, 3), NaN where there is none
    labels/has_energy (S,)  has_forces (S,)  bool, only where some structures lack the label
    splits/train, valid, test     indices; stored once, never drawn again
    attributes: units, teacher, versions, seed, format, identity, progress, provenance

Readers that do not know has_energy and has_forces (up to 2026) refuse the structures without a
label by name, as their labels are NaN; files in which all structures have the same labels are the
same as ever.

Files of this layout written by others open as well: units, splits, info, pbc and stress may be
missing, stress may be Voigt (S, 6). Ours end with a checksum, see sums.py.

A file is never changed in place. HDF5Writer appends to a journal beside it (journal.py) and, when
closed, writes the whole anew under another name and renames it. Whatever happens, the old file or
the new one is there; batches still in the journal are read by HDF5Dataset and merged by the next
writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from mlff_distiller.data import sums
from mlff_distiller.data.arrays import FORMAT_VERSION, ArrayStore, missing_label, pack
from mlff_distiller.data.journal import Journal, journal_path, read_journal, sync_directory
from mlff_distiller.data.splits import SPLITS, draw_splits
from mlff_distiller.data.structure import Structure, check_structure, is_isolated
from mlff_distiller.elements import MAX_Z, symbol
from mlff_distiller.errors import InputError, MismatchError
from mlff_distiller.lattice import right_handed

FORMAT = f"mlff-distiller {FORMAT_VERSION}"
# One chunk of every array of a small file.
_CHUNK_SLACK = 512 * 1024
UNITS = {"length": "Ang", "energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang^3"}


class HDF5Dataset(Sequence[Structure]):
    """Structures of an HDF5 file, as a sequence.

    Args:
        path: file.
        require_labels: refuse a file without energies.
        in_memory: read all at once; by default when it takes less than 2 GiB. Structures are
            then kept too, so that their neighbour lists stay cached.

    Attributes:
        teacher, units, versions, seed: the attributes of the file, None where missing.
        progress: what the writer of the last batch noted for resuming.
        provenance: of a file that was converted or joined: file, hash, number of structures,
            teacher of each source.
        splits: ``train``, ``valid``, ``test`` -> indices; empty when none are stored.

    Raises:
        InputError: missing, truncated or foreign file, no labels, arrays that do not fit
            together. Values are checked when a structure is taken.
    """

    def __init__(
        self, path: str | Path, *, require_labels: bool = True, in_memory: bool | None = None
    ) -> None:
        self.path = Path(path)
        self._store = ArrayStore(self.path, in_memory=in_memory)
        attributes = self._store.attributes
        self.teacher: str | None = attributes.get("teacher")
        self.units: dict[str, str] = {**UNITS, **self._store.units}
        self.versions: dict[str, str] = _as_mapping(attributes.get("versions"))
        self.seed: int | None = _as_int(attributes.get("seed"))
        self.progress: dict[str, Any] = self._store.progress
        self.provenance: list[dict[str, Any]] = _as_list(attributes.get("provenance"))
        self.splits: dict[str, np.ndarray] = self._store.splits
        self._kept: dict[int, Structure] = {}
        if require_labels and not self._store.has_energy:
            raise InputError(
                f"{path} must hold labels/energy, got no labels; make them with "
                f"'mlff-distiller label {path} --teacher NAME -o labelled.h5', or convert the file "
                "that it was made of again, with --energy-key NAME"
            )

    def __len__(self) -> int:
        return self._store.num_structures

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = int(index)
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path} holds {len(self)} structures, got index {index}")
        if i in self._kept:
            return self._kept[i]
        structure = check_structure(self._read(i), f"{self.path}, structure {i}")
        if self._store.in_memory:
            self._kept[i] = structure
        return structure

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Structure]:
        """Structures in the order of ``indices``, read in blocks where they lie close."""
        if self._store.in_memory:
            return [self[int(i)] for i in indices]
        found = self._store.read_many(np.asarray(indices, dtype=np.int64))
        return [
            check_structure(_turned(s), f"{self.path}, structure {int(i)}")
            for i, s in zip(indices, found, strict=True)
        ]

    def blocks(self, size: int = 256) -> Iterator[tuple[int, list[Structure]]]:
        """All structures in order: index of the first, and up to ``size`` of them."""
        for first in range(0, len(self), size):
            yield first, self.take(range(first, min(first + size, len(self))))

    def unchecked(self) -> list[Structure]:
        """All structures as stored, bad ones included."""
        return [self._read(i) for i in range(len(self))]

    def _read(self, index: int) -> Structure:
        return _turned(self._store.read(index))

    def __iter__(self) -> Iterator[Structure]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    @property
    def has_labels(self) -> bool:
        """Whether any energies are stored."""
        return self._store.has_energy

    @property
    def in_memory(self) -> bool:
        """Whether all structures are held in memory."""
        return self._store.in_memory

    def held_bytes(self) -> int:
        """Memory that all structures would take, roughly."""
        return self._store.held_bytes()

    def labelled(self) -> np.ndarray:
        """(S,) bool, which structures have an energy or forces."""
        return self._store.labelled()

    def sizes(self) -> np.ndarray:
        """Atoms of each structure, (S,) int64."""
        return np.diff(self._store.offsets)

    def groups(self) -> list[str]:
        """Group of each structure (``info["group"]``); structures without one are alone."""
        return [str(self._store.info(i).get("group", f"#{i}")) for i in range(len(self))]

    def sources(self) -> list[str]:
        """Origin of each structure (``info["source"]``): rattle, md ...; empty when unknown."""
        return [str(self._store.info(i).get("source", "")) for i in range(len(self))]

    def features(self) -> list[set[str]]:
        """What training must have seen of each structure: its elements and its kind.

        The kind is ``source``, else ``config_type``; kinds so many that most occur once are names
        of structures and do not count. Each isolated atom is a kind of its own.
        """
        numbers = self._store.atomic_numbers()
        infos = [self._store.info(i) for i in range(len(self))]
        kinds = [str(i.get("source") or i.get("config_type") or "") for i in infos]
        counted = 3 * len(set(kinds)) <= len(set(self.groups()))
        found = []
        for i, kind in enumerate(kinds):
            own = numbers[self._store.offsets[i] : self._store.offsets[i + 1]]
            features = {symbol(int(z)) for z in np.unique(own) if 0 < z <= MAX_Z}
            if counted and kind:
                features.add(f"the kind {kind}")
            if len(own) == 1 and is_isolated(own, infos[i]):
                features.add(f"the isolated atom {i}")
            found.append(features)
        return found

    def subset(self, split: str) -> list[Structure]:
        """Structures of the stored split ``train``, ``valid`` or ``test``."""
        if split not in self.splits:
            raise InputError(
                f"{self.path} holds no split {split!r}; draw them with ensure_splits(path)"
            )
        return self.take(self.splits[split])

    def hash(self) -> str:
        """SHA-256 over atoms, cells and labels: the same for every way to store them."""
        return structures_hash(self)


class HDF5Writer:
    """Append-only writer; what :meth:`append` returned from is on disk and stays.

    Use as a context manager, or call :meth:`close`. Opening an existing file continues it.

    Args:
        path: file; a missing directory is made.
        teacher: name of what made the labels.
        versions: package -> version.
        seed: of the sampling, if any.
        provenance: of the structures, see HDF5Dataset.

    Raises:
        InputError: the file was written by something else, or another process is writing to it.
        MismatchError: it was labelled by another teacher.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        teacher: str | None = None,
        versions: dict[str, str] | None = None,
        seed: int | None = None,
        provenance: list[dict[str, Any]] | None = None,
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._attributes: dict[str, Any] = {
            "format": FORMAT,
            "units": json.dumps(UNITS),
            "versions": json.dumps(versions or {}),
        }
        if teacher is not None:
            self._attributes["teacher"] = teacher
        if seed is not None:
            self._attributes["seed"] = int(seed)
        if provenance:
            self._attributes["provenance"] = json.dumps(provenance)
        self._journal = Journal(journal_path(self.path))
        try:
            self._continue(teacher)
        except BaseException:
            # An empty journal beside a file that was refused would only puzzle.
            self._journal.close(remove=self._journal.header is None)
            raise
        self._closed = False

    def _continue(self, teacher: str | None) -> None:
        self._count = 0
        self.progress: dict[str, Any] = {}
        header = self._journal.header
        if self.path.exists() or header is not None:
            store = ArrayStore(self.path, in_memory=False)
            written = store.attributes
            if written.get("format") != FORMAT:
                raise InputError(
                    f"{self.path} was not written by mlff-distiller and cannot be appended to; "
                    "write to another file"
                )
            if teacher is not None and written.get("teacher") not in (None, teacher):
                raise MismatchError(
                    f"{self.path} was labelled by {written['teacher']!r}, got {teacher!r}; "
                    "write to another file"
                )
            self._count = store.num_structures
            self.progress = store.progress
            self._attributes = {**self._attributes, **written}
            store.close()
        self._attributes.setdefault("identity", uuid.uuid4().hex)
        if header is None:
            self._journal.start(self._attributes)

    def __len__(self) -> int:
        return self._count

    def append(
        self, structures: Sequence[Structure], *, progress: dict[str, Any] | None = None
    ) -> None:
        """Commit structures: all of them or, when this raises, none.

        Args:
            structures: checked here; labels may differ from one to the next.
            progress: plain JSON that is committed together with them, for resuming.

        Raises:
            InputError: invalid structure, or a full disk.
        """
        arrays = self._pack(structures)
        if progress is not None:
            arrays["progress"] = np.array(json.dumps(progress))
        try:
            self._journal.append(self._count, arrays)
        except OSError as error:
            raise InputError(
                f"cannot write {self._journal.path}: {error.strerror}; the {self._count} "
                "structures written before are safe, make room and run the same again"
            ) from None
        self._count += len(structures)
        if progress is not None:
            self.progress = progress

    def _pack(self, structures: Sequence[Structure]) -> dict[str, np.ndarray]:
        for i, s in enumerate(structures):
            check_structure(s, f"structure {self._count + i} for {self.path}")
        return pack(structures)

    def close(self) -> None:
        """Merge the journal into the HDF5 file.

        Raises:
            InputError: no room for the new file. Nothing is lost: the old file and the journal
                stay, HDF5Dataset reads both and the next writer merges them.
        """
        if self._closed:
            return
        self._closed = True
        merged = False
        try:
            merge(self.path, self._attributes)
            merged = True
        finally:
            self._journal.close(remove=merged)

    def __enter__(self) -> HDF5Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except InputError:
            if kind is None:  # otherwise the first error says more, and nothing is lost
                raise


def merge(
    path: Path, attributes: dict[str, Any], splits: dict[str, np.ndarray] | None = None
) -> None:
    """Write ``path`` anew, with the records of its journal, and rename it into place."""
    _, records = read_journal(journal_path(path))
    if not records and splits is None:
        _temporary(path).unlink(missing_ok=True)
        return
    temporary = _temporary(path)
    try:
        temporary.unlink(missing_ok=True)  # of a writer that was killed
        _require_room(path, temporary)
        if path.exists():
            sums.check(path)  # damage must not be signed anew
            shutil.copyfile(path, temporary)
            sums.strip(temporary)
        with contextlib.closing(h5py.File(temporary, "a")) as file:
            for key, value in attributes.items():
                file.attrs[key] = value
            for first, arrays in records:
                if first >= _count_in(file):  # else merged before, and killed before removal
                    _extend(file, arrays)
            if splits is not None:
                _store_splits(file, splits)
        sums.store(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError when closing fails
        number = getattr(error, "errno", None)
        raise InputError(
            f"cannot write {path}: {os.strerror(number) if number else error}; "
            f"all structures are safe in {journal_path(path).name}, make room and run the same "
            "again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _require_room(path: Path, temporary: Path) -> None:
    """Raise OSError unless the merged file fits: HDF5 crashes on a disk that fills up meanwhile."""
    if not hasattr(os, "posix_fallocate"):
        return
    parts = (path, journal_path(path))
    size = sum(part.stat().st_size for part in parts if part.exists())
    with temporary.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size + size // 8 + _CHUNK_SLACK)
    temporary.unlink()


def ensure_splits(
    path: str | Path,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    *,
    anew: bool = False,
) -> dict[str, np.ndarray]:
    """The stored splits of a file; drawn and stored when there are none.

    Stored splits are not drawn again unless that is asked for. Structures appended later follow
    their group, new groups are drawn. Relatives (one ``info["group"]``) are always on the same
    side. Training has every element, every kind of structure (``source`` or ``config_type``) and
    all isolated atoms.

    Args:
        path: an HDF5 file.
        valid_fraction: of the structures.
        test_fraction: of the structures.
        seed: of the drawing.
        anew: forget what is stored: for a file whose owner has changed the settings.

    Returns:
        ``train``, ``valid``, ``test`` -> ascending int64 indices.

    Raises:
        InputError: too few groups for the fractions that were asked for.
    """
    path = Path(path)
    dataset = HDF5Dataset(path, require_labels=False, in_memory=False)
    stored = {} if anew else dataset.splits
    if stored and sum(len(v) for v in stored.values()) >= len(dataset):
        return stored
    splits = draw_splits(
        dataset.groups(),
        valid_fraction,
        test_fraction,
        seed,
        strata=dataset.sources(),
        features=dataset.features(),
        stored=stored,
        name=str(path),
    )
    if any(v.tolist() != dataset.splits.get(k, v[:0]).tolist() for k, v in splits.items()):
        store_splits(path, splits)
    return splits


def store_splits(path: Path, splits: dict[str, np.ndarray]) -> None:
    """Store splits in a file, in place of those that it has."""
    attributes = dict(HDF5Dataset(path, require_labels=False, in_memory=False)._store.attributes)
    journal = Journal(journal_path(path))
    merged = False
    try:
        merge(path, attributes, splits)
        merged = True
    finally:
        journal.close(remove=merged or journal.header is None)


def structures_hash(structures: Sequence[Structure]) -> str:
    """SHA-256 of atoms, cells, labels and held coordinates, independent of how they are stored.

    Args:
        structures: in order.

    Returns:
        64 hexadecimal digits.
    """
    digest = StructuresDigest()
    for s in structures:
        digest.add(s)
    return digest.hexdigest()


class StructuresDigest:
    """SHA-256 of structures that are taken in one by one, see :func:`structures_hash`."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, s: Structure) -> None:
        """Take in the next structure."""
        parts = [len(s).to_bytes(8, "little"), s.atomic_numbers.astype("<i8").tobytes()]
        parts += [array.astype("<f8").tobytes() for array in (s.positions, s.cell)]
        parts.append(s.pbc.astype("u1").tobytes())
        for label in (s.energy, s.forces, s.stress):
            parts.append(b"-" if label is None else np.asarray(label, dtype="<f8").tobytes())
        if s.fixed is not None:
            parts.append(b"fixed" + s.fixed.astype("u1").tobytes())
        self._digest.update(b"".join(parts))

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._digest.hexdigest()


def _extend(file: h5py.File, arrays: dict[str, np.ndarray]) -> None:
    if "progress" in arrays:
        file.attrs["progress"] = str(arrays["progress"])
    count = len(arrays["sizes"])
    if count == 0 and "structures" in file:
        return
    start = file["structures/positions"].shape[0] if "structures" in file else 0
    offsets = np.cumsum(arrays["sizes"]) + start
    if "structures" not in file:
        offsets = np.concatenate([[0], offsets])
    _append_rows(file, "structures/atomic_numbers_splits", offsets.astype(np.int64))
    for name in ("atomic_numbers", "positions", "cells", "pbc"):
        _append_rows(file, f"structures/{name}", arrays[name])
    _append_rows(file, "structures/info", arrays["info"], h5py.string_dtype())
    sizes = np.diff(file["structures/atomic_numbers_splits"][()])
    for name in ("energy", "forces", "stress"):
        _extend_label(file, name, arrays, sizes)


def _extend_label(
    file: h5py.File, name: str, arrays: dict[str, np.ndarray], sizes: np.ndarray
) -> None:
    """Append one label, with NaN (and ``has_...`` false) for structures that lack it."""
    place, mask = f"labels/{name}", f"labels/has_{name}"
    count = len(arrays["sizes"])
    before = len(sizes) - count
    if name not in arrays and place not in file:
        return

    def nothing(of: np.ndarray) -> np.ndarray:
        if name == "forces":
            return missing_label(name, int(of.sum()))
        return np.tile(missing_label(name, 0), (len(of), *[1] * missing_label(name, 0).ndim))

    new = arrays.get(f"has_{name}", np.full(count, name in arrays))
    if name != "stress" and mask not in file and (not new.all() or (before and place not in file)):
        _append_rows(file, mask, np.full(before, place in file))
    if place not in file and before:
        _append_rows(file, place, nothing(sizes[:before]))
    _append_rows(file, place, arrays[name] if name in arrays else nothing(arrays["sizes"]))
    if mask in file:
        _append_rows(file, mask, new)


def _append_rows(file: h5py.File, name: str, rows: np.ndarray, dtype: Any = None) -> None:
    if name not in file:
        file.create_dataset(
            name,
            shape=(0, *rows.shape[1:]),
            maxshape=(None, *rows.shape[1:]),
            chunks=(1024, *rows.shape[1:]),
            dtype=dtype or rows.dtype,
            fletcher32=dtype is None,  # not for text of any length
        )
    dataset = file[name]
    old = dataset.shape[0]
    dataset.resize(old + len(rows), axis=0)
    dataset[old:] = rows.astype(object) if dtype is not None else rows


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")  # one name: the lock admits one writer


def _store_splits(file: h5py.File, splits: dict[str, np.ndarray]) -> None:
    if "splits" in file:
        del file["splits"]
    for name in SPLITS:
        file[f"splits/{name}"] = np.asarray(splits[name], dtype=np.int64)


def _count_in(file: h5py.File) -> int:
    return int(file["structures/cells"].shape[0]) if "structures/cells" in file else 0


def _turned(structure: Structure) -> Structure:
    cell, pbc = right_handed(structure.cell, structure.pbc)
    return structure if cell is structure.cell else replace(structure, cell=cell, pbc=pbc)


def _as_mapping(value: Any) -> dict[str, str]:
    try:
        mapping = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {"": str(value)}
    return dict(mapping) if isinstance(mapping, dict) else {}


def _as_list(value: Any) -> list[dict[str, Any]]:
    try:
        found = json.loads(value) if isinstance(value, str) else []
    except ValueError:
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _as_int(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) else None
