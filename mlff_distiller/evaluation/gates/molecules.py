"""Molecules: harmonic frequencies, torsion profiles and the curves of bonds that break."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.cache import Side
from mlff_distiller.evaluation.gates.choose import Case
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.gate import Gate
from mlff_distiller.evaluation.gates.relax import relax, with_calculator
from mlff_distiller.files import jsonable
from mlff_distiller.sampling.molecules import Bond, bonds_of, stretch_bond, turn_bond

#: sqrt(eV/Å^2/amu) in 1/cm
_ROOT_IN_WAVENUMBERS = units._hbar * np.sqrt(units._e / units._amu) * 1e10 / units._e / units.invcm
_STEP = 0.01  # Å
#: Conformers and bonds are compared up to this energy above the minimum, eV.
_REACHED = 1.0
_MOST_BONDS = 4


def relaxed_molecule(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """``positions``, Å, of the nearest minimum."""
    found = relax(calculator, atoms, fmax=0.005, steps=300)
    return {"positions": found.positions.tolist()}


def harmonic_frequencies(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Vibrations by central differences of the forces, ±0.01 Å; translation and rotation removed.

    Args:
        calculator: teacher or student.
        atoms: n of them, relaxed by the same calculator.

    Returns:
        ``frequencies``: (3 n - 6,) or, of linear molecules, (3 n - 5,), cm⁻¹, ascending, imaginary
        ones negative.
    """
    n = len(atoms)
    hessian = np.empty((n, 3, 3 * n))
    for i in range(n):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = with_calculator(atoms, calculator)
                moved.positions[i, axis] += sign * _STEP
                forces.append(moved.get_forces().ravel())
            hessian[i, axis] = (forces[1] - forces[0]) / (2.0 * _STEP)
    square = hessian.reshape(3 * n, 3 * n)
    roots = np.repeat(np.sqrt(atoms.get_masses()), 3)
    square = 0.5 * (square + square.T) / np.outer(roots, roots)
    inner = _vibrations(atoms)
    values = np.linalg.eigvalsh(inner.T @ square @ inner)
    found = np.sign(values) * np.sqrt(np.abs(values)) * _ROOT_IN_WAVENUMBERS
    return {"frequencies": np.round(found, 3).tolist()}


def curves(calculator: Calculator, frames: list[Atoms]) -> dict[str, Any]:
    """``energies``, eV, of frames; None where the calculator gives up, as it may on broken bonds."""
    energies: list[float | None] = []
    for frame in frames:
        try:
            energies.append(float(with_calculator(frame, calculator).get_potential_energy()))
        except Exception:  # calculators raise whatever they like
            energies.append(None)
    return {"energies": energies}


def frequencies(context: Context, case: Case) -> list[Gate]:
    """Each side in its own minimum."""
    student, teacher = context.both(harmonic_frequencies, lambda side: _relaxed(side, case))
    own, other = (np.array(side["frequencies"]) for side in (student, teacher))
    return [
        Gate(
            "harmonic frequencies",
            "frequencies",
            float(np.abs(own - other).mean()),
            context.limits.frequencies,
            "cm⁻¹",
            advice="label molecules that are moved along their normal modes, and give forces weight",
            details={"figure": "frequencies", "student": student, "teacher": teacher},
        )
    ]


def torsion(context: Context, case: Case) -> list[Gate]:
    """Fragments turned about bonds, rigid, from the teacher's minimum; conformers up to 1 eV."""
    molecule = Structure.from_atoms(_relaxed(context.teacher, case))
    angles = np.arange(0, 360, 15)
    turning = [bond for bond in bonds_of(molecule) if bond.turns]
    bonds = sorted(turning, key=lambda bond: -len(bond.side))[:_MOST_BONDS]
    worst: Gate | None = None
    for bond in bonds:
        frames = [turn_bond(molecule, bond, float(angle)).to_atoms() for angle in angles]
        own, other = _energies(context, frames)
        # Both above what the teacher takes for the minimum.
        lowest = int(np.nanargmin(other))
        own, other = own - own[lowest], other - other[lowest]
        gate = Gate(
            "torsion profile",
            "torsion",
            _mean_error(own, other, other < _REACHED),
            context.limits.torsion,
            "eV",
            reason=f"about {_name(molecule, bond)}",
            advice="label conformers: turn the molecule about its bonds",
            details={
                "figure": "torsion",
                "name": _name(molecule, bond),
                "x": angles.tolist(),
                "student": jsonable(own),
                "teacher": jsonable(other),
            },
        )
        worst = _worse(worst, gate)
    return [worst] if worst else []


