"""One gate: what was asked, what student and teacher gave, and whether that is near enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlff_distiller.files import jsonable


@dataclass(frozen=True)
class Gate:
    """One line of the verdict."""

    name: str
    """``lattice parameter a``."""
    kind: str
    """Which of :data:`~mlff_distiller.evaluation.gates.settings.KINDS` it belongs to."""
    deviation: float | None
    """What is compared with the limit; None: not measured."""
    limit: float
    limit_unit: str
    """Of deviation and limit."""
    student: float | None = None
    teacher: float | None = None
    unit: str = ""
    """Of student and teacher."""
    at_least: bool = False
    """The deviation must reach the limit, not stay below it."""
    reason: str = ""
    """Why there is no measurement, or what was found."""
    advice: str = ""
    """What to do when it fails."""
    details: dict[str, Any] = field(default_factory=dict)
    """Curves of both for figures, plain JSON."""

    @property
    def passed(self) -> bool:
        """A gate without a measurement fails, and so does NaN."""
        if self.deviation is None or not math.isfinite(self.deviation):
            return False
        if self.at_least:
            return self.deviation >= self.limit
        return self.deviation <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return jsonable({**dataclasses.asdict(self), "passed": self.passed})

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Gate:
        """What :meth:`to_dict` gave."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in names})


def relative(
    name: str, kind: str, student: float, teacher: float, limit: float, unit: str, **more: Any
) -> Gate:
    """A gate on the relative difference, in %.

    Args:
        name: of the gate.
        kind: of the gate.
        student: value.
        teacher: value.
        limit: in %.
        unit: of both values.
        more: other fields.
    """
    scale = abs(teacher) or math.nan
    return Gate(
        name, kind, 100.0 * abs(student - teacher) / scale, limit, "%", student, teacher, unit,
        **more,
    )  # fmt: skip


def absolute(
    name: str, kind: str, student: float, teacher: float, limit: float, unit: str, **more: Any
) -> Gate:
    """A gate on the difference itself; arguments as :func:`relative`, the limit in ``unit``."""
    return Gate(name, kind, abs(student - teacher), limit, unit, student, teacher, unit, **more)


def unmeasured(name: str, kind: str, limit: float, unit: str, reason: str, **more: Any) -> Gate:
    """A gate that fails for lack of a measurement."""
    return Gate(name, kind, None, limit, unit, reason=reason, **more)


def all_passed(gates: Sequence[Gate]) -> bool:
    """Whether a student may be used. Nothing measured is no reason to trust it."""
    return bool(gates) and all(gate.passed for gate in gates)


def failures(gates: Sequence[Gate]) -> list[str]:
    """One line for each gate that fails: what was found, what was asked, what to do."""
    lines = []
    for gate in gates:
        if gate.passed:
            continue
        unit = f" {gate.limit_unit}".rstrip() if gate.limit_unit != "%" else "%"
        limit = f"limit {'≥' if gate.at_least else '≤'} {gate.limit:.3g}{unit}"
        if gate.deviation is None:
            found = f"not measured ({gate.reason or 'no reason given'})"
        else:
            found = f"{gate.deviation:.4g}{unit}"
            found += f" ({gate.reason})" if gate.reason else ""
        advice = f"; {gate.advice}" if gate.advice else ""
        lines.append(f"{gate.name}: {found}, {limit}{advice}")
    return lines
