"""What a distilled student should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One number of metrics.json and its goal."""

    key: str
    label: str
    unit: str
    limit: float
    at_least: bool = False
    """Large values are good, and the goal is shown even where nothing was measured."""

    def passed(self, value: float | None) -> bool | None:
        """Whether ``value`` reaches the goal; None where it was not measured."""
        if value is None:
            return None
        return bool(value >= self.limit if self.at_least else abs(value) <= self.limit)

    def reached(self, value: float | None) -> str:
        """The value with its unit."""
        return f"{number(value)} {self.unit}"

    @property
    def goal(self) -> str:
        """The limit with its direction, without the unit."""
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}"


TARGETS = (
    Target("force_mae_mev_per_ang", "Force error (MAE)", "meV/Å", 50.0),
    Target("energy_mae_mev_per_atom", "Energy error (MAE)", "meV/atom", 5.0),
    Target("stress_mae_gpa", "Stress error (MAE)", "GPa", 0.1),
    Target("engines_max_energy_diff_ev_per_atom", "Engines agree on energy", "eV/atom", 1e-6),
    Target("engines_max_force_diff_ev_per_ang", "Engines agree on forces", "eV/Å", 1e-4),
    Target("nve_drift_mev_per_atom_per_ps", "Energy drift in NVE", "meV/atom/ps", 1.0),
    Target("speedup_vs_teacher_lammps", "Faster than the teacher (LAMMPS)", "×", 5.0, True),
)


def measured(metrics: dict[str, Any]) -> list[tuple[Target, float | None]]:
    """Every target with its value in ``metrics``; None where it was not measured."""
    return [(target, metrics.get(target.key)) for target in TARGETS]


def number(value: float | None, digits: int = 3) -> str:
    """A number as people write it; an en dash for what was not measured."""
    if value is None:
        return "–"
    if value != value:
        return "not a number"
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.replace('-', '−')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("-", "−")
