"""[3] Labels of all rounds -> ``data.h5``, what the student is trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlff_distiller.data import HDF5Dataset, Structure, write_structures
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.data.splits import SPLITS
from mlff_distiller.data.structure import is_isolated
from mlff_distiller.pipeline.choose import VISITED
from mlff_distiller.pipeline.stage import Hashed, Say, Station
from mlff_distiller.training.reference import doubt_isolated_atoms

DATA = "data.h5"
# Of the frames that student dynamics visited every third is for validation: training must not end
# with the weights that fit the sampled frames best. Every sixth is kept for the test: the errors that
# a report shows must be those of the conditions that were asked for.
_VALID, _TEST = 3, 6


@dataclass(frozen=True)
class Inputs:
    """What the file depends on."""

    labels: list[Hashed[Path]]
    """The first one has splits, the others are those of rounds."""


@dataclass(frozen=True)
class Result:
    """What is in the file."""

    num_frames: dict[str, int]
    """Split -> number of structures."""
    data_hash: str
    """Of structures, labels and splits."""


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Put the files one after another; frames stay in their splits."""
    frames: list[Structure] = []
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    first: HDF5Dataset | None = None
    for source in inputs.labels:
        data = HDF5Dataset(source.value)
        some = list(data)
        own = data.splits if first is None else splits_of_round(some)
        dropped = set()
        if first is None and (doubt := doubt_isolated_atoms(some)):
            say(f"note: {doubt}")
            dropped = {i for i, s in enumerate(some) if is_isolated(s.atomic_numbers, s.info)}
        place = {i: len(frames) + k for k, i in enumerate(_others(len(some), dropped))}
        for name in SPLITS:
            splits[name] += [place[int(i)] for i in own.get(name, []) if int(i) in place]
        frames += [some[i] for i in place]
        first = first or data
    assert first is not None
    write_structures(output / DATA, frames, teacher=first.teacher, versions=first.versions)
    store_splits(output / DATA, {k: np.array(v, dtype=np.int64) for k, v in splits.items()})
    digest = hashlib.sha256(HDF5Dataset(output / DATA).hash().encode())
    for name in SPLITS:
        digest.update(np.array(splits[name], dtype=np.int64).tobytes() + b";")
    return Result({k: len(v) for k, v in splits.items()}, digest.hexdigest())


def _others(number: int, dropped: set[int]) -> list[int]:
    return [i for i in range(number) if i not in dropped]


def splits_of_round(frames: list[Structure]) -> dict[str, list[int]]:
    """Of the frames drawn at random every third is for validation and every sixth for the test; all
    others are for training."""
    visited = [i for i, f in enumerate(frames) if f.info.get("why") == VISITED]
    valid, test = set(visited[_VALID - 1 :: _VALID]), set(visited[::_TEST])
    return {
        "train": [i for i in range(len(frames)) if i not in valid | test],
        "valid": sorted(valid),
        "test": sorted(test),
    }


STATION = Station("join", work, Result, [DATA])
