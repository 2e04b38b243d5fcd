"""Heavier hydrogens: longer steps for the same averages over configurations.

The fastest vibrations are those of hydrogen. Mass moved to it from the atom that it is bonded to
slows them down, and the total mass stays (Feenstra, Hess and Berendsen 1999,
doi:10.1002/(SICI)1096-987X(199906)20:8<786::AID-JCC5>3.0.CO;2-B). Averages over positions do not
depend on masses; spectra and diffusion do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols

from mlff_distiller.data import Structure
from mlff_distiller.data.bonds import find_bonds
from mlff_distiller.dynamics.freedom import drift_of, masses_of
from mlff_distiller.errors import InputError


def with_heavy_hydrogens(structure: Structure, mass: float) -> Structure:
    """``structure`` with ``masses``; momenta keep the kinetic energy of each atom.

    Args:
        structure: bonds are found by covalent radii; a hydrogen takes from its nearest bonded atom
            that is none. Hydrogens without one stay as they are.
        mass: of each hydrogen, amu.

    Raises:
        InputError: no hydrogen, one that is heavier already, or an atom that would be lighter than
            its hydrogens.
    """
    masses = masses_of(structure)[:, 0]
    hydrogen = structure.atomic_numbers == 1
    if not hydrogen.any():
        raise InputError(
            f"--hydrogen-mass is for structures with hydrogen, got {structure.formula}; leave it out"
        )
    lightest = float(masses[hydrogen].max())
    if mass < lightest:
        raise InputError(
            f"--hydrogen-mass must be at least {lightest:g} amu, got {mass:g}; use e.g. 3"
        )
    bonds = find_bonds(structure)
    new = masses.copy()
    for h in np.flatnonzero(hydrogen):
        mine = np.flatnonzero((bonds.first == h) & ~hydrogen[bonds.second])
        if len(mine):
            owner = int(bonds.second[mine[np.argmin(bonds.lengths[mine])]])
            new[owner] -= mass - new[h]
            new[h] = mass
    if (new < np.minimum(masses, mass)).any():
        atom = int(np.argmin(new))
        raise InputError(
            f"--hydrogen-mass {mass:g} leaves {new[atom]:.3g} amu to atom {atom} "
            f"({chemical_symbols[structure.atomic_numbers[atom]]}), less than a hydrogen has; use "
            "a smaller one, e.g. 3"
        )
    momenta = structure.momenta
    heavier = replace(structure, masses=new, momenta=None)
    if momenta is None:
        return heavier
    before = drift_of(momenta / masses[:, None], structure)
    momenta = momenta * np.sqrt(new / masses)[:, None]
    change = drift_of(momenta / new[:, None], heavier) - before
    return replace(heavier, momenta=momenta - new[:, None] * change)


def same_hydrogens(structure: Structure, mass: float | None) -> None:
    """Raise InputError where the state of a run has other masses than are asked for."""
    found = None
    hydrogen = structure.atomic_numbers == 1
    if structure.masses is not None and hydrogen.any():
        found = float(structure.masses[hydrogen].max())
    if (found is None) == (mass is None) and (found is None or abs(found - (mass or 0)) < 1e-6):
        return
    was = "no --hydrogen-mass" if found is None else f"--hydrogen-mass {found:g}"
    got = "none" if mass is None else f"{mass:g}"
    raise InputError(f"the run to go on with had {was}, got {got}; name the same")
