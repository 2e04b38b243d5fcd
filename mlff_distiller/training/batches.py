"""Which frames a step sees, in which order, and batches that are ready before they are needed.

The order is a function of seed, epoch and the sizes of the frames: the same after resuming, with
any number of processes, and whether frames are held in memory or read from the files meanwhile.

Up to WINDOW frames are shuffled at once. Of more, blocks of consecutive frames (a 64th of a window)
are shuffled first; frames are then shuffled within each window of 64 blocks. A step thus sees
frames of 64 random places of the data, and only two windows of frames are ever in memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mlff_distiller.config import TrainingConfig
from mlff_distiller.data import Batch, collate
from mlff_distiller.data.batch import NeighborMemory
from mlff_distiller.data.frames import Frames

#: Frames, at most; and atoms, about, that are shuffled at once.
WINDOW, WINDOW_ATOMS = 8192, 2**20
_BLOCKS = 64
#: Where neither structures nor atoms of a step are given.
DEFAULT_STRUCTURES, DEFAULT_ATOMS = 8, 512
# Batches that wait: one is always ready, however unequal their sizes are.
_AHEAD = 3

T = TypeVar("T")


class Plan:
    """The batches of every epoch.

    Args:
        sizes: (n,) atoms of each frame.
        settings: seed, and structures or atoms of a step.
        counts: frames of each file, in order; one file when left out.
        weights: of each file: how often its frames are shown in an epoch.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        settings: TrainingConfig,
        counts: Sequence[int] = (),
        weights: Sequence[float] = (),
    ) -> None:
        self._sizes, self._seed = np.asarray(sizes, dtype=np.int64), settings.seed
        self._counts = list(counts) or [len(sizes)]
        self._weights = list(weights) or [1.0] * len(self._counts)
        ends = np.cumsum(self._counts)
        # Files whose training split is empty show nothing.
        self._shown = [
            max(1, round(w * n)) if n else 0
            for w, n in zip(self._weights, self._counts, strict=True)
        ]
        self.frames_per_epoch = sum(self._shown)
        """Frames of an epoch, repeated ones included."""
        mean = float(self._sizes.mean())
        shown_atoms = sum(
            shown * float(self._sizes[end - n : end].mean())
            for shown, n, end in zip(self._shown, self._counts, ends.tolist(), strict=True)
            if n
        )
        self.batch_size = settings.batch_size
        self.batch_atoms = settings.batch_atoms or default_atoms(mean)
        if self.batch_size is not None:
            steps = -(-self.frames_per_epoch // self.batch_size)
        else:
            steps = min(self.frames_per_epoch, max(1, -(-round(shown_atoms) // self.batch_atoms)))
        self.batches_per_epoch = int(steps)
        self.window = int(min(WINDOW, max(_BLOCKS, WINDOW_ATOMS / mean)))

    def order(self, epoch: int) -> np.ndarray:
        """Places of the frames in the order of an epoch, (frames_per_epoch,)."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        parts, start = [], 0
        for n, shown in zip(self._counts, self._shown, strict=True):
            # All frames as often as that goes, the rest is drawn anew in each epoch.
            whole, rest = divmod(shown, n) if n else (0, 0)
            times = np.full(n, whole)
            if rest:
                times[torch.randperm(n, generator=generator)[:rest].numpy()] += 1
            parts.append(start + np.repeat(np.arange(n), times))
            start += n
        return _shuffled(np.concatenate(parts), self.window, generator)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: places of their frames."""
        order = self.order(epoch)
        if self.batch_size is not None:
            cuts = np.arange(self.batch_size, len(order), self.batch_size)
        else:
            cuts = _equal_cuts(self._sizes[order], self.batches_per_epoch)
        return np.split(order, cuts)

    def in_order(self, sizes: np.ndarray) -> list[np.ndarray]:
        """Batches of other frames, as they follow each other; none larger than those of an epoch."""
        limit = self.batch_atoms if self.batch_size is None else np.inf
        most = self.batch_size or len(sizes)
        found: list[list[int]] = []
        atoms = 0
        for place, size in enumerate(sizes.tolist()):
            if not found or len(found[-1]) >= most or atoms + size > limit:
                found.append([])
                atoms = 0
            found[-1].append(place)
            atoms += size
        return [np.array(places) for places in found]


def default_atoms(mean: float) -> int:
    """Atoms of a step where none are given: of 8 structures of ``mean`` atoms, at most 512."""
    return max(1, round(min(DEFAULT_STRUCTURES * mean, DEFAULT_ATOMS)))


def _shuffled(places: np.ndarray, window: int, generator: torch.Generator) -> np.ndarray:
    def permutation(n: int) -> np.ndarray:
        return np.asarray(torch.randperm(n, generator=generator).numpy())

    if len(places) <= window:
        return places[permutation(len(places))]
    block = max(1, window // _BLOCKS)
    starts = permutation(-(-len(places) // block)) * block
    order = (starts[:, None] + np.arange(block)).reshape(-1)
    shuffled = places[order[order < len(places)]]
    for start in range(0, len(shuffled), window):
        part = shuffled[start : start + window]
        shuffled[start : start + window] = part[permutation(len(part))]
    return shuffled


def _equal_cuts(sizes: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut frames of these sizes into ``parts`` of nearly equal sums, none of them empty."""
    ends = np.cumsum(sizes)
    wanted = ends[-1] * np.arange(1, parts) / parts
    cuts = np.searchsorted(ends - sizes / 2, wanted)
    steps = np.arange(1, parts)
    # At least one frame in each part, and one for each of those that follow.
    cuts = np.maximum.accumulate(np.maximum(cuts, 1) - steps) + steps
    return np.asarray(np.minimum(cuts, len(sizes) - parts + steps))


class Loader:
    """Batches of frames, read and put together by a thread while a step computes.

    Args:
        frames: of a split.
        cutoff: Å.
        dtype: of the real numbers.
        window: frames that are read together where they are not in memory.
        memory: of neighbour lists.
    """

    def __init__(
        self,
        frames: Frames,
        cutoff: float,
        dtype: torch.dtype,
        window: int,
        memory: NeighborMemory | None,
    ) -> None:
        self._frames, self._cutoff, self._dtype = frames, cutoff, dtype
        self._window, self._memory = window, memory

    def batches(self, places: Sequence[np.ndarray]) -> Ahead[Batch | None]:
        """The batches with the frames at ``places``, in order; None where there are no frames."""
        return Ahead(lambda: self._batches(places), _AHEAD)

    def _batches(self, places: Sequence[np.ndarray]) -> Iterator[Batch | None]:
        for structures in self._structures(places):
            if structures:
                yield collate(structures, self._cutoff, self._dtype, self._memory)
            else:
                yield None

    def _structures(self, places: Sequence[np.ndarray]) -> Iterator[list[Any]]:
        if self._frames.in_memory:
            yield from map(self._frames.take, places)
            return
        start = 0
        while start < len(places):
            # As many batches as make a window, read together.
            stop, frames = start, 0
            while stop < len(places) and (stop == start or frames < self._window):
                frames += len(places[stop])
                stop += 1
            read = self._frames.take(np.concatenate(places[start:stop]))
            for part in places[start:stop]:
                yield read[: len(part)]
                del read[: len(part)]
            start = stop


class Ahead(Generic[T]):
    """Runs an iterator in a thread, a few items ahead of whoever takes them.

    Args:
        make: makes the iterator, in the thread.
        depth: items that wait at most.

    Use as a context manager, or exhaust it: otherwise the thread stays.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._make = make
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for item in self._make():
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:  # raised again where the items are taken
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._queue.get()
            if kind == "item":
                yield value
            elif kind == "error":
                self.close()
                raise value
            else:
                return

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
