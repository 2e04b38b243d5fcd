"""Torsions keep bonds, bonds reach their lengths, collisions keep their distance."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.data import covalent_radii

from mlff_distiller.config import SamplingConfig, from_dict
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import builtin, count_sources, sample
from mlff_distiller.sampling.molecules import (
    bonds_of,
    bring_together,
    clashes,
    stretch_bond,
    turn_bond,
)

ETHANOL = builtin("ethanol")[0]
ASPIRIN = builtin("aspirin")[0]


def settings(**molecules: object) -> SamplingConfig:
    molecules = {"rattle_stdev": 0.0, **molecules}
    return from_dict(SamplingConfig, {"num_rattle": 0, "num_md": 0, "molecules": molecules})


def lengths(structure: Structure, like: Structure) -> np.ndarray:
    bonds = bonds_of(like)
    p = structure.positions
    return np.array([np.linalg.norm(p[b.first] - p[b.second]) for b in bonds])


def dihedral(structure: Structure, atoms: list[int]) -> float:
    return float(structure.to_atoms(labels=False).get_dihedral(*atoms))


def ratios(structure: Structure, split: int) -> np.ndarray:
    """Distances between the first atoms and the rest, in sums of covalent radii."""
    p, radii = structure.positions, covalent_radii[structure.atomic_numbers]
    apart = np.linalg.norm(p[:split, None] - p[None, split:], axis=2)
    return apart / (radii[:split, None] + radii[None, split:])


def test_bonds_and_what_turns() -> None:
    bonds = bonds_of(ETHANOL)
    assert len(bonds) == 8
    turning = {tuple(sorted((b.first, b.second))): len(b.side) for b in bonds if b.turns}
    assert turning == {(0, 1): 4, (1, 2): 2}  # CH3 and OH are the smaller sides
    in_ring = [b for b in bonds_of(ASPIRIN) if not len(b.side)]
    assert len(in_ring) == 6
    turning = [b for b in bonds_of(ASPIRIN) if b.turns]
    assert len(turning) == 5  # C-COOH, C-OH, O-C(ring), O-C(acetyl), C-CH3
    benzene = Structure.from_atoms(molecule("C6H6"))
    assert not any(b.turns for b in bonds_of(benzene))


def test_a_turn_changes_the_dihedral_and_nothing_else() -> None:
    bond = next(b for b in bonds_of(ETHANOL) if b.turns and 2 in (b.first, b.second))
    before = dihedral(ETHANOL, [0, 1, 2, 3])
    for angle in (30.0, 120.0, 300.0):
        s = turn_bond(ETHANOL, bond, angle)
        turned = (dihedral(s, [0, 1, 2, 3]) - before) % 360
        assert min(abs(turned - angle), abs(turned - (360 - angle))) < 1e-6
        np.testing.assert_allclose(lengths(s, ETHANOL), lengths(ETHANOL, ETHANOL))
        still = np.setdiff1d(np.arange(9), bond.side)
        np.testing.assert_array_equal(s.positions[still], ETHANOL.positions[still])


def test_a_bond_gets_its_length() -> None:
    for bond in bonds_of(ASPIRIN):
        s = stretch_bond(ASPIRIN, bond, 2.5)
        apart = np.linalg.norm(s.positions[bond.first] - s.positions[bond.second])
        assert apart == pytest.approx(2.5)
        moved = np.flatnonzero(np.any(s.positions != ASPIRIN.positions, axis=1))
        if len(bond.side):
            assert set(moved) == set(bond.side)
            assert (
                np.count_nonzero(~np.isclose(lengths(s, ASPIRIN), lengths(ASPIRIN, ASPIRIN))) == 1
            )
        else:
            assert set(moved) == {bond.first, bond.second}


def test_contacts_are_as_near_as_asked_and_no_nearer() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ratio = rng.uniform(0.6, 2.5)
        s = bring_together(ASPIRIN, ETHANOL, rng, ratio)
        assert ratios(s, len(ASPIRIN)).min() == pytest.approx(ratio)
        np.testing.assert_array_equal(s.positions[: len(ASPIRIN)], ASPIRIN.positions)
        moved = s.positions[len(ASPIRIN) :]
        d = np.linalg.norm(moved[:, None] - moved[None], axis=2)
        expected = np.linalg.norm(ETHANOL.positions[:, None] - ETHANOL.positions[None], axis=2)
        np.testing.assert_allclose(d, expected, atol=1e-9)


def test_frames_of_every_kind() -> None:
    rejected: Counter[str] = Counter()
    base = [ETHANOL, ASPIRIN]
    frames = sample(base, settings(number=200), rejected=rejected)
    assert structures_hash(frames) == structures_hash(sample(base, settings(number=200)))
    kinds = count_sources(frames)
    assert sum(kinds.values()) > 190
    assert set(kinds) == {
        f"molecule ({k})" for k in ("torsion", "conformer", "bond", "collision", "solvation")
    }
    turned = defaultdict(set)
    drawn = defaultdict(list)
    for s in frames:
        start = base[s.info["parent"]]
        n = len(start)
        kind = s.info["kind"]
        if kind in ("torsion", "conformer"):
            np.testing.assert_allclose(lengths(s, start), lengths(start, start))
            assert not clashes(s, bonds_of(start), 1.3)
            assert find_molecules(s).number == 1
            turned[kind].add(len(s.info["torsions"]))
        elif kind == "bond":
            a, b = s.info["bond"]
            apart = np.linalg.norm(s.positions[a] - s.positions[b])
            assert apart == pytest.approx(s.info["length"], abs=1e-3)
            assert not clashes(s, bonds_of(start), 0.9)
            drawn[s.info["parent"]].append(
                apart / np.linalg.norm(start.positions[a] - start.positions[b])
            )
        elif kind == "collision":
            assert len(s) == 2 * n
            assert 0.8 <= ratios(s, n).min() <= 2.2
            assert ratios(s, n).min() == pytest.approx(s.info["contact"], abs=1e-3)
        else:
            assert len(s) == n + 3 * s.info["waters"]
            assert 1 <= s.info["waters"] <= 4
            assert find_molecules(s).number == 1 + s.info["waters"]
            assert 1.8 <= ratios(s, n).min() <= 2.6
    assert turned["torsion"] == {1, 2}
    assert turned["conformer"] == {2, 5}
    assert min(drawn[0]) < 0.8
    assert max(drawn[0]) > 3.0


def test_torsions_fill_the_circle() -> None:
    frames = sample([ETHANOL], settings(number=24, kinds=["torsion"]))
    single = [s.info["torsions"][0] for s in frames if len(s.info["torsions"]) == 1]
    for bond in ((0, 1), (1, 2)):
        angles = sorted(t[2] for t in single if tuple(sorted(t[:2])) == bond)
        assert len(angles) >= 4
        assert np.diff([0, *angles, 360]).max() <= 130


def test_cells_of_molecules() -> None:
    frames = sample([ETHANOL], settings(number=10), periodic_only=True)
    boxed = Structure(
        ETHANOL.atomic_numbers, (ETHANOL.positions + 0.3) % 12.0, np.eye(3) * 12.0, [True] * 3
    )
    for s in [*frames, *sample([boxed], settings(number=10))]:
        assert s.pbc.all()
        extent = np.ptp(s.positions, axis=0).max()
        assert extent < 20
        assert np.diag(s.cell).min() >= extent + 10.0 - 1e-9
        assert find_molecules(s).finite


def test_what_is_left_out_and_refused() -> None:
    only_carbon = sample([ETHANOL], settings(number=8), elements={1, 6})
    assert "molecule (solvation)" not in count_sources(only_carbon)
    fixed = np.zeros((9, 3), dtype=bool)
    fixed[0] = True
    held = Structure(ETHANOL.atomic_numbers, ETHANOL.positions, fixed=fixed)
    copper = Structure.from_atoms(bulk("Cu", cubic=True))
    for base in ([held], [copper], builtin("water")):
        with pytest.raises(InputError, match=r"set sampling\.molecules\.number to 0"):
            sample(base, settings(number=4))
    with pytest.raises(InputError, match="nearest and the farthest"):
        settings(contact=[2.0, 1.0])
    with pytest.raises(InputError, match="at least one kind"):
        settings(number=1, kinds=[])
