"""Every kind of sampling does what its section says; together they are composed and counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.data import covalent_radii
from ase.io import write
from support.commands import run

from mlff_distiller.config import SamplingConfig, from_dict
from mlff_distiller.data import HDF5Dataset, Structure, structures_hash
from mlff_distiller.data.bonds import find_molecules
from mlff_distiller.data.structure import is_isolated
from mlff_distiller.errors import InputError
from mlff_distiller.pipeline import sample as station
from mlff_distiller.pipeline.stage import Hashed
from mlff_distiller.sampling import builtin, count_sources, sample
from mlff_distiller.sampling.dimers import FEW
from mlff_distiller.sampling.geometry import closest_ratio
from mlff_distiller.sampling.sample import NEAR_COPY, SECTIONS
from mlff_distiller.training.reference import isolated_energies

COPPER = Structure.from_atoms(bulk("Cu", cubic=True))
SALT = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True))


def settings(**changes: object) -> SamplingConfig:
    return from_dict(SamplingConfig, {"num_rattle": 0, "num_md": 0, **changes})


def held(structure: Structure, atoms: list[int]) -> Structure:
    fixed = np.zeros((len(structure), 3), dtype=bool)
    fixed[atoms] = True
    return Structure(
        structure.atomic_numbers, structure.positions, structure.cell, structure.pbc, fixed=fixed
    )


def test_all_kinds_compose_and_are_the_same_again() -> None:
    config = settings(
        num_rattle=3, isolated_atoms=True, strain={"number": 6}, dimers={"number": 8},
        defects={"number": 10, "max_atoms": 40},
    )  # fmt: skip
    frames = sample([SALT], config)
    assert count_sources(frames) == {
        "rattle": 3, "strain (volume)": 3, "strain (shear)": 3, "dimer (vacuum)": 4,
        "dimer (condensed)": 4, "defect (vacancy)": 2, "defect (interstitial)": 2,
        "defect (antisite)": 2, "defect (surface)": 2, "defect (stacking)": 2, "isolated-atom": 2,
    }  # fmt: skip
    assert structures_hash(frames) == structures_hash(sample([SALT], config))
    assert len({s.info["group"] for s in frames}) == len(frames)
    other = from_dict(SamplingConfig, {
        "num_rattle": 3, "num_md": 0, "isolated_atoms": True, "strain": {"number": 6, "seed": 5},
        "dimers": {"number": 8}, "defects": {"number": 10, "max_atoms": 40},
    })  # fmt: skip
    changed = [
        a.info["source"]
        for a, b in zip(frames, sample([SALT], other), strict=True)
        if not np.array_equal(a.positions, b.positions)
    ]
    assert set(changed) == {"strain"}  # a seed of its own


def test_many_starting_structures_are_families() -> None:
    base = [
        Structure(COPPER.atomic_numbers, COPPER.positions * a, COPPER.cell * a, [True] * 3)
        for a in np.linspace(0.95, 1.05, 10)
    ]
    config = settings(strain={"number": 20}, defects={"number": 10}, dimers={"number": 4})
    frames = sample(base, config)
    for s in frames:
        if "parent" in s.info:
            assert s.info["group"] == f"base-{s.info['parent']}"
    assert {s.info["parent"] for s in frames if s.info["source"] == "strain"} == set(range(10))


def test_volumes_are_as_asked() -> None:
    frames = sample([COPPER, SALT], settings(strain={"number": 20, "rattle_stdev": 0.0}))
    for parent, base in enumerate((COPPER, SALT)):
        mine = [s for s in frames if s.info["parent"] == parent]
        ladder = [s for s in mine if s.info["kind"] == "volume"]
        linear = [(np.linalg.det(s.cell) / np.linalg.det(base.cell)) ** (1 / 3) - 1 for s in ladder]
        np.testing.assert_allclose(linear, np.linspace(-0.12, 0.12, 5), atol=1e-9)
        sheared = [np.linalg.solve(base.cell, s.cell) - np.eye(3)
                   for s in mine if s.info["kind"] == "shear"]  # fmt: skip
        assert len(sheared) == 5
        off = np.abs([e[np.triu_indices(3, 1)] for e in sheared])
        assert 0.03 < off.max() <= 0.08
        np.testing.assert_allclose(sheared, np.transpose(sheared, (0, 2, 1)), atol=1e-12)
        for s in mine:
            assert np.allclose(np.linalg.solve(s.cell.T, s.positions.T),
                               np.linalg.solve(base.cell.T, base.positions.T))  # fmt: skip


def test_molecules_are_not_strained_inside() -> None:
    water = builtin("water")[0]
    config = settings(strain={"number": 6, "rattle_stdev": 0.0, "linear": [-0.05, 0.1]})
    for s in sample([water], config):
        np.testing.assert_allclose(
            np.linalg.norm(s.positions[1::3] - s.positions[::3], axis=1), 0.9572, atol=1e-9
        )
        assert find_molecules(s).number == 64
        assert abs(np.linalg.det(s.cell) / np.linalg.det(water.cell) - 1) > 1e-3


def test_strain_needs_a_cell() -> None:
    for base in (builtin("ethanol"), [held(COPPER, [0])]):
        with pytest.raises(InputError, match=r"set sampling\.strain\.number to 0"):
            sample(base, settings(strain={"number": 2}))
    with pytest.raises(InputError, match="from compression to expansion"):
        settings(strain={"linear": [0.1, -0.1]})


def test_dimers_cover_the_range() -> None:
    frames = sample([SALT], settings(dimers={"number": 36, "condensed": 0.5}))
    for kind in ("vacuum", "condensed"):
        for z1, z2 in ((11, 11), (11, 17), (17, 17)):
            name = "-".join({11: "Na", 17: "Cl"}[z] for z in (z1, z2))
            mine = [s for s in frames if s.info["kind"] == kind and s.info["pair"] == name]
            radii = covalent_radii[z1] + covalent_radii[z2]
            distances = []
            for s in mine:
                atoms = s.to_atoms(labels=False)
                a, b = s.info.get("atoms", [0, 1])
                assert sorted(s.atomic_numbers[[a, b]]) == [z1, z2]
                distances.append(atoms.get_distance(a, b, mic=True))
                assert distances[-1] == pytest.approx(s.info["distance"], abs=1e-3)
            assert len(mine) == 6
            if kind == "vacuum":
                assert min(distances) == pytest.approx(0.55 * radii)
                assert max(distances) == pytest.approx(6.5)
                assert not any(s.pbc.any() for s in mine)
            else:
                assert 0.55 * radii < min(distances) < 0.65 * radii
                assert {len(s) for s in mine} == {8}


def test_dimers_and_atoms_of_a_teacher_that_needs_a_cell() -> None:
    config = settings(isolated_atoms=True, box=12.0, dimers={"number": 4, "condensed": 0.0})
    frames = sample([COPPER], config, periodic_only=True)
    for s in frames:
        assert s.pbc.all()
        reach = s.info.get("distance", 0.0)
        apart = s.cell[0, 0] - np.ptp(s.positions, axis=0).max()
        assert apart >= 10.0 - 1e-9
        assert s.cell[0, 0] >= 12.0
        assert s.to_atoms().get_all_distances(mic=True).max() == pytest.approx(reach, abs=1e-3)
    atom = frames[-1]
    assert is_isolated(atom.atomic_numbers, atom.info)
    assert atom.info["config_type"] == "IsolatedAtom"
    assert isolated_energies([atom.with_labels(-1.5)]) == {29: -1.5}


def test_few_dimers_are_in_the_middle_and_too_few_are_said() -> None:
    rejected: Counter[str] = Counter()
    config = settings(dimers={"number": 2, "condensed": 0.0})
    frames = sample([SALT], config, rejected=rejected)
    assert rejected == {FEW: 1}
    for s, (a, b) in zip(frames, ((11, 11), (11, 17)), strict=True):
        short = 0.55 * (covalent_radii[a] + covalent_radii[b])
        assert s.info["distance"] == pytest.approx(np.sqrt(short * 6.5), abs=1e-3)
    with pytest.raises(InputError, match="three periodic directions, got C2H6O"):
        sample(builtin("ethanol"), settings(num_rattle=1), periodic_only=True)


def test_pushed_pairs_leave_held_atoms_alone() -> None:
    base = held(SALT, [0, 1, 2, 3])
    frames = sample([base], settings(dimers={"number": 12, "condensed": 1.0}))
    assert len(frames) == 12
    for s in frames:
        np.testing.assert_array_equal(s.positions[:4], SALT.positions[:4])
        np.testing.assert_array_equal(s.fixed, base.fixed)
        assert min(s.info["atoms"]) > 3


def test_defects_are_rattled_and_not_too_large() -> None:
    config = settings(defects={"number": 40, "max_atoms": 70})
    frames = sample([COPPER, SALT], config)
    assert len(frames) > 35
    counts = Counter((s.info["parent"], s.info["kind"]) for s in frames)
    assert len(counts) == 9  # copper has no antisites
    for s in frames:
        assert len(s) <= 70
        assert closest_ratio(s) >= 0.6
        assert 0 < s.info["rattle_stdev"] <= 0.06
        per_cell = len(s) % 4 if s.info["parent"] == 0 else len(s) % 8
        gained = {"vacancy": -1, "interstitial": 1}.get(s.info["kind"], 0)
        assert per_cell == gained % (4 if s.info["parent"] == 0 else 8)
        assert s.pbc.tolist() == [True, True, s.info["kind"] != "surface"]
    assert all(s.pbc.all() for s in sample([COPPER], config, periodic_only=True))


def test_defects_of_what_has_none() -> None:
    for base in (builtin("ethanol"), builtin("water")):
        with pytest.raises(InputError, match=r"needs a crystal .* set sampling\.defects\.number"):
            sample(base, settings(defects={"number": 2}))
    with pytest.raises(InputError, match="needs a crystal"):
        sample([COPPER], settings(defects={"number": 2, "kinds": ["antisite"]}))
    with pytest.raises(InputError, match="needs a crystal"):
        sample([held(COPPER, [0])], settings(defects={"number": 2, "kinds": ["surface"]}))
    base = held(SALT, [0, 5])
    kinds = ["vacancy", "interstitial", "antisite"]
    for s in sample([base], settings(defects={"number": 9, "kinds": kinds})):
        still = s.fixed.any(axis=1)
        assert np.isin(s.positions[still].round(9), SALT.positions.round(9) % 5.64).mean() > 0.3
        assert still.sum() % 2 == 0


def test_near_copies_are_dropped_and_counted() -> None:
    rejected: Counter[str] = Counter()
    config = settings(
        num_rattle=40, rattle_stdev=[0.0001, 0.1], max_strain=0.0, keep=0.5, isolated_atoms=True
    )
    frames = sample([SALT], config, rejected=rejected)
    widths = Counter(s.info.get("rattle_stdev") for s in frames)
    assert widths[0.1] >= 18
    assert widths[None] == 2
    assert rejected == {NEAR_COPY: 42 - len(frames)}
    assert len(frames) in (21, 22)


def test_the_station_counts_kinds_and_what_is_left_out(tmp_path: Path) -> None:
    config = settings(strain={"number": 6}, dimers={"number": 6}, modes={"number": 2}, keep=0.5)
    start = Hashed([COPPER], structures_hash([COPPER]))
    lines: list[str] = []
    result = station.work(station.Inputs(start, config, "emt", {}), tmp_path, lines.append)
    frames = HDF5Dataset(tmp_path / "frames.h5", require_labels=False)
    assert sum(result.sources.values()) == result.num_frames == len(frames) == 7
    assert result.rejected[NEAR_COPY] == 7
    assert f"not sampled: 7 x {NEAR_COPY}" in lines
    assert not (tmp_path / station.PARTIAL).exists()


def test_page_shows_settings_that_work() -> None:
    text = (Path(__file__).parents[1] / "docs" / "sampling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        from_dict(SamplingConfig, yaml.safe_load(block), "sampling")
    inline = re.findall(r"\| `(\w+: [^`]+)` ", text)
    assert len(inline) == 10
    shown = [from_dict(SamplingConfig, yaml.safe_load(line), "sampling") for line in inline]
    # Every section with a number of frames is on the page.
    for name in SECTIONS:
        assert any(getattr(config, name).number for config in shown), name


def test_command_with_a_file_of_all_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", bulk("AuCu", "rocksalt", a=5.2, cubic=True))
    (tmp_path / "s.yaml").write_text(
        "{num_rattle: 2, num_md: 2, md_pressures: [1.0], md_temperatures: [300], md_warmup: 1,"
        " md_interval: 1, isolated_atoms: true, strain: {number: 2}, dimers: {number: 6},"
        " defects: {number: 5, max_atoms: 40}, modes: {number: 2}, walk: {number: 2, max_force: 99},"
        " melt: {number: 2, heat_steps: 2, hold_steps: 2, quench_steps: 2}}"
    )
    result = run(
        "sample", "a.extxyz", "--config", "s.yaml", "--teacher", "emt", "-o", "f.h5", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(result.stdout)["sources"]
    kinds = {name.split()[0] for name in found}
    assert kinds == {
        "rattle", "strain", "dimer", "defect", "isolated-atom", "modes", "walk", "md", "melt",
    }  # fmt: skip
    assert sum(found.values()) == len(HDF5Dataset(tmp_path / "f.h5", require_labels=False))
    (tmp_path / "m.yaml").write_text("{num_rattle: 0, molecules: {number: 5}}")
    result = run(
        "sample", "builtin:ethanol", "--config", "m.yaml", "-o", "m.h5", "--json", cwd=tmp_path
    )
    assert sum(json.loads(result.stdout)["sources"].values()) == 5
