"""A calculator for workers: slow, and it writes down what it was asked for."""

from __future__ import annotations

import os
import time

from ase.calculators.emt import EMT


class SlowEMT(EMT):
    """EMT that waits, leaves a line per structure in ``log``, and fails or dies where it should.

    Args:
        log: file; a line is ``pid first-x-coordinate``.
        seconds: of each structure.
        deadly: a structure of so many atoms ends the process.
    """

    def __init__(self, log: str, seconds: float = 0.0, deadly: int = 0) -> None:
        super().__init__()
        self.log, self.seconds, self.deadly = log, seconds, deadly

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms)
        time.sleep(self.seconds)
        if len(atoms) == self.deadly:
            os._exit(1)
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {float(atoms.positions[0, 0])!r}\n")
