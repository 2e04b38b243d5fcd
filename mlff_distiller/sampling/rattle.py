"""Rattled and strained copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

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
