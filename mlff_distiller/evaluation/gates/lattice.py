"""Lattice parameters and bulk modulus of a crystal: the relaxed cell and its equation of state."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.gate import Gate, absolute, relative
from mlff_distiller.evaluation.gates.relax import relax, with_calculator
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

KIND = "lattice"
_STRAIN = 0.02
_ADVICE = (
    "label strained cells around the equilibrium (sampling.max_strain) and give energy and stress "
    "more weight"
)


def relaxed_cell(calculator: Calculator, atoms: Atoms, pressure: float = 0.0) -> dict[str, Any]:
    """The crystal in its minimum, cell and ions.

    Args:
        calculator: teacher or student.
        atoms: the smallest cell.
        pressure: GPa.

    Returns:
        ``cell`` (3, 3) and ``positions`` (n, 3), Å; ``energy``, eV.
    """
    found = relax(calculator, atoms, cell=True, pressure=pressure, fmax=0.003)
    return {
        "cell": found.cell.array.tolist(),
        "positions": found.positions.tolist(),
        "energy": float(found.get_potential_energy()),
    }


def equation_of_state(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Energies of seven volumes and the bulk modulus.

    The Birch-Murnaghan energy (Birch 1947, Phys. Rev. 71, 809) is a cubic polynomial of V^(-2/3),
    so that the fit is linear. Cells change by up to 2 % in all lengths, ions relax in them.

    Args:
        calculator: teacher or student.
        atoms: the relaxed crystal.

    Returns:
        ``volumes``, Å^3, and ``energies``, eV, both per atom; ``bulk_modulus``, GPa, at the minimum
        of the fit.
    """
    n = len(atoms)
    volumes, energies = [], []
    for strain in np.linspace(-_STRAIN, _STRAIN, 7):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * (1.0 + strain), scale_atoms=True)
        if n > 1:
            scaled = relax(calculator, scaled, fmax=0.005)
        else:
            scaled = with_calculator(scaled, calculator)
        volumes.append(scaled.get_volume() / n)
        energies.append(float(scaled.get_potential_energy()) / n)
    return {
        "volumes": volumes,
        "energies": energies,
        "bulk_modulus": bulk_modulus(np.array(volumes), np.array(energies)),
    }


def bulk_modulus(volumes: np.ndarray, energies: np.ndarray) -> float:
    """GPa, of the third-order Birch-Murnaghan equation through the points.

    Args:
        volumes: (k,), Å^3.
        energies: (k,), eV, of the same number of atoms.

    Raises:
        InputError: the fit has no minimum near the points.
    """
    middle = volumes.mean()
    x = (volumes / middle) ** (-2.0 / 3.0)
    fit = np.polynomial.Polynomial.fit(x, energies, 3).convert()
    slope, bend = fit.deriv(), fit.deriv(2)
    roots = [float(r.real) for r in slope.roots() if abs(r.imag) < 1e-9 and bend(r.real) > 0]
    root: float = min(roots, key=lambda r: abs(r - 1.0), default=float("inf"))
    if not x.min() - 0.05 < root < x.max() + 0.05:
        raise InputError("the equation of state has no minimum near the relaxed cell")
    # d/dV = -(2/3) x^(5/2) / V0 d/dx; the first derivative is zero here, so V d2E/dV2 is left.
    volume = middle * root**-1.5
    return float(
        volume * bend(root) * (2.0 / 3.0 * root**2.5 / middle) ** 2 * EV_PER_ANGSTROM3_IN_GPA
    )


def gates(
    student: dict[str, Any],
    teacher: dict[str, Any],
    usual: np.ndarray,
    limits: AcceptanceConfig,
    where: str = "",
) -> list[Gate]:
    """Lengths of the cell that differ from each other, and its largest change of angle.

    Args:
        student: of :func:`relaxed_cell`.
        teacher: the same.
        usual: (3, 3), from the smallest cell to the one that is shown.
        limits: of the user.
        where: appended to the names, `` at 10 GPa``.
    """
    shapes = [Atoms(cell=usual @ np.array(side["cell"])).cell for side in (student, teacher)]
    lengths = [shape.lengths() for shape in shapes]
    rows: list[Gate] = []
    seen: list[tuple[float, float]] = []
    for axis, own, other in zip("abc", *lengths, strict=True):
        if any(abs(own / s - 1) < 5e-4 and abs(other / t - 1) < 5e-4 for s, t in seen):
            continue
        seen.append((own, other))
        name = f"lattice parameter {axis}{where}"
        rows.append(relative(name, KIND, own, other, limits.lattice, "Å", advice=_ADVICE))
    angles = [shape.angles() for shape in shapes]
    # Of equal ones the most oblique.
    apart, oblique = np.abs(angles[0] - angles[1]), np.abs(angles[1] - 90.0)
    worst = int(np.argmax(apart.round(3) + 1e-5 * oblique))
    if oblique.max() > 0.1 or apart.max() > 0.1:
        # A strain e changes an angle by at most 2 e.
        limit = float(np.degrees(2.0 * limits.lattice / 100.0))
        name = f"cell angle {'αβγ'[worst]}{where}"
        own, other = float(angles[0][worst]), float(angles[1][worst])
        rows.append(absolute(name, KIND, own, other, limit, "°", advice=_ADVICE))
    return rows


def state_gates(
    student: dict[str, Any], teacher: dict[str, Any], limits: AcceptanceConfig
) -> list[Gate]:
    """The bulk modulus; arguments as :func:`equation_of_state` returns them."""
    return [
        relative(
            "bulk modulus",
            KIND,
            student["bulk_modulus"],
            teacher["bulk_modulus"],
            limits.bulk_modulus,
            "GPa",
            advice=_ADVICE,
            details={"figure": "equation_of_state", "student": student, "teacher": teacher},
        )
    ]
