"""Work for several processes of one thread each: teachers' labels, students' runs.

Two slow calculations side by side on two cores take little more than half the time of one after
the other on both, because few teachers use a second thread well.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from mlff_distiller.cpus import usable_cpus
from mlff_distiller.errors import InputError

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")

# s after which an idle worker ends; a killed parent leaves none behind for longer.
_IDLE = 120
# s between two looks at the parent, and for a worker to end what it has started.
_LOOK, _GRACE = 1.0, 10.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_pools: list[Any] = []


def run_all(
    function: Callable[[ArgumentT], ResultT], arguments: Iterable[ArgumentT], workers: int
) -> Iterator[ResultT]:
    """``map(function, arguments)`` by ``workers`` processes, each result as soon as it is there.

    Args:
        function: at the top level of a module; its errors are raised here.
        arguments: anything that can be pickled.
        workers: processes; 0 for as many as there are CPUs; 1 works in this process. They stay for
            the next call.

    Raises:
        InputError: a worker was killed.
    """
    workers = workers or usable_cpus()
    if workers == 1:
        yield from map(function, arguments)
        return
    futures = [start(function, argument, workers) for argument in arguments]
    try:
        for future in futures:
            yield result_of(future)
    finally:
        for future in futures:
            future.cancel()


def start(
    function: Callable[[ArgumentT], ResultT], argument: ArgumentT, workers: int
) -> Future[ResultT]:
    """``function(argument)`` by one of the processes of :func:`run_all`, of which there are
    ``workers``; for :func:`result_of`."""
    return _pool(workers).submit(function, argument)


def result_of(future: Future[ResultT]) -> ResultT:
    """Wait for what :func:`start` began, and raise its errors.

    Raises:
        InputError: a worker was killed.
    """
    from loky.process_executor import TerminatedWorkerError

    try:
        return future.result()
    except TerminatedWorkerError:
        raise InputError(
            "a worker process was killed, out of memory perhaps; use fewer workers "
            "(teacher.workers: 1)"
        ) from None
    except KeyboardInterrupt:
        stop_workers()
        raise


def mapper(workers: int) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """A ``map`` whose work :func:`run_all` does with ``workers`` processes."""
    return functools.partial(_mapped, workers)


def _mapped(
    workers: int, function: Callable[[ArgumentT], ResultT], arguments: Iterable[ArgumentT]
) -> Iterator[ResultT]:
    return run_all(function, arguments, workers)


def stop_workers() -> None:
    """End all workers now; what they were doing is lost."""
    while _pools:
        _pools.pop().shutdown(wait=True, kill_workers=True)


def _pool(workers: int) -> Any:
    from loky import get_reusable_executor

    # Thread pools read these when their libraries load, so they must be there from the start. A
    # worker that has loaded a teacher has grown, but it leaks nothing.
    environment = {**dict.fromkeys(_THREADS, "1"), "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15"}
    pool = get_reusable_executor(
        max_workers=workers, timeout=_IDLE, env=environment, initializer=_begin
    )
    if pool not in _pools:
        _pools.append(pool)
    return pool


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this worker, and the LAMMPS that it runs, when the parent was killed."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)