def dissociation(context: Context, case: Case) -> list[Gate]:
    """Bonds outside of rings pulled apart, fragments rigid, from the teacher's minimum."""
    molecule = Structure.from_atoms(_relaxed(context.teacher, case))
    worst: Gate | None = None
    for bond in _kinds_of_bonds(molecule):
        ends = molecule.positions[[bond.first, bond.second]]
        length = float(np.linalg.norm(ends[1] - ends[0]))
        stretch = np.linspace(-0.2 * length, 0.0, 4)
        stretch = np.concatenate([stretch, np.linspace(0.0, context.limits.dissociation_reach, 14)])
        frames = [stretch_bond(molecule, bond, length + float(d)).to_atoms() for d in stretch]
        own, other = (energies - energies[3] for energies in _energies(context, frames))
        depth = float(other[np.isfinite(other)][-1])
        gate = Gate(
            "dissociation curve",
            "dissociation",
            100.0 * _mean_error(own, other, other <= max(depth, _REACHED)) / max(depth, _REACHED),
            context.limits.dissociation,
            "%",
            float(own[-1]),
            depth,
            "eV",
            reason=f"of {_name(molecule, bond)}, energies at +{stretch[-1]:g} Å",
            advice="label molecules whose bonds are stretched to breaking",
            details={
                "figure": "dissociation",
                "name": _name(molecule, bond),
                "x": (length + stretch).tolist(),
                "student": jsonable(own),
                "teacher": jsonable(other),
            },
        )
        worst = _worse(worst, gate)
    return [worst] if worst else []


def _relaxed(side: Side, case: Case) -> Atoms:
    assert case.structure is not None
    atoms = case.structure.to_atoms(labels=False)
    atoms.positions = side.measure(relaxed_molecule, atoms)["positions"]
    return atoms


def _energies(context: Context, frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """(k,) of the student and (k,) of the teacher, eV; NaN where there is none."""
    student, teacher = context.both(curves, frames)
    own, other = (np.array(side["energies"], dtype=float) for side in (student, teacher))
    if np.isfinite(other).sum() < len(frames) / 2:
        raise InputError("teacher: it has no energy for most points of a curve")
    return own, other


def _mean_error(own: np.ndarray, other: np.ndarray, reached: np.ndarray) -> float:
    """Over the points that count; NaN, which fails, where the student alone has no energy."""
    return float(np.abs(own - other)[reached & np.isfinite(other)].mean())


def _kinds_of_bonds(molecule: Structure) -> list[Bond]:
    """One of each kind outside of rings: same elements with as many neighbours."""
    bonds = bonds_of(molecule)
    neighbours = np.bincount(np.array([b[:2] for b in bonds]).ravel(), minlength=len(molecule))
    kinds = list(zip(molecule.atomic_numbers.tolist(), neighbours.tolist(), strict=True))
    found: dict[tuple[tuple[int, int], ...], Bond] = {}
    for bond in bonds:
        if len(bond.side):
            found.setdefault(tuple(sorted((kinds[bond.first], kinds[bond.second]))), bond)
    return list(found.values())


def _worse(one: Gate | None, other: Gate) -> Gate:
    if one is None or one.deviation is None or other.deviation is None:
        return other
    return one if one.deviation >= other.deviation or one.deviation != one.deviation else other


def _name(molecule: Structure, bond: Bond) -> str:
    ends = sorted((bond.first, bond.second))
    return "–".join(f"{chemical_symbols[molecule.atomic_numbers[k]]}{k}" for k in ends)


def _vibrations(atoms: Atoms) -> np.ndarray:
    """(3 n, k) orthonormal mass-weighted displacements without translation and rotation."""
    roots = np.sqrt(atoms.get_masses())[:, None]
    centred = atoms.positions - atoms.get_center_of_mass()
    rigid = [(roots * axis).ravel() for axis in np.eye(3)]
    rigid += [(roots * np.cross(axis, centred)).ravel() for axis in np.eye(3)]
    left, sizes, _ = np.linalg.svd(np.array(rigid).T, full_matrices=True)
    rank = int((sizes > 1e-3 * sizes.max()).sum())  # one rotation of a linear molecule is nothing
    return left[:, rank:]
