"""Defects of crystals are what they claim."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list

from mlff_distiller.data import Structure
from mlff_distiller.data.structure import check_structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import builtin
from mlff_distiller.sampling.defects import (
    interstitial_sites,
    make_antisite,
    make_dumbbell,
    make_interstitial,
    make_stacking_fault,
    make_surface,
    make_vacancy,
    plane_gaps,
)
from mlff_distiller.sampling.geometry import (
    is_translation,
    roomy_cell,
    smallest_repeat,
    strained,
    supercell,
)

A = 3.6
FCC = Structure.from_atoms(bulk("Cu", "fcc", a=A, cubic=True))
BCC = Structure.from_atoms(bulk("Fe", "bcc", a=2.87, cubic=True))
DIAMOND = builtin("silicon-8")[0]
SALT = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
HCP = Structure.from_atoms(bulk("Mg", "hcp", a=3.2, c=5.2))
CRYSTALS = [FCC, BCC, DIAMOND, SALT, HCP]


def bonds(structure: Structure, cutoff: float) -> list[np.ndarray]:
    """Vectors to the neighbours of each atom."""
    i, vectors = neighbor_list("iD", structure.to_atoms(labels=False), cutoff)
    return [vectors[i == a] for a in range(len(structure))]


def opposite_pairs(vectors: np.ndarray) -> int:
    """Neighbours that face each other: of twelve, six pairs in fcc and three in hcp."""
    sums = np.linalg.norm(vectors[:, None] + vectors[None], axis=2)
    return int(np.count_nonzero(sums < 0.1) // 2)


def test_supercells_and_their_cells() -> None:
    rng = np.random.default_rng(0)
    for crystal in CRYSTALS:
        large = supercell(crystal, [2, 3, 1])
        moved = Structure(
            large.atomic_numbers, large.positions + rng.normal(size=3), large.cell, [True] * 3
        )
        unit, repeats = smallest_repeat(moved)
        assert repeats == [2, 3, 1]
        np.testing.assert_allclose(unit.cell, crystal.cell, atol=1e-9)
        assert sorted(unit.atomic_numbers) == sorted(crystal.atomic_numbers)
    assert smallest_repeat(make_vacancy(supercell(FCC, [2, 2, 2])))[1] == [1, 1, 1]
    assert is_translation(FCC, np.array([A / 2, A / 2, 0]))
    assert not is_translation(FCC, np.array([A / 2, 0, 0]))
    assert not is_translation(SALT, np.array([2.82, 0, 0]))
    assert len(roomy_cell(FCC, 100)) == 32
    assert len(roomy_cell(FCC, 107)) == 32
    assert len(roomy_cell(FCC, 108)) == 108
    assert roomy_cell(FCC, 2) is FCC


def test_a_vacancy_removes_one_atom_and_keeps_the_rest() -> None:
    start = supercell(SALT, [2, 2, 2])
    fixed = np.zeros((64, 3), dtype=bool)
    fixed[[0, 9]] = True
    held = Structure(start.atomic_numbers, start.positions, start.cell, [True] * 3, fixed=fixed)
    s = make_vacancy(held, 5)
    rest = np.delete(np.arange(64), 5)
    np.testing.assert_array_equal(s.positions, start.positions[rest])
    np.testing.assert_array_equal(s.atomic_numbers, start.atomic_numbers[rest])
    np.testing.assert_array_equal(s.fixed, fixed[rest])
    np.testing.assert_array_equal(s.cell, start.cell)
    assert s.info["defect"] == "vacancy"
    with pytest.raises(InputError, match=r"atom 9 of .* is held; choose another"):
        make_vacancy(held, 9)
    with pytest.raises(InputError, match=r"atom must be 0\.\.63 of .*, got 64"):
        make_vacancy(held, 64)
    with pytest.raises(InputError, match="two atoms or more"):
        make_vacancy(Structure([18], np.zeros((1, 3)), np.eye(3) * 5, [True] * 3))


def test_voids_are_the_sites_of_the_textbook() -> None:
    octahedral, tetrahedral = interstitial_sites(FCC)
    assert octahedral.radius == pytest.approx(A / 2)
    assert octahedral.coordination == 6
    assert tetrahedral.radius == pytest.approx(A * np.sqrt(3) / 4)
    assert tetrahedral.coordination == 4
    (site,) = interstitial_sites(BCC)  # the octahedral site is a saddle between two of these
    assert site.coordination == 4
    assert site.radius == pytest.approx(2.87 * np.sqrt(5) / 4)
    largest = interstitial_sites(DIAMOND)[0]
    assert largest.radius == pytest.approx(5.43 * np.sqrt(3) / 4)  # T: as far as a bond
    radii = [s.radius for s in interstitial_sites(HCP)]
    assert max(radii) == pytest.approx(3.2 / np.sqrt(2), rel=0.03)


def test_an_interstitial_sits_in_the_void() -> None:
    start = supercell(DIAMOND, [2, 2, 2])
    s = make_interstitial(start, element=6)
    np.testing.assert_array_equal(s.positions[:-1], start.positions)
    assert s.atomic_numbers[-1] == 6
    distances = np.linalg.norm(bonds(s, 2.5)[-1], axis=1)
    np.testing.assert_allclose(distances, [5.43 * np.sqrt(3) / 4] * 4)
    pair = make_dumbbell(supercell(FCC, [3, 3, 3]), 7, [1, 0, 0])
    assert len(pair) == 109
    assert pair.positions[-1] - pair.positions[7] == pytest.approx([0.85 * A / np.sqrt(2), 0, 0])
    np.testing.assert_allclose(
        (pair.positions[-1] + pair.positions[7]) / 2, supercell(FCC, [3, 3, 3]).positions[7]
    )


def test_an_antisite_exchanges_two_elements() -> None:
    s = make_antisite(SALT, 0, 1)
    assert s.atomic_numbers.tolist()[:2] == SALT.atomic_numbers.tolist()[1::-1]
    assert s.formula == SALT.formula
    with pytest.raises(InputError, match="two elements, got 0 and 2 of one"):
        make_antisite(SALT, 0, 2)


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda s: s.formula)
@pytest.mark.parametrize("miller", [(1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (2, 1, 1)])
def test_a_slab_is_a_piece_of_the_crystal(crystal: Structure, miller: tuple[int, ...]) -> None:
    s = check_structure(make_surface(supercell(crystal, [2, 2, 2]), miller, vacuum=11.0))
    # The area of the plane of the cell's lattice: volume over the distance of its planes.
    spacing = 1.0 / np.linalg.norm(np.linalg.inv(crystal.cell) @ miller)
    volume = np.linalg.det(crystal.cell)
    area = np.linalg.norm(np.cross(*s.cell[:2]))
    assert area == pytest.approx(volume / spacing)
    periods = len(s) // len(crystal)
    assert periods * len(crystal) == len(s)
    assert 10.0 <= periods * spacing < 10.0 + spacing
    for z in np.unique(crystal.atomic_numbers):
        share = np.mean(crystal.atomic_numbers == z)
        assert np.mean(s.atomic_numbers == z) == pytest.approx(share)
    height = np.ptp(s.positions[:, 2])
    assert s.cell[2, 2] == pytest.approx(height + 11.0)
    assert s.positions[:, 2].min() == pytest.approx(5.5)
    assert s.pbc.tolist() == [True, True, False]
    # Atoms in the middle have the neighbours of the bulk.
    reach = 3.1
    wanted = sorted(np.linalg.norm(bonds(crystal, reach)[0], axis=1).round(6))
    middle = int(np.argmin(np.abs(s.positions[:, 2] - s.cell[2, 2] / 2)))
    assert sorted(np.linalg.norm(bonds(s, reach)[middle], axis=1).round(6)) == wanted
    # The cut is the widest gap.
    assert periods * spacing - height == pytest.approx(plane_gaps(crystal, miller)[0])


def test_terminations_and_what_is_refused() -> None:
    wide, narrow = plane_gaps(DIAMOND, (1, 1, 1))
    assert (wide, narrow) == pytest.approx((5.43 * np.sqrt(3) / 4, 5.43 / np.sqrt(3) / 4))

    def dangling(termination: int) -> int:
        s = make_surface(DIAMOND, (1, 1, 1), termination=termination)
        return sum(4 - len(v) for v in bonds(s, 2.6))

    assert dangling(0) * 3 == dangling(1)
    with pytest.raises(InputError, match=r"has the terminations 0\.\.1, got 2"):
        make_surface(DIAMOND, (1, 1, 1), termination=2)
    with pytest.raises(InputError, match="three integers that are not all 0"):
        make_surface(FCC, (0, 0, 0))
    with pytest.raises(InputError, match="three periodic directions"):
        make_surface(builtin("ethanol")[0])
    fixed = np.ones((4, 3), dtype=bool)
    held = Structure(FCC.atomic_numbers, FCC.positions, FCC.cell, [True] * 3, fixed=fixed)
    with pytest.raises(InputError, match="has held ones; remove the constraints"):
        make_stacking_fault(held)
    assert make_surface(FCC, periodic=True).pbc.all()


def test_a_stacking_fault_of_fcc_has_two_layers_of_hcp() -> None:
    s = check_structure(make_stacking_fault(FCC, (1, 1, 1), thickness=15.0))
    found = bonds(s, 1.1 * A / np.sqrt(2))
    assert {len(v) for v in found} == {12}
    pairs = np.array([opposite_pairs(v) for v in found])
    assert set(pairs) == {3, 6}
    layers = sorted(set(np.round(s.positions[pairs == 3, 2], 3)))
    assert len(layers) == 2
    assert layers[1] - layers[0] == pytest.approx(A / np.sqrt(3), abs=2e-3)
    assert np.linalg.det(s.cell) == pytest.approx(len(s) * A**3 / 4)
    # A translation of the lattice is no fault.
    whole = make_stacking_fault(FCC, (1, 1, 1), shift=(0.5, 0.0))
    assert {opposite_pairs(v) for v in bonds(whole, 1.1 * A / np.sqrt(2))} == {6}


def test_a_fault_on_the_glide_plane_of_diamond_keeps_four_bonds() -> None:
    s = make_stacking_fault(DIAMOND, (1, 1, 1), termination=1)
    found = bonds(s, 2.6)
    assert {len(v) for v in found} == {4}
    np.testing.assert_allclose(
        np.linalg.norm(np.concatenate(found), axis=1), 5.43 * np.sqrt(3) / 4, rtol=1e-6
    )
    second = [np.linalg.norm(v, axis=1) for v in bonds(s, 4.6)]
    assert len({len(v) for v in second}) == 2  # third neighbours of lonsdaleite at the fault


def test_crystals_without_another_hollow_shift_by_the_farthest() -> None:
    s = make_stacking_fault(BCC, (1, 0, 0))
    assert max(s.info["shift"]) >= 0.25
    skewed = strained(FCC, np.array([[0.01, 0.02, 0], [0.02, -0.01, 0], [0, 0.01, 0.02]]))
    check_structure(make_stacking_fault(skewed, (1, 1, 0)))
