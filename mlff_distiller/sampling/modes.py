"""Normal modes of the teacher, displaced by thermal amplitudes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import units
from ase.data import atomic_masses

from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import closest_ratio, roomy_cell, smallest_repeat, unlabelled
from mlff_distiller.sampling.rattle import CLOSE_CONTACT
from mlff_distiller.sampling.task import ATTEMPTS, Task
from mlff_distiller.settings import Settings, seed_setting, setting

_STREAM = 9
# Softer modes (and those whose curvature is negative) get the amplitude of this one: a straight
# line is no path along which atoms go far. It is 60 1/cm, in eV/(Å^2 amu).
_SOFTEST = (60.0 * units.invcm / (units._hbar * units.J * units.second)) ** 2


@dataclass(frozen=True)
class ModesConfig(Settings, path="sampling.modes"):
    """Thermal displacements along the normal modes of molecules and small cells."""

    number: int = setting(0, "Frames, shared out over the starting structures.", least=0)
    temperatures: list[float] = setting(
        [300.0, 900.0], "Frames take them in turn.", unit="K", above=0
    )
    max_atoms: int = setting(
        32,
        "Larger crystals are made of fewer cells, other structures left out: a Hessian takes 6 calls "
        "for each atom.",
        least=2,
    )
    step: float = setting(0.01, "Of the finite differences of forces.", unit="Å", above=0, most=0.2)
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number and not self.temperatures:
            raise InputError(
                "temperatures must hold at least one value, got []; set sampling.modes.temperatures,"
                " in K"
            )


def mode_frames(task: Task, config: ModesConfig) -> list[Structure]:
    """``config.number`` frames; ``info`` holds ``temperature``. The start should be relaxed.

    Raises:
        InputError: every starting structure is too large.
    """
    if not config.number:
        return []
    small = {i: _small(s, config.max_atoms) for i, s in enumerate(task.base)}
    parents = [i for i, s in small.items() if len(s) <= config.max_atoms]
    if not parents:
        raise InputError(
            f"sampling.modes takes structures of at most {config.max_atoms} atoms, got none; set "
            "sampling.modes.max_atoms or sampling.modes.number to 0"
        )
    frames = []
    for n, parent in enumerate(parents):
        members = range(n, config.number, len(parents))

        def make(
            rejected: Counter[str], parent: int = parent, members: range = members
        ) -> Iterator[Structure]:
            return _displaced(task, config, small[parent], parent, members, rejected)

        frames += task.kept("modes", parent, make) if len(members) else []
    return frames


def hessian(
    structure: Structure,
    forces: Callable[[Structure], np.ndarray | None],
    *,
    step: float = 0.01,
) -> np.ndarray | None:
    """Second derivatives of the energy by central differences of forces.

    Args:
        structure: any; rows and columns of held coordinates are zero.
        forces: (n, 3) eV/Å of a structure, or None where that fails.
        step: Å.

    Returns:
        (3 n, 3 n), eV/Å^2, symmetric; None if ``forces`` fails once.
    """
    n = len(structure)
    free = np.ones((n, 3), dtype=bool) if structure.fixed is None else ~structure.fixed
    result = np.zeros((3 * n, 3 * n))
    for row in np.flatnonzero(free):
        ends = []
        for sign in (1.0, -1.0):
            positions = structure.positions.copy()
            positions.flat[row] += sign * step
            found = forces(unlabelled(structure, positions=positions))
            if found is None:
                return None
            ends.append(found)
        result[row] = ((ends[1] - ends[0]) / (2.0 * step)).ravel()
    result *= free.ravel()
    return 0.5 * (result + result.T)


def normal_modes(structure: Structure, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vibrations: eigenvectors of the mass-weighted Hessian without translations and rotations.

    Args:
        structure: with atomic numbers of the masses; cells have no rotations, held atoms neither.
        matrix: (3 n, 3 n), eV/Å^2, see :func:`hessian`.

    Returns:
        squared frequencies (m,) in ASE's units (eV/(Å^2 amu)), ascending, negative where the
        structure is no minimum, and (m, 3 n) mass-weighted orthonormal modes.
    """
    n = len(structure)
    root = np.sqrt(np.repeat(atomic_masses[structure.atomic_numbers], 3))
    free = np.ones(3 * n, dtype=bool) if structure.fixed is None else ~structure.fixed.ravel()
    rigid = []
    if structure.fixed is None:
        rigid += [np.tile(axis, n) * root for axis in np.eye(3)]
        if not structure.pbc.any():
            arms = structure.positions - structure.positions.mean(axis=0)
            rigid += [np.cross(axis, arms).ravel() * root for axis in np.eye(3)]
    # Rotations of linear molecules are two: the third vector is zero.
    basis = np.zeros((3 * n, 0))
    if rigid:
        left, sizes, _ = np.linalg.svd(np.array(rigid).T, full_matrices=False)
        basis = left[:, sizes > 1e-6 * sizes[0]]
    rest = np.eye(3 * n)[:, free]
    rest = rest - basis @ (basis.T @ rest)
    left, sizes, _ = np.linalg.svd(rest, full_matrices=False)
    rest = left[:, sizes > 0.5]
    values, vectors = np.linalg.eigh(rest.T @ (matrix / np.outer(root, root)) @ rest)
    return values, (rest @ vectors).T


def _small(structure: Structure, max_atoms: int) -> Structure:
    """A crystal that is too large as a smaller supercell of the cell that it repeats."""
    if len(structure) <= max_atoms or not structure.pbc.all():
        return structure
    return roomy_cell(smallest_repeat(structure)[0], max_atoms)


def _displaced(
    task: Task,
    config: ModesConfig,
    base: Structure,
    parent: int,
    members: range,
    rejected: Counter[str],
) -> Iterator[Structure]:
    def forces(structure: Structure) -> np.ndarray | None:
        found = task.compute(structure, rejected)
        return None if found is None else found[1]

    matrix = hessian(base, forces, step=config.step)
    if matrix is None:
        return
    squares, modes = normal_modes(base, matrix)
    root = np.sqrt(np.repeat(atomic_masses[base.atomic_numbers], 3))
    for j, k in enumerate(members):
        temperature = config.temperatures[j % len(config.temperatures)]
        # Equipartition: a mass-weighted coordinate has the variance kT / omega^2.
        widths = np.sqrt(units.kB * temperature / np.maximum(np.abs(squares), _SOFTEST))
        rng = task.rng(config.seed, _STREAM, k)
        for _ in range(ATTEMPTS):
            away = (rng.normal(size=len(squares)) * widths) @ modes / root
            frame = unlabelled(base, positions=base.positions + away.reshape(-1, 3))
            if closest_ratio(frame) >= task.min_distance:
                yield task.frame(frame, "modes", parent, k, temperature=float(temperature))
                break
            rejected[CLOSE_CONTACT] += 1
