"""All that is known of the data before training, from one pass over the files.

Hash of every file, elements of the splits, reference energies, coverage, overlaps, states of charge,
numbers of atoms, edges and labels: each frame is read once. Frames that are held in memory get their
neighbour lists here, which training then finds.

The pass over a million small frames takes minutes. What it found is kept beside large files in
``.NAME.statistics`` and taken from there as long as the file is the same to the nanosecond.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import Batch, HDF5Dataset, Structure, collate
from mlff_distiller.data.batch import NeighborMemory
from mlff_distiller.data.coverage import CoverageSums
from mlff_distiller.data.frames import DataFiles
from mlff_distiller.data.hdf5 import StructuresDigest
from mlff_distiller.data.journal import journal_path
from mlff_distiller.data.survey import States, geometry_key
from mlff_distiller.elements import MAX_Z
from mlff_distiller.files import atomic_write_text
from mlff_distiller.students.repulsion import PairRepulsion, make_repulsion
from mlff_distiller.training.reference import ReferenceFit, note_isolated, repulsion_of, vectors_of

#: Forces of atoms that are closer have no meaning and no finite slope, Å.
OVERLAP = 0.01
# Atoms whose distances are computed together: edges take most of the memory.
_BLOCK_ATOMS = 4096
# Of what is kept beside large files; raised when it means something else.
_VERSION = 2


@dataclass
class Overlap:
    """A frame with two atoms at one point."""

    path: str
    structure: int
    distance: float
    """Å."""


@dataclass
class Shared:
    """Labelled frames of the validation and test splits whose geometry is trained on as well."""

    number: int
    path: str
    structure: int
    """The first of them."""
    trained_path: str
    trained_structure: int
    """The first one of training like it."""


@dataclass
class Statistics:
    """What one pass over the files of a run found; of the training split unless said otherwise."""

    hashes: list[str] = field(default_factory=list)
    """Of all structures of each file."""
    elements: dict[str, set[int]] = field(
        default_factory=lambda: {"train": set(), "valid": set(), "test": set()}
    )
    """Atomic numbers in the splits; unlabelled frames count in ``test`` alone."""
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """The first one of ``train`` and ``valid``."""
    shared: Shared | None = None
    fit: ReferenceFit = field(default_factory=ReferenceFit)
    """Energies by composition, without repulsion if the student has one."""
    isolated: dict[int, float] = field(default_factory=dict)
    """Energies of marked isolated atoms, eV."""
    coverage: CoverageSums = field(default_factory=CoverageSums)
    states: States = field(default_factory=States)
    num_atoms: int = 0
    num_edges: int = 0
    num_stress: int = 0
    """Frames with a stress label."""
    unlabelled: dict[str, list[int]] = field(
        default_factory=lambda: {"train": [0, 0], "valid": [0, 0]}
    )
    """Frames of a split without labels, and all of it."""
    forces: np.ndarray = field(default_factory=lambda: np.zeros((MAX_Z + 1, 2)))
    """Per atomic number: Σ|F|² in (eV/Å)² and number of components."""

    @property
    def force_rms(self) -> float:
        """Root mean square of a force component, eV/Å; 0 without forces."""
        squares, count = self.forces.sum(axis=0)
        return float(np.sqrt(squares / count)) if count else 0.0

    def state(self) -> dict[str, Any]:
        """As plain JSON, numbers exactly."""
        plain = ("hashes", "num_atoms", "num_edges", "num_stress", "unlabelled")
        return {
            **{name: getattr(self, name) for name in plain},
            "elements": {k: sorted(v) for k, v in self.elements.items()},
            "overlaps": {k: asdict(v) for k, v in self.overlaps.items()},
            "shared": asdict(self.shared) if self.shared else None,
            "fit": self.fit.state(),
            "isolated": list(self.isolated.items()),
            "coverage": self.coverage.state(),
            "states": self.states.values,
            "forces": self.forces.tolist(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Statistics:
        """From :meth:`state`."""
        plain = ("hashes", "num_atoms", "num_edges", "num_stress", "unlabelled")
        return cls(
            **{name: state[name] for name in plain},
            elements={k: set(v) for k, v in state["elements"].items()},
            overlaps={k: Overlap(**v) for k, v in state["overlaps"].items()},
            shared=Shared(**state["shared"]) if state["shared"] else None,
            fit=ReferenceFit.restored(state["fit"]),
            isolated={int(z): e for z, e in state["isolated"]},
            coverage=CoverageSums.restored(state["coverage"]),
            states=States(state["states"]),
            forces=np.array(state["forces"]),
        )


def gather(files: DataFiles, cutoff: float, model: ModelConfig) -> Statistics:
    """Go through all files once.

    Args:
        files: with splits.
        cutoff: Å.
        model: whose repulsion is left out of the energies that reference energies are fitted to.

    Raises:
        InputError: a structure that cannot be used.
    """
    kept = _kept(files, (cutoff, model.zbl, model.zbl_reach, model.zbl_switched))
    if kept is not None and (found := _load(kept)) is not None:
        return found
    result, geometries = Statistics(), _Geometries()
    for data in files.datasets:
        repulsions = PairRepulsions(model) if model.zbl else None
        _Pass(result, geometries, data, cutoff, repulsions, files.neighbors).run()
    result.shared = geometries.shared(files)
    if kept is not None:
        _store(kept, result)
    return result


class PairRepulsions:
    """The repulsion between any elements; a pair's does not depend on which others there are."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._made: dict[bytes, tuple[PairRepulsion, torch.Tensor]] = {}

    def energies(self, batch: Batch, vectors: torch.Tensor) -> np.ndarray:
        """Of each structure, (B,), eV."""
        elements = torch.unique(batch.atomic_numbers)
        key = elements.numpy().tobytes()
        if key not in self._made:
            species = torch.full((MAX_Z + 1,), -1, dtype=torch.int64)
            species[elements] = torch.arange(len(elements))
            repulsion = make_repulsion(self._model, elements.tolist())
            assert repulsion is not None  # only a model that has one gets here
            self._made = {key: (repulsion, species)}  # blocks of one kind follow each other
        repulsion, species = self._made[key]
        return repulsion_of(repulsion, species[batch.atomic_numbers], batch, vectors)


