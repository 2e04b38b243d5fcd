"""What can move: degrees of freedom, starting velocities, kinetic energy and temperature.

All engines and ensembles share one convention. Thermostats keep the centre of mass at rest in the
directions in which no atom is held, so that three degrees of freedom fewer than coordinates share
the heat; what they count is what they heat. A single atom has its three. The centre of mass that
moves by given momenta in NVE counts as kinetic energy but not as heat.
"""

from __future__ import annotations

import numpy as np
from ase import units

from mlff_distiller.data import Structure


def still_directions(structure: Structure) -> np.ndarray:
    """(3,) bool: where thermostats keep the centre of mass at rest."""
    if len(structure) == 1:
        return np.zeros(3, dtype=bool)
    if structure.fixed is None:
        return np.ones(3, dtype=bool)
    return np.array([not column.any() for column in structure.fixed.T])


def degrees_of_freedom(structure: Structure) -> int:
    """Coordinates that are not held, less the directions in which the centre of mass rests."""
    held = 0 if structure.fixed is None else int(structure.fixed.sum())
    return 3 * len(structure) - held - int(still_directions(structure).sum())


def masses_of(structure: Structure) -> np.ndarray:
    """(n, 1), amu."""
    masses: np.ndarray = structure.to_atoms(labels=False).get_masses()[:, None]
    return masses


def initial_velocities(structure: Structure, temperature: float, seed: int) -> np.ndarray:
    """Maxwell-Boltzmann velocities without drift of the centre of mass, (n, 3) in Å/fs.

    The same for every engine, so that their runs can be compared. Held coordinates rest.
    """
    masses = masses_of(structure)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((len(structure), 3))
    momenta = noise * np.sqrt(masses * units.kB * temperature)
    if structure.fixed is not None:
        momenta[structure.fixed] = 0.0
    still = still_directions(structure)
    momenta -= momenta.sum(axis=0) * still * masses / masses.sum()
    if len(structure) > 1:
        kinetic = float((momenta**2 / (2 * masses)).sum())
        wanted = 0.5 * degrees_of_freedom(structure) * units.kB * temperature
        momenta *= np.sqrt(wanted / kinetic) if kinetic > 0 else 1.0
    velocities: np.ndarray = momenta / masses * units.fs
    return velocities


def drift_of(velocities: np.ndarray, structure: Structure) -> np.ndarray:
    """(3,), of the centre of mass in the directions in which thermostats keep it at rest."""
    masses = masses_of(structure)
    mean: np.ndarray = (masses * velocities).sum(axis=0) / masses.sum()
    return mean * still_directions(structure)


def kinetic_energy(momenta: np.ndarray, masses: np.ndarray) -> float:
    """eV, of momenta (n, 3) in ASE's unit."""
    return float((momenta**2 / (2 * masses)).sum())


def temperature_of(momenta: np.ndarray, structure: Structure) -> float:
    """K; 0 where nothing can move.

    Args:
        momenta: (n, 3), ASE's unit.
        structure: says what is held.
    """
    masses = masses_of(structure)
    drift = momenta.sum(axis=0) * still_directions(structure)
    heat = kinetic_energy(momenta, masses) - float((drift**2).sum() / (2 * masses.sum()))
    degrees = degrees_of_freedom(structure)
    return 2 * heat / (degrees * units.kB) if degrees > 0 else 0.0
