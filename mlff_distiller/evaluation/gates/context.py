"""What every gate is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates.cache import Side
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.purpose import PurposeConfig

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Context:
    """Student and teacher, what they are for, and the means; see :func:`.run.run_gates`."""

    path: Path
    student: Side
    teacher: Side
    teacher_config: TeacherConfig
    structures: list[Structure]
    purpose: PurposeConfig
    limits: AcceptanceConfig
    held_out: Sequence[Structure] | None
    engine: str | None
    pool: Map
    say: Say

    def both(
        self, function: Callable[..., dict[str, Any]], *arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same measurement of the student and of the teacher.

        Args:
            function: takes a calculator and the arguments.
            arguments: one that is a function gets the side, to give its own relaxed cell.
        """

        def measured(side: Side) -> dict[str, Any]:
            return side.measure(function, *(a(side) if callable(a) else a for a in arguments))

        return measured(self.student), measured(self.teacher)
