"""Structures that others work on before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mlff_distiller.data.structure import Structure


class Ahead:
    """What was announced and what is being worked on; structures are told apart by identity.

    Args:
        begin: starts the work on a structure, and gives what its result comes with.
    """

    def __init__(self, begin: Callable[[Structure], Any]) -> None:
        self._begin = begin
        self._coming: deque[Structure] = deque()
        self._begun: dict[int, tuple[Structure, Any]] = {}  # keeps the structure, and so its id

    def __contains__(self, structure: Structure) -> bool:
        return id(structure) in self._begun

    def __len__(self) -> int:
        """Number of structures that were begun and not forgotten."""
        return len(self._begun)

    def __iter__(self) -> Iterator[tuple[Structure, Any]]:
        """Structures that were begun, with their futures."""
        return iter(list(self._begun.values()))

    def announce(self, structures: Sequence[Structure]) -> None:
        """These will be asked for, in this order; others that wait no longer."""
        self._coming = deque(structures)

    def future(self, structure: Structure) -> Any:
        """Of a structure, which is begun now if it was not."""
        if self._coming and self._coming[0] is structure:
            self._coming.popleft()
        if structure not in self:
            self._begun[id(structure)] = structure, self._begin(structure)
        return self._begun[id(structure)][1]

    def fill(self, limit: int) -> None:
        """Begin what was announced until ``limit`` structures are begun."""
        while self._coming and len(self) < limit:
            self.future(self._coming[0])

    def forget(self, structures: Iterable[Structure]) -> None:
        """Whose results are here, or will not be asked for."""
        for s in structures:
            self._begun.pop(id(s), None)