class _Geometries:
    """The frames of training and of the other splits, by 16 bytes each: there may be millions."""

    def __init__(self) -> None:
        self._keys, self._rows = (array("Q"), array("Q")), (array("Q"), array("Q"))
        self._start = 0

    def add(self, row: int, structure: Structure, *, trained: bool) -> None:
        """A frame of the file that is being read."""
        self._keys[trained].append(int.from_bytes(geometry_key(structure)[:8], "little"))
        self._rows[trained].append(self._start + row)

    def next_file(self, length: int) -> None:
        """The file that was read has ``length`` frames."""
        self._start += length

    def shared(self, files: DataFiles) -> Shared | None:
        """What is on both sides, if anything."""
        other, trained = (np.array(keys, dtype=np.uint64) for keys in self._keys)
        known, first = np.unique(trained, return_index=True)
        both = np.flatnonzero(np.isin(other, known))
        if not len(both):
            return None
        like = first[np.searchsorted(known, other[both])]
        rows = [
            (self._rows[False][b], self._rows[True][t]) for b, t in zip(both, like, strict=True)
        ]
        starts = np.cumsum([0, *(len(data) for data in files.datasets)])

        def place(row: int) -> tuple[str, int]:
            file = int(np.searchsorted(starts, row, side="right")) - 1
            return str(files.datasets[file].path), int(row - starts[file])

        row, of_training = min(rows)
        return Shared(len(both), *place(row), *place(of_training))


