"""What every kind of sampling is given, and how its frames are made and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.data.structure import Structure
from mlff_distiller.sampling.geometry import closest_ratio, unlabelled
from mlff_distiller.sampling.partial import PartialFrames
from mlff_distiller.sampling.rattle import CLOSE_CONTACT

ATTEMPTS = 20
FAILED = "the calculator failed"


@dataclass(frozen=True)
class Task:
    """The starting structures, the teacher and the limits of frames."""

    base: Sequence[Structure]
    seed: int = 0
    min_distance: float = 0.6
    """Of a pair, as a fraction of the sum of its covalent radii."""
    max_force: float = 30.0
    """eV/Å."""
    box: float = 20.0
    """Edge of an empty cell for teachers that need one, Å."""
    calculator: Calculator | None = None
    periodic_only: bool = False
    """The teacher needs three periodic directions."""
    elements: Collection[int] | None = None
    """Those that the teacher knows; None: unknown."""
    rejected: Counter[str] = field(default_factory=Counter)
    partial: PartialFrames | None = None
    step: Callable[[], None] = lambda: None
    """Called for each frame that took calls of the teacher."""

    def rng(self, seed: int | None, *numbers: int) -> np.random.Generator:
        """Randomness of one frame: that of the method's seed and of ``numbers`` alone."""
        return np.random.default_rng([self.seed if seed is None else seed, *numbers])

    def frame(
        self, structure: Structure, source: str, parent: int | None, member: Any, **info: Any
    ) -> Structure:
        """A frame with its origin: ``parent`` is an index in ``base``, ``member`` its relatives."""
        above = {} if parent is None else self.base[parent].info
        origin = {} if parent is None else {"parent": parent}
        own = {k: v for k, v in structure.info.items() if k not in above}
        info = {**above, **own, "source": source, **origin, "member": member, **info}
        return unlabelled(structure, info=info)

    def accept(self, structure: Structure) -> bool:
        """Whether no atoms are too close; if some are, that is counted."""
        if closest_ratio(structure) >= self.min_distance:
            return True
        self.rejected[CLOSE_CONTACT] += 1
        return False

    def boxed(self, structure: Structure, gap: float = 10.0) -> Structure:
        """An open structure for a teacher that needs a cell: alone in a large cubic one.

        Args:
            structure: returned as it is where the teacher does without.
            gap: to the images at least, Å, where ``box`` is too small for it.
        """
        if not self.periodic_only or structure.pbc.any():
            return structure
        extent = float(np.ptp(structure.positions, axis=0).max())
        edge = max(self.box, extent + gap)
        middle = 0.5 * (structure.positions.min(axis=0) + structure.positions.max(axis=0))
        positions = structure.positions - middle + 0.5 * edge
        cell = np.eye(3) * edge
        return replace(structure, positions=positions, cell=cell, pbc=np.ones(3, dtype=bool))

    def attach(self, atoms: Atoms) -> None:
        """Give ``atoms`` the calculator, without memory of what it was used for before."""
        if self.calculator is None:
            raise TypeError("this task has no calculator")
        self.calculator.reset()
        atoms.calc = self.calculator

    def compute(
        self, structure: Structure, rejected: Counter[str]
    ) -> tuple[float, np.ndarray] | None:
        """Energy (eV) and forces (n, 3) (eV/Å, those on held atoms too) of the teacher.

        None where it fails or answers NaN: that is counted in ``rejected``.
        """
        atoms = structure.to_atoms(labels=False)
        self.attach(atoms)
        try:
            energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
        except Exception as error:  # calculators raise whatever they like on wild geometries
            rejected[f"{FAILED} ({first_line(error)})"] += 1
            return None
        if not (np.isfinite(energy) and np.all(np.isfinite(forces))):
            rejected[f"{FAILED} (NaN)"] += 1
            return None
        return energy, np.array(forces, dtype=np.float64)

    def kept(
        self, key: str, number: int, make: Callable[[Counter[str]], Iterator[Structure]]
    ) -> list[Structure]:
        """Frames that take calls of the teacher, as one piece that is on disk when it is finished.

        Args:
            key: of the piece; the same key and inputs make the same frames.
            number: its place among the pieces of ``key``.
            make: makes the frames; counts rejected ones in what it is given.
        """
        found = self.partial.get(key, number) if self.partial is not None else None
        rejected = Counter(found.rejected if found else {})
        frames = []
        for frame in found.frames if found else make(rejected):
            frames.append(frame)
            self.step()
        if self.partial is not None and found is None:
            self.partial.put(key, number, frames, rejected)
        self.rejected.update(rejected)
        return frames


def first_line(error: BaseException) -> str:
    """What an error of a calculator says, in at most 80 letters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:80]
