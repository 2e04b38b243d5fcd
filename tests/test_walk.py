"""Rattle-relax-repeat: lineage, limits, and going on after an interruption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from support.calculators import Counting

from mlff_distiller.config import SamplingConfig, from_dict
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import PartialFrames, builtin, count_sources, sample
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.walk import LARGE_FORCE, SIMILAR

COPPER = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 1))


def settings(**walk: object) -> SamplingConfig:
    return from_dict(SamplingConfig, {"num_rattle": 0, "num_md": 0, "walk": walk})


def labels(structure: Structure) -> tuple[float, np.ndarray]:
    atoms = structure.to_atoms()
    atoms.calc = EMT()
    return atoms.get_potential_energy() / len(atoms), atoms.get_forces()


def test_trees_have_a_lineage_and_keep_to_the_limits() -> None:
    config = settings(number=36, tree_size=12, max_force=4.0)
    rejected: Counter[str] = Counter()
    frames = sample([COPPER], config, EMT(), rejected=rejected)
    assert count_sources(frames) == {"walk": 36}
    assert set(rejected) <= {LARGE_FORCE, SIMILAR, "atoms too close"}
    groups = [s.info["group"] for s in frames]
    assert groups == [f"base-0/walk-{t}" for t in range(3) for _ in range(12)]
    for t in range(3):
        tree = frames[12 * t : 12 * (t + 1)]
        generation = {0: 0}
        for n, s in enumerate(tree, 1):
            assert s.info["node"] == n
            assert s.info["mother"] < n
            generation[n] = generation[s.info["mother"]] + 1
            assert s.info["generation"] == generation[n]
            assert 0.06 <= s.info["sigma"] <= 0.3
            assert 0 <= s.info["relax_steps"] <= 20
        assert max(generation.values()) > 2
    for s in frames:
        assert np.linalg.norm(labels(s)[1], axis=1).max() <= 4.0
        assert closest_ratio(s) >= 0.6
        # Strain does not add up over generations: 0.02 each time, from the first cell.
        strain = np.linalg.solve(COPPER.cell, s.cell) - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-9)
        assert np.abs(strain).max() < 0.09
    sites = [np.linalg.solve(s.cell.T, s.positions.T).T @ COPPER.cell for s in frames[:12]]
    apart = [np.linalg.norm(a - b, axis=1).mean() for i, a in enumerate(sites) for b in sites[:i]]
    assert min(apart) >= 0.05


def test_relaxation_goes_downhill() -> None:
    """The same rattles, relaxed and not."""
    energies = [
        np.mean([labels(s)[0] for s in sample([COPPER], config, EMT())])
        for config in (
            settings(number=6, relax_steps=0, sigma=[0.2, 0.2], tree_size=1),
            settings(number=6, relax_steps=15, sigma=[0.2, 0.2], tree_size=1, temperature=1.0),
        )
    ]
    assert energies[1] < energies[0] - 0.1


def test_beta_chooses_energy_or_distance() -> None:
    near, far = (
        sample([COPPER], settings(number=40, tree_size=40, beta=beta, temperature=300.0), EMT())
        for beta in (1.0, 0.0)
    )
    assert np.mean([s.info["generation"] for s in far]) > 1.5 * np.mean(
        [s.info["generation"] for s in near]
    )


def test_held_atoms_and_molecules() -> None:
    fixed = np.zeros((16, 3), dtype=bool)
    fixed[:8] = True
    base = Structure(COPPER.atomic_numbers, COPPER.positions, COPPER.cell, [True] * 3, fixed=fixed)
    for s in sample([base], settings(number=6), EMT()):
        np.testing.assert_array_equal(s.positions[:8], COPPER.positions[:8])
        np.testing.assert_array_equal(s.cell, COPPER.cell)
        assert np.abs(s.positions[8:] - COPPER.positions[8:]).min(axis=1).max() > 0
    (ethanol,) = builtin("ethanol")
    assert len(sample([ethanol], settings(number=6), EMT())) == 6


def test_goes_on_to_the_same_frames(tmp_path: Path) -> None:
    config = settings(number=20, tree_size=5)
    whole = Counting()
    rejected: Counter[str] = Counter()
    frames = sample([COPPER], config, whole, rejected=rejected)
    assert structures_hash(frames) == structures_hash(sample([COPPER], config, EMT()))
    stop = Counting(whole.calls // 2)
    with pytest.raises(KeyboardInterrupt), PartialFrames(tmp_path / "a.h5", {}) as partial:
        sample([COPPER], config, stop, partial=partial)
    last = Counting()
    again: Counter[str] = Counter()
    seen = []
    with PartialFrames(tmp_path / "a.h5", {}) as partial:
        assert len(partial) % 5 == 0
        assert len(partial) > 0
        rest = sample(
            [COPPER], config, last, partial=partial, rejected=again,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
    assert structures_hash(rest) == structures_hash(frames)
    assert [s.info for s in rest] == [s.info for s in frames]
    assert last.calls < 0.8 * whole.calls
    assert again == rejected
    assert seen == [(n, 20) for n in range(1, 21)]


def test_what_is_refused_and_counted() -> None:
    with pytest.raises(InputError, match=r"sampling\.walk \(5 frames\) needs a calculator"):
        sample([COPPER], settings(number=5))
    with pytest.raises(InputError, match="smallest and the largest"):
        settings(sigma=[0.3, 0.1])
    with pytest.raises(InputError, match=r"every sampled frame was rejected \(\d+ x force above"):
        sample([COPPER], settings(number=2, max_force=1e-6, relax_steps=1), EMT())
    gold = Structure.from_atoms(bulk("W"))
    with pytest.raises(InputError, match="1 x the calculator failed"):
        sample([gold], settings(number=2), EMT())
