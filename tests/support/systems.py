"""Atoms for the tests: where they are, as arrays or for ASE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import natural_cutoffs, neighbor_list

from mlff_distiller.ops.reference import neighbor_list_reference
from support.students import ELEMENTS

PERIODIC, OPEN = (True, True, True), (False, False, False)


@dataclass(frozen=True)
class System:
    """Atomic numbers (n,), positions (n, 3) and cell (3, 3) in Å, pbc (3,); unpacks in this order."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray | tuple[bool, bool, bool] = PERIODIC

    def __post_init__(self) -> None:
        object.__setattr__(self, "pbc", np.array(self.pbc, dtype=bool))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.numbers, self.positions, self.cell, np.asarray(self.pbc)))

    def __getitem__(self, index: int) -> np.ndarray:
        return tuple(self)[index]

    def strained(self, strain: np.ndarray) -> System:
        change = np.eye(3) + strain
        return replace(self, positions=self.positions @ change, cell=self.cell @ change)

    def to_atoms(self) -> Atoms:
        numbers, positions, cell, pbc = self
        return Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc)


def skewed_cell(size: float, skew: float = 0.15, seed: int = 0) -> np.ndarray:
    """A cube of ``size`` Å, each component of its vectors moved by up to ``skew`` times that."""
    return size * (np.eye(3) + skew * np.random.default_rng(seed).uniform(-1, 1, (3, 3)))


def random_system(
    n_atoms: int,
    cell: float | Sequence[float] | np.ndarray,
    pbc: Sequence[bool] = PERIODIC,
    *,
    elements: Sequence[int] = ELEMENTS,
    distance: float = 1.0,
    seed: int = 1,
    region: tuple[float, float] = (0.0, 1.0),
    outside: bool = False,
) -> System:
    """Atoms at random, all images of theirs at least ``distance`` (Å) apart.

    Args:
        n_atoms: of them.
        cell: (3, 3); or three lengths of a box, Å; or the size of a skewed one.
        pbc: directions in which images count.
        elements: drawn from.
        distance: Å.
        seed: of everything.
        region: fractional, of the positions along the first vector.
        outside: some atoms lie in neighbouring cells.

    Raises:
        RuntimeError: there is no room for so many.
    """
    rng = np.random.default_rng(seed)
    if np.ndim(cell) == 0:
        cell = skewed_cell(float(cell), seed=seed)  # type: ignore[arg-type]
    lattice = np.diag(cell) if np.ndim(cell) == 1 else np.array(cell, dtype=float)
    images = np.array(list(np.ndindex(*(3 if periodic else 1 for periodic in pbc))))
    shifts = (images - np.array(pbc, dtype=int)) @ lattice
    kept = np.zeros((n_atoms, 3))
    count, tried = 0, 0
    while count < n_atoms:
        tried += 1
        if tried > 100_000:
            raise RuntimeError(f"no room for {n_atoms} atoms {distance} Å apart")
        fraction = rng.random(3) * 0.98 + 0.01
        fraction[0] = region[0] + fraction[0] * (region[1] - region[0])
        others = kept[:count, None] + shifts - fraction @ lattice
        if count == 0 or (others**2).sum(-1).min() > distance**2:
            kept[count] = fraction @ lattice
            count += 1
    if outside:
        kept = kept + rng.integers(-1, 2, (n_atoms, 3)) * np.array(pbc) @ lattice
    return System(rng.choice(elements, n_atoms), kept, lattice, np.array(pbc))


def water_box(per_side: int = 3, seed: int = 0) -> System:
    """Water at about 1 g/cm³ in random orientations, 3 per_side³ atoms, O H H in turn."""
    rng = np.random.default_rng(seed)
    spacing, angle = 3.1043, np.deg2rad(104.52)
    positions = []
    for site in np.ndindex(per_side, per_side, per_side):
        frame, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        oxygen = (np.array(site) + 0.5) * spacing + rng.normal(0, 0.1, 3)
        positions += [
            oxygen,
            oxygen + 0.9572 * frame[0],
            oxygen + 0.9572 * (np.cos(angle) * frame[0] + np.sin(angle) * frame[1]),
        ]
    numbers = np.tile([8, 1, 1], per_side**3)
    return System(numbers, np.array(positions), np.eye(3) * spacing * per_side)


def water(per_side: int = 3) -> Atoms:
    """:func:`water_box` for ASE, the molecules no longer rigid."""
    atoms = water_box(per_side).to_atoms()
    atoms.rattle(0.03, seed=4)
    return atoms


def silicon(repeat: Sequence[int] = (2, 1, 1)) -> Atoms:
    """Rattled triclinic silicon, the cell in OpenMM's and LAMMPS' reduced form."""
    atoms = bulk("Si", cubic=True) * repeat
    cell = atoms.cell.array @ [[1, 0, 0], [0.08, 1, 0], [-0.1, 0.07, 1]]
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=2)
    return atoms


#: Of the elements H, C, O; every kind of boundary.
SYSTEMS = {
    "molecule": lambda: random_system(21, 6.0, OPEN, seed=1),
    "skewed": lambda: random_system(40, skewed_cell(8.0, 0.3, seed=2), seed=2, outside=True),
    "tiny": lambda: random_system(3, 3.1, distance=1.4, seed=3, outside=True),
    "slab": lambda: random_system(30, 7.0, (True, True, False), seed=4),
    "wire": lambda: random_system(12, 5.0, (False, True, False), seed=5, outside=True),
}


def bonds_of(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs of atoms within 1.25 times their covalent radii."""
    i, j = neighbor_list("ij", atoms, [1.25 * r for r in natural_cutoffs(atoms)])
    return [(int(a), int(b)) for a, b in zip(i, j, strict=True) if a < b]


def graph_of(numbers, positions, cell, pbc, cutoff):
    """CSR graph: species, offsets, senders, edge vectors and shifts."""
    edge_index, shifts = neighbor_list_reference(
        torch.tensor(positions), torch.tensor(cell), torch.as_tensor(pbc), cutoff
    )
    senders, receivers = edge_index.numpy()
    shifts = shifts.numpy()
    vectors = positions[senders] - positions[receivers] + shifts @ cell
    offsets = np.searchsorted(receivers, np.arange(len(numbers) + 1))
    species = np.array([ELEMENTS.index(z) for z in numbers], dtype=np.int32)
    return species, offsets.astype(np.int64), senders.astype(np.int32), vectors, shifts
