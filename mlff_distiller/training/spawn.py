"""Processes of our own: started, interrupted and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from mlff_distiller.errors import DamagedFileError, InputError, LostProcessError
from mlff_distiller.launch import Launch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def spawn(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(launch, *arguments)`` in ``count`` processes of this machine.

    Ctrl-C and SIGTERM are passed on to all of them as SIGTERM.

    Args:
        count: processes.
        function: at the top level of a module.
        arguments: that can be pickled, like what the first process returns.

    Returns:
        What the first process does.

    Raises:
        InputError: of a process.
        LostProcessError: one was killed.
        KeyboardInterrupt: they were interrupted.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result")
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        given = (os.getpid(), count, meeting, result, function, arguments)
        with _blocked():  # until the processes know what to do with a signal
            context: Any = start_processes(_child, given, count, join=False, start_method="spawn")
        with _passed_on(context.processes) as interrupted:
            try:
                while not context.join():
                    pass
            except ProcessExitedException as error:
                if interrupted:
                    raise KeyboardInterrupt from None
                how = error.signal_name or f"exit status {error.exit_code}"
                raise LostProcessError(
                    f"process {error.error_index + 1} of {count} was killed ({how}), out of memory "
                    "perhaps"
                ) from None
            except ProcessRaisedException as error:  # the text holds a traceback
                *_, last = str(error).strip().splitlines()
                for kind in (LostProcessError, DamagedFileError, InputError):
                    _, found, message = last.partition(f".{kind.__name__}: ")
                    if found:
                        raise kind(message) from None
                raise
        if interrupted or not result.exists():  # also where the signal came after the last step
            raise KeyboardInterrupt
        return torch.load(result, weights_only=False)  # of our own process


def _child(
    index: int,
    parent: int,
    count: int,
    meeting: dict[str, str],
    result: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    def leave(*_: Any) -> None:
        if os.getppid() != parent:  # sent by the kernel: the parent was killed
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.environ.update(meeting, LOCAL_RANK=str(index), NODE_RANK="0")
    found = function(Launch("train", index, index, count, 1), *arguments)
    if index == 0:
        torch.save(found, result)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextlib.contextmanager
def _passed_on(processes: list[Any]) -> Iterator[list[int]]:
    """Signals that arrived, each of which was sent to all ``processes`` as SIGTERM."""
    arrived: list[int] = []

    def send(number: int, frame: Any) -> None:
        arrived.append(number)
        for process in processes:
            if process.is_alive():
                process.terminate()

    old: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: no signals arrive here
        for number in _SIGNALS:
            old[number] = signal.signal(number, send)
    try:
        yield arrived
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
