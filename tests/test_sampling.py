"""Sampling: reproducible, within its limits, and honest about what it left out."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import Structure, structures_hash
from mlff_distiller.data.splits import draw_splits
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.runs import in_box
from mlff_distiller.sampling import builtin, rattled, sample, water_box
from mlff_distiller.sampling.dynamics import HOT
from mlff_distiller.sampling.geometry import closest_ratio, random_strain, strained
from mlff_distiller.sampling.rattle import CLOSE_CONTACT

COPPER = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))


class Springs(Calculator):
    """Atoms tied to where they were first seen; ``constant`` below zero throws them away."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant
        self.home: np.ndarray | None = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.home is None:
            self.home = atoms.get_positions()
        away = atoms.get_positions() - self.home
        self.results = {
            "energy": 0.5 * self.constant * float(np.sum(away**2)),
            "forces": -self.constant * away,
        }


def config(**changes: object) -> SamplingConfig:
    defaults = {"num_rattle": 0, "num_md": 0, "md_warmup": 5, "md_interval": 2}
    return SamplingConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def test_same_seed_same_frames_and_another_seed_others() -> None:
    settings = {"num_rattle": 9, "num_md": 12, "md_temperatures": [300.0, 900.0]}
    first = sample([COPPER], config(**settings), EMT())
    second = sample([COPPER], config(**settings), EMT())
    other = sample([COPPER], config(**settings, seed=1), EMT())
    assert len(first) == 21
    assert structures_hash(first) == structures_hash(second)
    assert [s.info for s in first] == [s.info for s in second]
    assert all(not np.allclose(a.positions, b.positions) for a, b in zip(first, other, strict=True))
    assert all(s.energy is None and s.forces is None for s in first)


def test_rattle_has_the_asked_width_and_strain() -> None:
    rng = np.random.default_rng(0)
    frames = [rattled(COPPER, rng, 0.1) for _ in range(60)]
    noise = np.array([s.positions - COPPER.positions for s in frames])
    assert np.std(noise) == pytest.approx(0.1, rel=0.03)
    assert abs(noise.mean()) < 0.005
    strains = []
    for _ in range(60):
        s = rattled(COPPER, rng, 0.0, 0.05)
        gradient = np.linalg.solve(COPPER.cell, s.cell) - np.eye(3)
        np.testing.assert_allclose(gradient, gradient.T, atol=1e-12)
        # Atoms move with the cell.
        np.testing.assert_allclose(s.positions, COPPER.positions @ (np.eye(3) + gradient))
        strains.append(np.abs(gradient).max())
    assert 0.04 < max(strains) <= 0.05
    molecule = builtin("ethanol")[0]
    np.testing.assert_array_equal(rattled(molecule, rng, 0.0, 0.05).positions, molecule.positions)


def test_copies_differ_in_noise_and_strain_and_take_the_widths_in_turn() -> None:
    frames = sample([COPPER], config(num_rattle=24, rattle_stdev=[0.02, 0.08], max_strain=0.03))
    assert [s.info["rattle_stdev"] for s in frames] == [0.02, 0.08] * 12
    strains = np.array([np.linalg.solve(COPPER.cell, s.cell) - np.eye(3) for s in frames])
    assert 0.027 < np.abs(strains).max() <= 0.03
    assert len({s.tobytes() for s in strains}) == 24
    noise = np.array(
        [(s.positions - COPPER.positions @ (np.eye(3) + e)).ravel()
         for s, e in zip(frames, strains, strict=True)]
    )  # fmt: skip
    assert np.std(noise[::2]) == pytest.approx(0.02, rel=0.1)
    assert np.std(noise[1::2]) == pytest.approx(0.08, rel=0.1)
    assert np.abs(np.corrcoef(noise)[np.triu_indices(24, 1)]).max() < 0.5


def test_close_contacts_are_drawn_again_and_counted() -> None:
    rejected: Counter[str] = Counter()
    settings = config(num_rattle=6, rattle_stdev=[0.05, 0.35], min_distance=0.7)
    frames = sample(builtin("silicon"), settings, rejected=rejected)
    assert rejected[CLOSE_CONTACT] > 0
    assert min(closest_ratio(s) for s in frames) >= 0.7
    assert {s.info["rattle_stdev"] for s in frames} >= {0.05}
    with pytest.raises(InputError, match=r"every sampled frame was rejected \(\d+ x atoms too"):
        sample(builtin("silicon"), config(num_rattle=2, rattle_stdev=[2.0]))


