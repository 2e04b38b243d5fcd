"""Calculators that tests watch."""

from __future__ import annotations

from ase.calculators.emt import EMT


class Counting(EMT):
    """EMT that counts, and is interrupted at one of its evaluations."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls, self.stop_at = 0, stop_at

    def calculate(self, *args, **kwargs) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        super().calculate(*args, **kwargs)
