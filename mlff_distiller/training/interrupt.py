"""Ctrl-C at a moment when the state is consistent."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Remembers that the user pressed Ctrl-C or that a batch system sent SIGTERM.

    Args:
        leader: process that passes Ctrl-C on as SIGTERM: while it lives, SIGINT is its business.
            The keyboard sends SIGINT to all.
    """

    def __init__(self, leader: int | None = None) -> None:
        #: To stop at the next step: a signal, or a hook.
        self.requested = False
        #: A signal came, perhaps after the last step.
        self.arrived = False
        self._leader = leader

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Note signals instead of raising at once; a second one raises KeyboardInterrupt.

        An exception in the middle of an optimiser step would leave half of the weights updated.
        Outside of the main thread nothing is caught: signals do not arrive there.
        """

        def note(number: int, _: Any) -> None:
            if number == signal.SIGINT and self._leader == os.getppid():
                return
            if self.requested:
                raise KeyboardInterrupt
            self.requested = self.arrived = True

        old: dict[signal.Signals, Any] = {}
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