def test_closest_ratio_sees_periodic_images() -> None:
    s = Structure(atomic_numbers=[29, 29], positions=[[0.1, 0, 0], [9.9, 0, 0]])
    assert closest_ratio(s) == 1.0
    folded = Structure(
        atomic_numbers=[29, 29], positions=s.positions, cell=np.eye(3) * 10, pbc=[True] * 3
    )
    assert closest_ratio(folded) == pytest.approx(0.2 / (2 * 1.32))


def test_strained_by_a_known_amount() -> None:
    s = strained(COPPER, np.diag([0.01, 0.0, -0.01]))
    np.testing.assert_allclose(np.diag(s.cell) / np.diag(COPPER.cell), [1.01, 1.0, 0.99])
    strain = random_strain(np.random.default_rng(0), 0.02)
    np.testing.assert_array_equal(strain, strain.T)


def test_dynamics_reaches_its_temperatures() -> None:
    """Equipartition: independent oscillators have <x²> = kT / k in each direction."""
    constant, home = 10.0, Structure.from_atoms(bulk("Cu", cubic=True) * (3, 3, 3))
    for temperature in (300.0, 1200.0):
        settings = config(
            num_md=60, md_temperatures=[temperature], md_warmup=300, md_interval=20,
            md_timestep=5.0, max_strain=0.0,
        )  # fmt: skip
        frames = sample([home], settings, Springs(constant))
        away = np.array([s.positions - home.positions for s in frames])
        expected = units.kB * temperature / constant
        assert np.mean(away**2) == pytest.approx(expected, rel=0.1)


def test_segments_are_groups_that_splits_do_not_cut() -> None:
    settings = config(
        num_rattle=30, num_md=54, md_temperatures=[300.0, 600.0], md_warmup=2, md_interval=1
    )
    frames = sample([COPPER], settings, Springs(5.0))
    groups = Counter(s.info["group"] for s in frames)
    dynamics = {g: n for g, n in groups.items() if "/md-" in g}
    assert sum(dynamics.values()) == 54
    assert max(dynamics.values()) <= 10
    assert len(dynamics) == 6
    assert all(n == 1 for g, n in groups.items() if "/rattle-" in g)
    kinds = [s.info["source"] for s in frames]
    splits = draw_splits([s.info["group"] for s in frames], 0.15, 0.15, 0, strata=kinds)
    for indices in splits.values():
        assert {kinds[i] for i in indices} == {"md", "rattle"}
    # Segments under strain: the cells of one segment are equal, those of others differ.
    cells = {s.info["group"]: s.cell for s in frames if s.info["source"] == "md"}
    assert all(
        np.array_equal(s.cell, cells[s.info["group"]]) for s in frames if s.info["source"] == "md"
    )
    assert len({c.tobytes() for c in cells.values()}) >= 5


def test_many_starts_are_families() -> None:
    base = [rattled(COPPER, np.random.default_rng(i), 0.02) for i in range(12)]
    frames = sample(base, config(num_rattle=36))
    assert Counter(s.info["group"] for s in frames) == {f"base-{i}": 3 for i in range(12)}
    named = [
        Structure(s.atomic_numbers, s.positions, s.cell, s.pbc, info={"group": i % 11})
        for i, s in enumerate(base)
    ]
    frames = sample(named, config(num_rattle=12))
    assert [s.info["group"] for s in frames] == [str(i % 11) for i in range(12)]


def test_dynamics_that_runs_away_is_stopped_and_counted() -> None:
    rejected: Counter[str] = Counter()
    settings = config(num_rattle=2, num_md=10, md_temperatures=[300.0], md_warmup=60)
    frames = sample(builtin("ethanol"), settings, Springs(-60.0), rejected=rejected)
    assert len(frames) == 2
    assert rejected[HOT] == 5  # one for each restart
    with pytest.raises(InputError, match="ran away"):
        sample(builtin("ethanol"), config(num_md=5, md_warmup=60), Springs(-60.0))


