"""One run in a folder at a time: two would write over each other's files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mlff_distiller.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep ``folder`` for this process while the block runs.

    The kernel holds the lock, and gives it back however the process ends. The file stays: without
    the lock it means nothing, and removing it could take the lock of the next run along.

    Raises:
        InputError: another process has it.
    """
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
            raise InputError(
                f"{folder} is used by another distill ({holder or 'process unknown'}); wait for it "
                "to end, or name another directory with -o"
            ) from None
        except OSError:  # a file system without locks: better no guard than no run
            pass
        with contextlib.suppress(OSError):  # a full disk: only the refusal would say less
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
