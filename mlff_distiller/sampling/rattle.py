"""Rattled and strained copies, and rattle-relax-repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.calculators.calculator import Calculator
from ase.optimize import FIRE

from mlff_distiller.data.structure import Structure
from mlff_distiller.sampling.geometry import closest_ratio, random_strain, strained

_ATTEMPTS = 20
CLOSE_CONTACT = "atoms too close"


def rattled(
    structure: Structure, rng: np.random.Generator, stdev: float, max_strain: float = 0.0
) -> Structure:
    """A copy with normally distributed displacements and, when fully periodic, a random strain.

    Held coordinates (``structure.fixed``) stay, and so does the cell around them.

    Args:
        structure: left as it is.
        rng: source of randomness.
        stdev: of each Cartesian displacement, Å.
        max_strain: largest component of the strain.
    """
    if structure.pbc.all() and max_strain > 0 and structure.fixed is None:
        structure = strained(structure, random_strain(rng, max_strain))
    noise = rng.normal(scale=stdev, size=structure.positions.shape)
    if structure.fixed is not None:
        noise[structure.fixed] = 0.0
    return replace(
        structure,
        positions=structure.positions + noise,
        energy=None,
        forces=None,
        stress=None,
        momenta=None,
    )


def rattle_all(
    base: Sequence[Structure],
    number: int,
    *,
    stdevs: Sequence[float],
    max_strain: float,
    min_distance: float,
    seed: int,
    rejected: Counter[str] | None = None,
) -> list[Structure]:
    """``number`` rattled copies, taken from ``base`` and ``stdevs`` in turn.

    Copies with atoms closer than ``min_distance`` times their covalent radii are drawn again, up
    to 20 times, and counted in ``rejected``. ``info`` names ``parent`` (index in ``base``),
    ``source`` and ``rattle_stdev``.
    """
    rejected = Counter() if rejected is None else rejected
    frames = []
    for k in range(number):
        parent = k % len(base)
        stdev = float(stdevs[(k // len(base)) % len(stdevs)])
        rng = np.random.default_rng([seed, 1, k])
        for _ in range(_ATTEMPTS):
            frame = rattled(base[parent], rng, stdev, max_strain)
            if closest_ratio(frame) >= min_distance:
                info = {"source": "rattle", "parent": parent, "rattle_stdev": stdev, "member": k}
                frames.append(replace(frame, info={**base[parent].info, **info}))
                break
            rejected[CLOSE_CONTACT] += 1
    return frames


def rattle_relax_repeat(
    structure: Structure,
    calculator: Calculator,
    number: int,
    *,
    stdev: float,
    max_strain: float = 0.0,
    relax_steps: int = 10,
    max_force: float = 0.5,
    min_distance: float = 0.6,
    seed: int = 0,
    rejected: Counter[str] | None = None,
) -> list[Structure]:
    """A walk over minima: rattle, relax a few steps, keep both ends, go on from there.

    It leaves the basin of the start without the long correlation times of molecular dynamics
    (Gardner et al. 2025, arXiv:2506.10956). The frames of one walk are relatives: ``info`` names
    ``step``, and the caller gives them one group.

    Args:
        structure: where the walk starts.
        calculator: relaxes; any ASE calculator.
        number: of frames.
        stdev: of a rattle, Å.
        max_strain: of a rattle of a periodic structure; the cell starts from that of
            ``structure`` each time.
        relax_steps: at most, of FIRE at fixed cell.
        max_force: eV/Å, where a relaxation ends.
        min_distance: see :func:`rattle_all`.
        seed: same seed, same walk.
        rejected: counts what was drawn again.
    """
    rejected = Counter() if rejected is None else rejected
    rng = np.random.default_rng([seed, 3])
    frames: list[Structure] = []
    here = structure
    failures = 0
    while len(frames) < number and failures < _ATTEMPTS:
        frame = rattled(here, rng, stdev, max_strain)
        relaxed = None
        if closest_ratio(frame) >= min_distance:
            relaxed = _relax(frame, calculator, relax_steps, max_force)
        if relaxed is None or closest_ratio(relaxed) < min_distance:
            rejected[CLOSE_CONTACT] += 1
            failures += 1
            continue
        failures = 0
        for s, kind in ((frame, "rattle"), (relaxed, "relax")):
            info = {"source": f"walk-{kind}", "step": len(frames), "rattle_stdev": stdev}
            frames.append(replace(s, info={**structure.info, **info}))
        # Back to the first cell: strain must not add up over the walk.
        back = structure.cell if structure.pbc.all() else relaxed.cell
        here = _in_cell(relaxed, back)
    return frames[:number]


def _relax(
    structure: Structure, calculator: Calculator, steps: int, max_force: float
) -> Structure | None:
    atoms = structure.to_atoms(labels=False, dynamics=True)
    calculator.reset()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=max_force, steps=steps)
    if not np.all(np.isfinite(atoms.positions)):
        return None
    return replace(structure, positions=atoms.positions)


def _in_cell(structure: Structure, cell: np.ndarray) -> Structure:
    if np.array_equal(structure.cell, cell):
        return structure
    fractional = np.linalg.solve(structure.cell.T, structure.positions.T).T
    return replace(structure, positions=fractional @ cell, cell=cell)
