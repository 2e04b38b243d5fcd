"""Several processes that train together: how they agree, and end when one of them dies.

A killed process closes its connections. Whoever waits for it in a sum learns that at once from
gloo, but never from nccl, and a process that computes learns it from neither. So each process also
waits for its neighbour, in a thread of its own and over gloo.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

from mlff_distiller.config import TrainingConfig
from mlff_distiller.cpus import usable_cpus
from mlff_distiller.errors import InputError, LostProcessError
from mlff_distiller.launch import Launch

ResultT = TypeVar("ResultT")

# The longest that a process waits for the others to start, read their data or end a step.
_PATIENCE = timedelta(minutes=30)
_FOREVER = timedelta(days=365)
# s between the loss of a process and the end of one that did not come to notice it: it hangs in
# nccl. Shorter than the 30 s after which torchrun and torch.multiprocessing kill.
_GRACE = 20.0
# s that the others may come to the same end later.
_PARTING = 5.0
# Processes for each core. More than one only slow each other down, but do no harm.
_CROWD = 4
_MARK = ".lost"


def on_gpu(config: TrainingConfig) -> bool:
    """Whether GPUs will train. Raises InputError where they shall and there is none."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InputError(
            "device is cuda, but this torch finds no CUDA device; set training.device to cpu"
        )
    return available and config.device != "cpu"


def make_fabric(config: TrainingConfig, launch: Launch | None = None) -> Fabric:
    """Fabric for the device and the processes. Raises InputError without the device.

    Args:
        config: ``device`` and, for a process that stands alone, ``devices``.
        launch: the processes that were started, by us or somebody else; None: this one alone.
    """
    accelerator = "cuda" if on_gpu(config) else "cpu"
    if launch is None:
        alone = LightningEnvironment()  # not what a shell of SLURM would have us wait for
        return Fabric(accelerator=accelerator, devices=1, strategy="auto", plugins=[alone])
    check_devices(config, launch.processes)
    environments: dict[str, Callable[[], ClusterEnvironment]] = {
        "torchrun": TorchElasticEnvironment,
        "srun": lambda: SLURMEnvironment(auto_requeue=False),
        "train": LightningEnvironment,
    }
    return Fabric(
        accelerator=accelerator,
        devices=launch.processes,
        num_nodes=launch.nodes,
        strategy=DDPStrategy(timeout=_PATIENCE),
        plugins=[environments[launch.by]()],
    )


def check_devices(config: TrainingConfig, processes: int) -> None:
    """Raise InputError where this machine has not that many GPUs, or far fewer cores."""
    if torch.cuda.is_available() and config.device != "cpu":
        most, what = torch.cuda.device_count(), "GPUs that this process sees"
    else:
        most, what = _CROWD * (os.cpu_count() or 1), f"{_CROWD} for each core"
    if processes > most:
        raise InputError(
            f"devices must be 1..{most} ({what}), got {processes}; set training.devices, or start "
            "fewer processes"
        )


def threads_of_each(threads: int, launch: Launch | None) -> int:
    """Threads of a process, so that those of one machine do not wait for each other."""
    cpus = usable_cpus()
    if launch is not None and launch.by != "srun":  # srun gives each process CPUs of its own
        cpus = max(1, cpus // launch.processes)
    return min(threads, cpus)


class Processes:
    """What the processes of a run say to each other. One process alone may use it as well.

    Args:
        fabric: launched.
        folder: of the run, seen by all.
    """

    def __init__(self, fabric: Fabric, folder: Path) -> None:
        self.rank, self.total = fabric.global_rank, fabric.world_size
        self._fabric, self._mark = fabric, folder / _MARK
        self._lost = self._ended = False
        if self.total == 1:
            return
        with self._talking():
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self._watched = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._heard = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def sum(self, value: Tensor) -> Tensor:
        """Σ over processes. Raises LostProcessError."""
        if self.total == 1:
            return value
        value = value.clone()
        with self._talking():
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for all. Raises LostProcessError."""
        with self._talking():
            self._fabric.barrier()

    def make_equal(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the values of the first: other CPUs round differently."""
        if self.total > 1:
            with self._talking(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def first_then_others(
        self, work: Callable[[Any], ResultT], share: Callable[[ResultT], Any]
    ) -> ResultT:
        """``work(None)`` in the first process, and then ``work(share(result))`` in all others.

        Raises:
            InputError: of any process, in all.
        """
        if self.total == 1:
            return work(None)
        result: Any = None
        found = None
        for turn in (self.rank == 0, self.rank != 0):
            error = shared = None
            try:
                if turn:
                    result = work(found)
                    shared = share(result) if self.rank == 0 else None
            except InputError as reason:
                error = str(reason)
            said: list[Any] = [None] * self.total
            with self._talking():
                dist.all_gather_object(said, (error, shared), group=self._group)
            for text in filter(None, (text for text, _ in said)):
                raise InputError(text)
            found = said[0][1]
        return result

    def check(self) -> None:
        """Raise LostProcessError if a process is known to be gone."""
        if self._lost:
            raise self._loss()

    def begin(self) -> None:
        """The folder is this run's now."""
        if self.rank == 0:
            self._mark.unlink(missing_ok=True)

    def leave(self, *, well: bool) -> None:
        """The last word of this process, however it ends; ``well``: the others end, too.

        Waits a moment for that of the neighbour: a thread that still listens when Python ends
        takes the process down.
        """
        if self.total == 1 or self._ended:
            return
        self._ended = True
        with suppress(RuntimeError):  # it is gone
            word = torch.full((1,), float(well))
            dist.send(word, (self.rank - 1) % self.total, group=self._watched)
        self._heard.wait(_PARTING)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, (NotImplementedError, torch.OutOfMemoryError)):
                raise
            raise self._loss() from error

    def _loss(self) -> LostProcessError:
        error = LostProcessError(
            "another process of this run has ended or does not answer: killed, or out of memory"
        )
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            error.told = True
        except OSError:  # no folder yet
            pass
        return error

    def _watch(self) -> None:
        word = torch.zeros(1)
        with suppress(RuntimeError):
            dist.recv(word, (self.rank + 1) % self.total, group=self._watched)
        self._lost = not bool(word)
        self._heard.set()
        if self._lost:
            time.sleep(_GRACE)
            if not self._ended:
                error = self._loss()
                if not error.told:
                    print(f"error: {error}; see its last checkpoint", file=sys.stderr, flush=True)
                os._exit(2)
