"""[8] Acceptance: the student measured like the teacher, at the conditions of its purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.run import run_gates
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Say, Station
from mlff_distiller.purpose import PurposeConfig
from mlff_distiller.workers import mapper


@dataclass(frozen=True)
class Inputs:
    """What the verdict depends on."""

    student: Hashed[Path]
    structures: Hashed[list[Structure]]
    """As they were given."""
    data: Hashed[Path]
    """Whose test split training never saw."""
    teacher: TeacherConfig
    purpose: PurposeConfig
    acceptance: AcceptanceConfig
    engine: str
    quick: bool
    """Single structures only, no dynamics."""
    cache: Path = field(metadata=EXECUTION)
    """What was measured before; the teacher's side never twice."""
    workers: int = field(default=0, metadata=EXECUTION)

    def identity(self) -> dict[str, Any]:
        """Without what says how the teacher computes."""
        return {
            "student": self.student,
            "structures": self.structures,
            "data": self.data,
            "teacher": [self.teacher.name, self.teacher.options],
            "purpose": self.purpose,
            "acceptance": self.acceptance,
            "engine": self.engine,
            "quick": self.quick,
        }


@dataclass(frozen=True)
class Result:
    """The gates, see :class:`mlff_distiller.evaluation.gates.gate.Gate`."""

    gates: list[dict[str, Any]]

    @property
    def failed(self) -> list[str]:
        """Names of those that fail."""
        return [row["name"] for row in self.gates if not row["passed"]]


def work(inputs: Inputs, output: Path, say: Say) -> Result:
    """Measure all gates."""
    test = HDF5Dataset(inputs.data.value).subset("test")
    gates = run_gates(
        inputs.student.value,
        inputs.teacher,
        inputs.structures.value,
        inputs.purpose,
        inputs.acceptance,
        cache=inputs.cache,
        held_out=list(test) or None,
        engine=inputs.engine,
        quick=inputs.quick,
        pool=mapper(inputs.workers),
        say=say,
    )
    passed = sum(gate.passed for gate in gates)
    if inputs.quick:
        kinds = ", ".join(dict.fromkeys(gate.kind.replace("_", " ") for gate in gates))
        say(
            f"{passed} of {len(gates)} quick gates passed ({kinds}); the others are asked in the end"
        )
    else:
        say(f"{passed} of {len(gates)} gates passed")
    return Result([gate.to_dict() for gate in gates])


def gates_of(result: Result) -> list[Gate]:
    """The gates of a result."""
    return [Gate.from_dict(row) for row in result.gates]


STATION = Station("gates", work, Result, [])