class _Pass:
    """One pass over one file."""

    def __init__(
        self,
        result: Statistics,
        geometries: _Geometries,
        data: HDF5Dataset,
        cutoff: float,
        repulsions: PairRepulsions | None,
        memory: NeighborMemory | None,
    ) -> None:
        self.result, self.data, self.cutoff = result, data, cutoff
        self.geometries = geometries
        self.repulsions, self.memory = repulsions, memory
        self.split = np.full(len(data), "", dtype="<U5")
        for name, rows in data.splits.items():
            self.split[rows] = name

    def run(self) -> None:
        digest = StructuresDigest()
        for first, structures in self.data.blocks():
            for s in structures:
                digest.add(s)
            for name in ("train", "valid", "test"):
                rows = [i for i in range(len(structures)) if self.split[first + i] == name]
                if rows:
                    self._add(name, first, structures, rows)
        self.result.hashes.append(digest.hexdigest())
        self.geometries.next_file(len(self.data))

    def _add(
        self, split: str, first: int, structures: Sequence[Structure], rows: list[int]
    ) -> None:
        result = self.result
        for i in rows:
            s = structures[i]
            labelled = s.energy is not None or s.forces is not None
            if split in result.unlabelled:
                result.unlabelled[split][0] += not labelled
                result.unlabelled[split][1] += 1
            if labelled:
                self.geometries.add(first + i, s, trained=split == "train")
            if labelled or split == "test":
                result.elements[split].update(s.atomic_numbers.tolist())
        if split != "test":
            for part in _by_atoms(rows, structures):
                self._add_geometry(split, first, structures, part)

    def _add_geometry(
        self, split: str, first: int, structures: Sequence[Structure], rows: list[int]
    ) -> None:
        result, frames = self.result, [structures[i] for i in rows]
        batch = collate(frames, self.cutoff, torch.float64, self.memory)
        vectors = vectors_of(batch)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        if split not in result.overlaps and bool((distances <= OVERLAP).any()):
            edge = int(torch.nonzero(distances <= OVERLAP)[0, 0])
            frame = int(batch.structure_index[batch.edge_index[1, edge]])
            mine = batch.structure_index[batch.edge_index[1]] == frame
            row, shortest = first + rows[frame], float(distances[mine].min())
            result.overlaps[split] = Overlap(str(self.data.path), row, shortest)
        if split != "train":
            return
        energies = np.zeros(len(frames))
        if self.repulsions is not None:
            energies = self.repulsions.energies(batch, vectors)
        usable = [s.energy is not None or s.forces is not None for s in frames]
        mine = torch.tensor(usable)[batch.structure_index[batch.edge_index[1]]]
        numbers = batch.atomic_numbers[batch.edge_index]
        result.coverage.pairs.add(numbers[:, mine].numpy(), distances[mine].numpy())
        result.num_edges += int(mine.sum())
        for s, repulsion, labelled in zip(frames, energies.tolist(), usable, strict=True):
            if labelled:
                self._add_frame(s, repulsion)

    def _add_frame(self, s: Structure, repulsion: float) -> None:
        result = self.result
        result.coverage.add(s)
        result.states.add(s)
        note_isolated(result.isolated, s)
        if s.energy is not None:
            result.fit.add(s.atomic_numbers, s.energy - repulsion)
        result.num_atoms += len(s)
        result.num_stress += s.stress is not None
        if s.forces is not None:
            squares = (s.forces * s.forces).sum(axis=1)
            result.forces[:, 0] += np.bincount(s.atomic_numbers, squares, MAX_Z + 1)
            result.forces[:, 1] += np.bincount(s.atomic_numbers, None, MAX_Z + 1) * 3


def _by_atoms(rows: list[int], structures: Sequence[Structure]) -> Iterator[list[int]]:
    part: list[int] = []
    atoms = 0
    for i in rows:
        if part and atoms + len(structures[i]) > _BLOCK_ATOMS:
            yield part
            part, atoms = [], 0
        part.append(i)
        atoms += len(structures[i])
    if part:
        yield part


# -- kept beside large files ---------------------------------------------------------------------


def _kept(files: DataFiles, how: tuple[Any, ...]) -> tuple[Path, str] | None:
    """Where statistics are kept, and of what they are; None for sets that are held in memory."""
    if files.in_memory or any(journal_path(data.path).exists() for data in files.datasets):
        return None
    stamps = []
    for data in files.datasets:
        stat = data.path.stat()
        splits = {k: zlib.crc32(v.tobytes()) for k, v in data.splits.items()}
        stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, len(data), splits))
    first = files.datasets[0].path
    return first.with_name(f".{first.name}.statistics"), repr((_VERSION, how, stamps))


def _load(kept: tuple[Path, str]) -> Statistics | None:
    path, of = kept
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["of"] != of:
            return None
        return Statistics.restored(content["statistics"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: go through the data
        return None


def _store(kept: tuple[Path, str], found: Statistics) -> None:
    path, of = kept
    # Where the directory cannot be written to, the next start goes through the data again.
    with contextlib.suppress(OSError):
        atomic_write_text(path, json.dumps({"of": of, "statistics": found.state()}))
