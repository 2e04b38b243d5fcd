"""Second derivatives of the energy of crystals by differences of forces and stresses.

Every function takes an ASE calculator and leaves the structure it is given as it was. Differences
are central, so a smooth potential gives a constant up to terms of the square of the amplitude.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

#: sqrt(eV/Å^2/amu) in THz
_ROOT_IN_THZ = units.s * 1e-12 / (2.0 * np.pi)


def force_constant(
    atoms: Atoms, calculator: Calculator, amplitude: float, index: int = 0, axis: int = 0
) -> float:
    """On-site force constant ``d²E/dx²`` of one atom, eV/Å^2.

    Args:
        atoms: the undisplaced structure.
        calculator: of the forces.
        amplitude: Å; the atom is displaced by plus and minus this.
        index: of the atom.
        axis: 0, 1, 2 for x, y, z.
    """
    step = np.zeros_like(atoms.positions)
    step[index, axis] = amplitude
    forces = [_displaced(atoms, calculator, sign * step).get_forces() for sign in (1, -1)]
    return float((forces[1] - forces[0])[index, axis] / (2.0 * amplitude))


def elastic_constants(
    atoms: Atoms, calculator: Calculator, strain: float, *, relax_to: float | None = None
) -> dict[str, float]:
    """C11, C12 and C44 of a cubic crystal whose axes are x, y, z, GPa.

    Args:
        atoms: the unstrained crystal.
        calculator: of the stress.
        strain: plus and minus this: ``e_xx`` for C11 and C12, the engineering strain ``2 e_yz`` for C44.
        relax_to: largest force in eV/Å to which ions are relaxed in the strained cell (BFGS, at most
            300 steps); None keeps them clamped at their fractional coordinates.
    """
    stretch, shear = np.zeros((3, 3)), np.zeros((3, 3))
    stretch[0, 0] = strain
    shear[1, 2] = shear[2, 1] = 0.5 * strain

    def slope(deformation: np.ndarray) -> np.ndarray:
        plus, minus = (_stress(atoms, calculator, s * deformation, relax_to) for s in (1, -1))
        return (plus - minus) / (2.0 * strain) * EV_PER_ANGSTROM3_IN_GPA

    stretched, sheared = slope(stretch), slope(shear)
    return {
        "C11": float(stretched[0]),
        "C12": float(0.5 * (stretched[1] + stretched[2])),
        "C44": float(sheared[3]),
    }


def optical_frequency(primitive: Atoms, calculator: Calculator, amplitude: float) -> float:
    """Optical frequency at Γ of a crystal with two equal atoms in its cell, THz.

    Args:
        primitive: two atoms; their sublattices move against each other along x.
        calculator: of the forces.
        amplitude: Å, of the second atom with the first at rest.

    Returns:
        Negative where the restoring force is: an imaginary frequency.
    """
    # Equal and opposite forces: the reduced mass is half an atom's.
    constant = force_constant(primitive, calculator, amplitude, index=1)
    reduced_mass = 0.5 * primitive.get_masses()[1]
    return float(np.sign(constant) * np.sqrt(abs(constant) / reduced_mass) * _ROOT_IN_THZ)


def relaxed_displacement(
    atoms: Atoms,
    calculator: Calculator,
    rattle: float,
    *,
    force: float,
    steps: int = 300,
    seed: int = 1,
) -> dict[str, float]:
    """Where a minimiser goes from a slightly disturbed crystal.

    Args:
        atoms: the perfect crystal.
        calculator: of energy and forces.
        rattle: standard deviation of the disturbance, Å.
        force: BFGS stops at this largest force, eV/Å.
        steps: and at this number of steps.
        seed: of the disturbance.

    Returns:
        ``displacement``, Å: the largest distance of an atom from its site, the mean taken off;
        ``energy``, meV/atom: below the perfect crystal; ``steps`` taken; ``force`` reached, eV/Å.
    """
    perfect = _displaced(atoms, calculator, np.zeros_like(atoms.positions))
    before = perfect.get_potential_energy()
    moved = _displaced(atoms, calculator, np.zeros_like(atoms.positions))
    moved.rattle(rattle, seed=seed)
    minimiser = BFGS(moved, logfile=None)
    minimiser.run(fmax=force, steps=steps)
    away = moved.positions - atoms.positions
    away -= away.mean(axis=0)
    return {
        "displacement": float(np.linalg.norm(away, axis=1).max()),
        "energy": float(before - moved.get_potential_energy()) / len(atoms) * 1e3,
        "steps": int(minimiser.nsteps),
        "force": float(np.linalg.norm(moved.get_forces(), axis=1).max()),
    }


def change(values: Sequence[float], reference: float) -> float:
    """Largest deviation of values from a reference, relative to it."""
    return float(np.abs(np.asarray(values) / reference - 1.0).max())


def _displaced(atoms: Atoms, calculator: Calculator, step: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions += step
    copy.calc = calculator
    return copy


def _stress(
    atoms: Atoms, calculator: Calculator, strain: np.ndarray, relax_to: float | None
) -> np.ndarray:
    copy = atoms.copy()
    copy.set_cell(copy.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    copy.calc = calculator
    if relax_to is not None:
        BFGS(copy, logfile=None).run(fmax=relax_to, steps=300)
    return copy.get_stress()
