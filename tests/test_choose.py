"""Farthest-point selection and the descriptors for it."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import builtin, rattled
from mlff_distiller.sampling.choose import farthest_points, geometric_descriptors

COPPER = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))


def by_hand(descriptors, number, given=()):
    """The definition, step by step, with every distance."""
    everything = np.concatenate([*descriptors, *given])
    scale = everything.std(axis=0)
    scale[scale < 1e-9] = 1.0
    frames = [(d - everything.mean(axis=0)) / scale for d in descriptors]
    chosen = [(d - everything.mean(axis=0)) / scale for d in given]
    order = []
    if not chosen:
        order = [int(np.argmax([np.linalg.norm(f, axis=1).max() for f in frames]))]
        chosen = [frames[order[0]]]
    while len(order) < number:
        environments = np.concatenate(chosen)
        scores = [
            np.linalg.norm(f[:, None] - environments[None], axis=2).min(axis=1).max()
            if i not in order else -1.0
            for i, f in enumerate(frames)
        ]  # fmt: skip
        order.append(int(np.argmax(scores)))
        chosen.append(frames[order[-1]])
    return order


@pytest.mark.parametrize("given", [0, 3])
def test_the_same_as_by_hand(given: int) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(rng.integers(1, 6), 4)) * [1, 5, 0.1, 0] for _ in range(40)]
    known = [rng.normal(size=(3, 4)) for _ in range(given)]
    found = farthest_points(frames, 25, given=known)
    assert found.tolist() == by_hand(frames, 25, known)
    assert farthest_points(frames, 25, given=known).tolist() == found.tolist()
    assert sorted(farthest_points(frames, 99, given=known)) == list(range(40))
    assert farthest_points(frames, 0).shape == (0,)


def test_one_unusual_atom_counts() -> None:
    rng = np.random.default_rng(1)
    frames = [rng.normal(scale=0.1, size=(50, 3)) for _ in range(10)]
    frames[7][13] = 4.0
    assert farthest_points(frames[:7] + frames[8:] + [frames[7]], 1, given=[frames[0]]) == [9]


def test_copies_come_last() -> None:
    rng = np.random.default_rng(2)
    different = [rattled(COPPER, rng, 0.15) for _ in range(6)]
    copies = [rattled(s, rng, 0.001) for s in different]
    descriptors = geometric_descriptors([*copies, *different])
    chosen = farthest_points(descriptors, 6)
    assert sorted(chosen % 6) == list(range(6))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    frames = [rng.normal(size=(7, 5)) for _ in range(30)]
    whole = farthest_points(frames, 20)
    monkeypatch.setattr("mlff_distiller.sampling.choose._BLOCK", 30)
    assert farthest_points(frames, 20).tolist() == whole.tolist()


def test_descriptors_are_invariant_and_smooth() -> None:
    ethanol = builtin("ethanol")[0]
    rng = np.random.default_rng(4)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(ethanol))
    moved = Structure(ethanol.atomic_numbers[order], (ethanol.positions @ turn + 3.0)[order])
    here, there = geometric_descriptors([ethanol, moved])
    np.testing.assert_allclose(there, here[order], rtol=1e-4, atol=1e-5)
    # Periodic copies see what the cell sees.
    small = Structure.from_atoms(bulk("Cu", cubic=True))
    one, many = geometric_descriptors([small, COPPER])
    np.testing.assert_allclose(many, np.broadcast_to(one[0], many.shape), rtol=1e-4, atol=1e-4)
    # An atom that comes into range changes nothing at the cutoff.
    pairs = [Structure([29, 29], [[0, 0, 0], [r, 0, 0]]) for r in (4.9999, 5.0001)]
    near, far = geometric_descriptors(pairs)
    np.testing.assert_allclose(near, far, atol=1e-6)


def test_angles_and_elements_are_told_apart() -> None:
    def water(angle: float, second: int = 1) -> Structure:
        arm = [np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0]
        return Structure([8, 1, second], [[0, 0, 0], [0.96, 0, 0], 0.96 * np.array(arm)])

    a, b, c = geometric_descriptors([water(104), water(150), water(104, 9)])
    assert np.abs(a[0] - b[0]).max() > 0.1
    assert np.abs(a[0] - c[0]).max() > 0.1
    lone = geometric_descriptors([Structure([8], np.zeros((1, 3)))], elements=[1, 8])
    np.testing.assert_array_equal(lone[0][0, 2:], 0.0)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"must have shape \(atoms, d\), got \(3,\)"):
        farthest_points([np.zeros(3)], 1)
    with pytest.raises(InputError, match="must be finite, got NaN"):
        farthest_points([np.full((2, 2), np.nan)], 1)
    with pytest.raises(InputError, match=r"one width, got \[2, 3\]"):
        farthest_points([np.zeros((2, 2)), np.zeros((2, 3))], 1)
    with pytest.raises(InputError, match="must be >= 0, got -1"):
        farthest_points([np.zeros((2, 2))], -1)
    with pytest.raises(InputError, match=r"hold \[29\] too"):
        geometric_descriptors([COPPER], elements=[1])
