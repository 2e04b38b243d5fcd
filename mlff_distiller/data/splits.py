"""Train / valid / test splits that never separate relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlff_distiller.errors import InputError

SPLITS = ("train", "valid", "test")


def draw_splits(
    groups: Sequence[str],
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    stored: Mapping[str, np.ndarray] | None = None,
    name: str = "the data",
) -> dict[str, np.ndarray]:
    """Draw splits by group.

    Groups are shuffled and dealt out one by one, each to the split that lacks most of its share,
    so that groups of unequal size still come near to the fractions.

    Args:
        groups: group of each structure.
        valid_fraction: share of the structures, [0, 1).
        test_fraction: share of the structures, [0, 1).
        seed: same seed, same splits.
        stored: splits of the first structures, kept as they are; their groups stay on their side.
        name: of the data, for messages.

    Returns:
        ``train``, ``valid``, ``test`` -> ascending int64 indices, disjoint and complete.

    Raises:
        InputError: a split that was asked for would stay empty.
    """
    names = np.asarray(groups, dtype=object)
    side_of: dict[str, str] = {}
    counts = dict.fromkeys(SPLITS, 0)
    for split, indices in (stored or {}).items():
        for i in indices:
            side_of.setdefault(names[i], split)
    members: dict[str, int] = {}
    for group in names:
        members[group] = members.get(group, 0) + 1
    for group, split in side_of.items():
        counts[split] += members[group]
    shares = {
        "train": 1.0 - valid_fraction - test_fraction,
        "valid": valid_fraction,
        "test": test_fraction,
    }
    wanted = [s for s in SPLITS if shares[s] > 0]
    new = [g for g in members if g not in side_of]
    order = np.random.default_rng(seed).permutation(len(new))
    # Large groups first: a late large one would overshoot whatever split it falls into.
    for group in sorted((new[i] for i in order), key=lambda g: -members[g]):
        gap = {s: shares[s] * len(names) - counts[s] for s in wanted}
        split = max(wanted, key=lambda s: gap[s])
        side_of[group] = split
        counts[split] += members[group]
    empty = [s for s in wanted if counts[s] == 0]
    if empty:
        raise InputError(
            f"{name}: {len(names)} structures in {len(members)} independent groups cannot fill "
            f"the split {empty[0]!r}; add structures, or set its fraction to 0"
        )
    fixed = {int(i): s for s, indices in (stored or {}).items() for i in indices}
    sides = np.array([fixed.get(i, side_of[g]) for i, g in enumerate(names)], dtype=object)
    return {s: np.flatnonzero(sides == s).astype(np.int64) for s in SPLITS}