def test_what_cannot_be_sampled_is_named() -> None:
    for base, settings, part in [
        ([], config(num_rattle=1), "at least one starting structure"),
        ([COPPER], config(), "nothing to do"),
        ([COPPER], config(num_md=3), "needs a calculator"),
        ([Structure([0], [[0.0] * 3])], config(num_rattle=1), "starting structure 0"),
    ]:
        with pytest.raises(InputError, match=part):
            sample(base, settings)
    with pytest.raises(InputError, match="rattle_stdev"):
        config(num_rattle=3, rattle_stdev=[])
    for temperatures in ([], [-1.0]):
        with pytest.raises(InputError, match="md_temperatures"):
            sample([COPPER], config(num_md=3, md_temperatures=temperatures), EMT())


def test_calculator_that_fails_in_dynamics_is_counted() -> None:
    class Failing(Springs):
        def calculate(self, atoms=None, *args, **kwargs) -> None:
            super().calculate(atoms, *args, **kwargs)
            if np.abs(atoms.get_positions() - self.home).max() > 0.3:
                raise RuntimeError("SCF not converged\nsecond line")

    rejected: Counter[str] = Counter()
    settings = config(num_rattle=1, num_md=5, md_temperatures=[3000.0], md_warmup=60)
    frames = sample(builtin("ethanol"), settings, Failing(1.0), rejected=rejected)
    assert len(frames) == 1
    assert rejected == {"the calculator failed in molecular dynamics (SCF not converged)": 5}


# --- built-in structures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("silicon", "Si64"),
        ("silicon-8", "Si8"),
        ("water", "H128O64"),
        ("water-32", "H64O32"),
        ("water-8", "H16O8"),
        ("ethanol", "C2H6O"),
        ("aspirin", "C9H8O4"),
        ("alanine-dipeptide", "C6H12N2O2"),
    ],
)
def test_builtin_structures(name: str, formula: str) -> None:
    (s,) = builtin(f"builtin:{name}")
    assert s.formula == formula
    assert closest_ratio(s) > 0.8
    assert s.info["source"] == f"builtin:{name}"


@pytest.mark.parametrize("name", ["ethanol", "aspirin", "alanine-dipeptide"])
def test_builtin_molecules_are_minima_of_gfn2(name: str) -> None:
    tblite = pytest.importorskip("tblite.ase")
    atoms = builtin(name)[0].to_atoms()
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    assert np.abs(atoms.get_forces()).max() < 0.01


def test_alanine_is_left_handed() -> None:
    s = builtin("alanine-dipeptide")[0]
    atoms = s.to_atoms()
    n, carbon, beta = (s.positions[i] - s.positions[5] for i in (3, 6, 7))
    assert np.dot(np.cross(n, carbon), beta) > 0
    assert atoms.get_dihedral(1, 3, 5, 6) - 360 == pytest.approx(-82, abs=2)  # phi, C7eq


def test_water_has_its_density() -> None:
    for per_side in (2, 4):
        s = water_box(per_side)
        mass = s.to_atoms().get_masses().sum() / units.kg * 1000  # g
        assert mass / (np.linalg.det(s.cell) * 1e-24) == pytest.approx(0.997, rel=1e-3)
        d = s.to_atoms().get_all_distances(mic=True)
        np.testing.assert_allclose(d[0::3, 1::3].min(axis=1), 0.9572, atol=1e-9)


def test_the_small_water_boxes_can_run() -> None:
    large, small = builtin("water-32")[0], builtin("water-8")[0]
    # Gates repeat what is narrower than two usual cutoffs: eight times the calls' cost.
    assert len(in_box(large)) == len(large)
    for s in (large, small):
        mass = s.to_atoms().get_masses().sum() / units.kg * 1000  # g
        assert mass / (np.linalg.det(s.cell) * 1e-24) == pytest.approx(0.95, rel=1e-3)
        d = s.to_atoms().get_all_distances(mic=True)
        apart = np.arange(len(s))[:, None] // 3 != np.arange(len(s)) // 3
        assert d[apart].min() > 1.5


def test_unknown_builtin_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no structure builtin:silicone; did you mean 'silicon'"):
        builtin("builtin:silicone")
