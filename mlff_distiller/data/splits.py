"""Train / valid / test splits that never separate relatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mlff_distiller.errors import InputError

SPLITS = ("train", "valid", "test")
_MAX_STRATA = 10


def draw_splits(
    groups: Sequence[str],
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    strata: Sequence[str] | None = None,
    features: Sequence[Iterable[str]] | None = None,
    stored: Mapping[str, np.ndarray] | None = None,
    name: str = "the data",
) -> dict[str, np.ndarray]:
    """Draw splits by group.

    Groups are shuffled and dealt out one by one, each to the split that lacks most of its share,
    so that groups of unequal size still come near to the fractions. Each stratum (frames from
    molecular dynamics, rattled frames ...) is dealt out for itself, so that every split has some.

    Args:
        groups: group of each structure.
        valid_fraction: share of the structures, [0, 1).
        test_fraction: share of the structures, [0, 1).
        seed: same seed, same splits.
        strata: kind of each structure; ignored when there are more than ten kinds.
        features: what each structure holds (its elements, its kind): training gets at least one
            group with each of them, from the draw above with as few exchanges as that takes.
        stored: splits of the first structures, kept as they are; their groups stay on their side.
        name: of the data, for messages.

    Returns:
        ``train``, ``valid``, ``test`` -> ascending int64 indices, disjoint and complete.

    Raises:
        InputError: a split that was asked for would stay empty, or a stored one keeps a feature out
            of training.
    """
    names = np.asarray(groups, dtype=object)
    side_of: dict[str, str] = {}
    if strata is None or len(set(strata)) > _MAX_STRATA:
        strata = [""] * len(names)
    stratum_of: dict[str, str] = {}
    total: Counter[str] = Counter(strata)
    counts: Counter[tuple[str, str]] = Counter()
    for split, indices in (stored or {}).items():
        for i in indices:
            side_of.setdefault(names[i], split)
    members: dict[str, int] = {}
    for group, stratum in zip(names, strata, strict=True):
        members[group] = members.get(group, 0) + 1
        stratum_of.setdefault(group, stratum)
    for group, split in side_of.items():
        counts[stratum_of[group], split] += members[group]
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
        stratum = stratum_of[group]
        gap = {s: shares[s] * total[stratum] - counts[stratum, s] for s in wanted}
        split = max(wanted, key=gap.__getitem__)
        side_of[group] = split
        counts[stratum, split] += members[group]
    if features is not None and "train" in wanted:
        stays = set(members) - set(new)
        _cover_training(side_of, names, features, stays, members, name)
    empty = [s for s in wanted if s not in side_of.values()]
    if empty:
        raise InputError(
            f"{name}: {len(names)} structures in {len(members)} independent groups cannot fill "
            f"the split {empty[0]!r} (training keeps what occurs once: elements, kinds, isolated "
            "atoms); add structures, or set its fraction to 0"
        )
    fixed = {int(i): s for s, indices in (stored or {}).items() for i in indices}
    sides = np.array([fixed.get(i, side_of[g]) for i, g in enumerate(names)], dtype=object)
    return {s: np.flatnonzero(sides == s).astype(np.int64) for s in SPLITS}


def _cover_training(
    side_of: dict[str, str],
    names: np.ndarray,
    features: Sequence[Iterable[str]],
    fixed: set[str],
    members: Mapping[str, int],
    name: str,
) -> None:
    """Move groups to training until it holds every feature, and others back to keep the sizes."""
    holds: dict[str, set[str]] = {group: set() for group in members}
    for group, found in zip(names, features, strict=True):
        holds[group] |= set(found)
    count = Counter(f for group, found in holds.items() if side_of[group] == "train" for f in found)
    moved: list[str] = []
    everything = Counter(f for found in holds.values() for f in found)
    for feature, _ in sorted(everything.items(), key=lambda item: (item[1], item[0])):
        if count[feature]:
            continue
        free = [g for g in members if feature in holds[g] and g not in fixed]
        if not free:
            raise InputError(
                f"{name}: {feature} occurs only outside of the training split that is stored; "
                f"add structures with it, or draw anew: mlff-distiller convert {name} new.h5 "
                "--new-splits"
            )
        group = min(free, key=lambda g: members[g])
        moved.append(side_of[group])
        side_of[group] = "train"
        count.update(holds[group])
    for split in moved:  # give a group of no rarity back for each
        spare = [
            g
            for g in members
            if side_of[g] == "train" and g not in fixed and all(count[f] > 1 for f in holds[g])
        ]
        if not spare:
            return
        group = min(spare, key=lambda g: members[g])
        side_of[group] = split
        count.subtract(holds[group])
