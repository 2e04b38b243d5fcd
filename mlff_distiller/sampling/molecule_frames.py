"""Frames of the molecules among the starting structures: torsions, bonds, collisions, water."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.data.structure import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.builtin import water_box
from mlff_distiller.sampling.geometry import unlabelled
from mlff_distiller.sampling.molecules import (
    Bond,
    bonds_of,
    bring_together,
    clashes,
    stretch_bond,
    turn_bond,
)
from mlff_distiller.sampling.rattle import CLOSE_CONTACT, rattled
from mlff_distiller.sampling.task import ATTEMPTS, Task
from mlff_distiller.settings import Settings, seed_setting, setting

_Made = tuple[Structure | None, dict[str, Any]]
_STREAM = 8
KINDS = ("torsion", "conformer", "bond", "collision", "solvation")
_GRID = 30.0  # degrees of combined torsions
_IN_RING = (0.85, 1.25)  # lengths of bonds that cannot break alone, relative to the start
_IN_THE_WAY = 0.9  # the same where a bond is pressed or drawn past other atoms
_NOT_BONDED = 1.3  # of the sum of covalent radii: atoms without a bond are farther apart


@dataclass(frozen=True)
class MoleculesConfig(Settings, path="sampling.molecules"):
    """Torsions, conformers, bonds, collisions and a few waters of the molecules that are given."""

    number: int = setting(0, "Frames; the kinds take turns.", least=0)
    kinds: list[str] = setting(
        list(KINDS),
        "`torsion` turns one or two bonds, `conformer` all at random; `bond` from short to broken; "
        "`collision` of two; `solvation` by a few waters.",
        choices=KINDS,
    )
    shortest: float = setting(
        0.65, "Shortest bond, relative to the one that is given.", above=0, most=1
    )
    longest: float = setting(
        4.0, "How far a bond is drawn out beyond its length.", unit="Å", above=0
    )
    contact: list[float] = setting(
        [0.8, 2.2],
        "Nearest and farthest contact of a collision, in sums of covalent radii.",
        above=0,
        length=2,
    )
    max_waters: int = setting(4, "Waters around a molecule at most.", least=1, most=50)
    rattle_stdev: float = setting(
        0.03, "Standard deviation of a displacement on top.", unit="Å", least=0
    )
    seed: int | None = seed_setting(None, "Of its own; by default sampling.seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contact[0] > self.contact[1]:
            raise InputError(
                f"contact must be the nearest and the farthest, got {self.contact}; set "
                f"sampling.molecules.contact to {self.contact[::-1]}"
            )
        if self.number and not self.kinds:
            raise InputError(
                "kinds must hold at least one kind, got []; set sampling.molecules.kinds, e.g. to "
                "[torsion]"
            )


def molecule_frames(task: Task, config: MoleculesConfig) -> list[Structure]:
    """``config.number`` frames, fewer where every try clashed; ``info`` holds ``kind``.

    Raises:
        InputError: no starting structure is a molecule that one of the kinds suits.
    """
    if not config.number:
        return []
    makers = {i: _Maker(task, config, i) for i, s in enumerate(task.base) if is_molecule(s)}
    jobs = [(kind, i) for i, maker in makers.items() for kind in config.kinds if maker.suits(kind)]
    if not jobs:
        raise InputError(
            f"sampling.molecules needs a molecule without held atoms for one of "
            f"{', '.join(config.kinds)} (solvation: a teacher of H and O), got none among the "
            "starting structures; set sampling.molecules.number to 0"
        )
    frames = []
    for k in range(config.number):
        kind, parent = jobs[k % len(jobs)]
        rng = task.rng(config.seed, _STREAM, k)
        for attempt in range(ATTEMPTS):
            # A try that clashes gives way to one that nobody else gets.
            turn = k // len(jobs) + attempt * config.number
            made = makers[parent].make(kind, turn, rng)
            if made is not None:
                frames.append(task.frame(made, "molecule", parent, k, kind=kind))
                break
            task.rejected[CLOSE_CONTACT] += 1
    return frames


def is_molecule(structure: Structure) -> bool:
    """Open, or a lone molecule in a cell; without held atoms."""
    if structure.fixed is not None or len(structure) < 2:
        return False
    if not structure.pbc.any():
        return True
    molecules = find_molecules(structure)
    return bool(structure.pbc.all()) and molecules.finite and molecules.number == 1


class _Maker:
    """Frames of one starting structure."""

    def __init__(self, task: Task, config: MoleculesConfig, parent: int) -> None:
        self.task, self.config = task, config
        self.base = task.base[parent]
        self.open = _opened(self.base)
        self.bonds = bonds_of(self.open)
        self.turning = [b for b in self.bonds if b.turns]
        self.water = _opened(water_box(1))

    def suits(self, kind: str) -> bool:
        if kind in ("torsion", "conformer"):
            return bool(self.turning)
        if kind == "bond":
            return bool(self.bonds)
        known = self.task.elements
        return kind == "collision" or known is None or {1, 8} <= set(known)

    def make(self, kind: str, k: int, rng: np.random.Generator) -> Structure | None:
        """The k-th frame of a kind; None where atoms come too close."""
        frame, info = getattr(self, f"_{kind}")(k, rng)
        if frame is None:
            return None
        frame = rattled(frame, rng, self.config.rattle_stdev)
        return self._placed(unlabelled(frame, info={**self.base.info, **info}))

    def _torsion(self, k: int, rng: np.random.Generator) -> _Made:
        """Single bonds on an even grid that gets finer, every other time with a second one."""
        number = len(self.turning)
        first, turn = self.turning[k % number], k // number
        combined = number > 1 and turn % 2 == 1
        angles = [(first, 360.0 * _spread(turn // 2 if number > 1 else turn))]
        if combined:
            others = [b for b in self.turning if b is not first]
            angle = _GRID * rng.integers(1, round(360 / _GRID))
            angles.append((others[rng.integers(len(others))], float(angle)))
        return self._turned(angles)

    def _conformer(self, k: int, rng: np.random.Generator) -> _Made:
        return self._turned([(b, float(rng.uniform(0, 360))) for b in self.turning])

    def _turned(self, angles: list[tuple[Bond, float]]) -> _Made:
        frame = self.open
        for bond, angle in angles:
            frame = turn_bond(frame, bond, angle)
        if clashes(frame, self.bonds, _NOT_BONDED):
            return None, {}
        about = [[b.first, b.second, round(angle, 2)] for b, angle in angles]
        return frame, {"torsions": about}

    def _bond(self, k: int, rng: np.random.Generator) -> _Made:
        bond = self.bonds[k % len(self.bonds)]
        length = _length(self.open, bond)
        low, high = self.config.shortest * length, length + self.config.longest
        if not len(bond.side):
            low, high = max(low, _IN_RING[0] * length), min(high, _IN_RING[1] * length)
        wanted = low * (high / low) ** _spread(k // len(self.bonds), k % len(self.bonds))
        frame = stretch_bond(self.open, bond, wanted)
        if clashes(frame, self.bonds, _IN_THE_WAY):
            return None, {}
        return frame, {"bond": [bond.first, bond.second], "length": round(wanted, 4)}

    def _collision(self, k: int, rng: np.random.Generator) -> _Made:
        low, high = self.config.contact
        low = max(low, self.task.min_distance)
        ratio = low * (max(high, low) / low) ** float(rng.uniform())
        frame = bring_together(self.open, self.open, rng, ratio)
        return frame, {"contact": round(ratio, 4)}

    def _solvation(self, k: int, rng: np.random.Generator) -> _Made:
        waters = int(rng.integers(1, self.config.max_waters + 1))
        frame = self.open
        for _ in range(waters):
            # From a hydrogen bond (1.8 Å of O and H) outwards.
            frame = bring_together(frame, self.water, rng, float(rng.uniform(1.8, 2.6)))
        return frame, {"waters": waters}

    def _placed(self, frame: Structure) -> Structure:
        """Back into the cell of the start, enlarged where it is needed."""
        if self.base.pbc.all():
            extent = float(np.ptp(frame.positions, axis=0).max())
            widths = 1.0 / np.linalg.norm(np.linalg.inv(self.base.cell), axis=0)
            cell = self.base.cell * max(1.0, (extent + 10.0) / float(widths.min()))
            frame = unlabelled(frame, cell=cell, pbc=self.base.pbc)
        return self.task.boxed(frame)


def _opened(structure: Structure) -> Structure:
    """A lone molecule made whole, without its cell."""
    positions = structure.positions
    if structure.pbc.any():
        positions = positions + find_molecules(structure).images @ structure.cell
    return unlabelled(
        structure, positions=positions, cell=np.zeros((3, 3)), pbc=np.zeros(3, dtype=bool)
    )


def _length(structure: Structure, bond: Bond) -> float:
    return float(np.linalg.norm(structure.positions[bond.second] - structure.positions[bond.first]))


def _spread(k: int, shift: int = 0) -> float:
    """The k-th number of a sequence that fills (0, 1) evenly however long it is (van der Corput)."""
    value, share = (0.3819660113 * shift) % 1.0, 0.5
    k += 1
    while k:
        value += share * (k % 2)
        share, k = share / 2, k // 2
    return value % 1.0
