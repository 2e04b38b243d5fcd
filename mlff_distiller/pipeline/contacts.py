"""How close atoms may come before the teacher's forces are too large to learn from.

What a student that explodes visits last is close contacts, and half of the teacher's calls of a
round can go to frames that are refused (sampling.max_force). Frames that were asked about before tell
which: of silicon, all below 0.84 of the sum of covalent radii are refused and none above 0.85.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mlff_distiller.data import Structure
from mlff_distiller.sampling.geometry import closest_ratio

# Below the limit so large a share has to have been refused, of at least so many frames.
_SHARE, _LEAST = 0.8, 4

#: Closest contact of a frame, as a share of the covalent radii, and whether it was refused.
Asked = tuple[float, bool]


def asked_about(frames: Sequence[Structure], refused: Collection[int]) -> list[Asked]:
    """What the teacher's answers say of contacts.

    Args:
        frames: that the teacher was asked about; dimers in vacuum do not count.
        refused: indices of those whose labels were not taken.
    """
    return [
        (round(closest_ratio(frame), 4), i in refused)
        for i, frame in enumerate(frames)
        if len(frame) > 2
    ]


def contact_limit(asked: Sequence[Asked]) -> float:
    """The contact at which, and below which, nearly all frames were refused; 0 where there is none."""
    limit = 0.0
    kept = lost = 0
    for ratio, refused in sorted((float(r), bool(x)) for r, x in asked):
        kept, lost = kept + (not refused), lost + refused
        if refused and lost >= _LEAST and lost >= _SHARE * (kept + lost):
            limit = ratio
    return limit
