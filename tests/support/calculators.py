"""Calculators that tests watch."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
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


class Sites(Calculator):
    """Atoms bound to sites, each coordinate by k/2 u² + q/4 u⁴, and to the next atom by c/2 d².

    Args:
        sites: (n, 3), Å.
        k: eV/Å².
        q: eV/Å⁴.
        c: eV/Å².
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, sites: np.ndarray, k: float, q: float = 0.0, c: float = 0.0) -> None:
        super().__init__()
        self.sites, self.k, self.q, self.c = np.array(sites), k, q, c
        self.calls, self.fail_at = 0, None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise RuntimeError("the self-consistent field does not converge")
        super().calculate(atoms, properties, system_changes)
        u = atoms.positions - self.sites
        d = np.diff(u, axis=0)
        forces = -self.k * u - self.q * u**3
        forces[:-1] += self.c * d
        forces[1:] -= self.c * d
        energy = 0.5 * self.k * (u**2).sum() + 0.25 * self.q * (u**4).sum()
        energy += 0.5 * self.c * (d**2).sum()
        self.results = {"energy": float(energy), "forces": forces}


class Bulk(Calculator):
    """A gas whose energy is K/2 (V - V0)², K in eV/Å⁶: its volumes are known."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, volume: float, k: float) -> None:
        super().__init__()
        self.volume, self.k = volume, k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        excess = atoms.get_volume() - self.volume
        self.results = {
            "energy": 0.5 * self.k * excess**2,
            "forces": np.zeros((len(atoms), 3)),
            "stress": self.k * excess * np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]),
        }
