"""What is said of a set of structures, joining files, and splits that training can live with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from support.commands import run
from support.labelled import emt_crystals, emt_molecules

from mlff_distiller.data import (
    HDF5Dataset,
    HDF5Writer,
    Structure,
    ensure_splits,
    structures_hash,
    write_structures,
)
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.data.splits import draw_splits
from mlff_distiller.data.survey import geometry_key, survey
from mlff_distiller.errors import InputError, MismatchError
from mlff_distiller.teachers import CalculatorTeacher, get_teacher, label_dataset
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

ATOM = Structure([29], [[0.0, 0, 0]], energy=-0.3, info={"config_type": "IsolatedAtom"})


def refuse(*arguments: object, say: list[str], cwd: Path) -> str:
    said = run(*arguments, code=2, cwd=cwd).stderr
    for part in say:
        assert part in said, said
    return said


def test_ranges_in_plain_units() -> None:
    frames = emt_crystals(6)
    frames[2] = frames[2].with_labels(frames[2].energy)
    found = survey([ATOM, *frames])
    assert found.counts == {"energy": 7, "forces": 5, "stress": 5}
    per_atom = [s.energy / len(s) for s in [ATOM, *frames]]
    assert found.energy_per_atom == (min(per_atom), max(per_atom))
    largest = max(np.linalg.norm(s.forces, axis=1).max() for s in frames if s.forces is not None)
    assert found.max_force == pytest.approx(largest)
    stress = max(np.abs(s.stress).max() for s in frames if s.stress is not None)
    assert found.max_stress == pytest.approx(stress * EV_PER_ANGSTROM3_IN_GPA)
    distance, frame, i, j = found.closest
    atoms = frames[frame - 1].to_atoms()
    assert distance == pytest.approx(atoms.get_distance(i, j, mic=True), abs=1e-6)
    everything = [s.to_atoms().get_all_distances(mic=True) for s in frames]
    assert distance == pytest.approx(min(d[d > 0].min() for d in everything), abs=1e-6)
    assert not found.bad
    assert not found.warnings


def test_what_looks_wrong_is_named() -> None:
    frames = emt_crystals(12)
    overlap = frames[0].positions.copy()
    overlap[3] = overlap[0] + frames[0].cell[1]  # on a periodic image
    rest = {"cell": frames[0].cell, "pbc": frames[0].pbc}
    frames[3] = Structure(frames[0].atomic_numbers, overlap, energy=1.0, **rest)
    frames[5] = frames[4].with_labels(frames[4].energy, frames[4].forces, frames[4].stress)
    frames[6] = frames[6].with_labels(np.nan)
    frames[7] = frames[7].with_labels(1.0, frames[7].forces * 1e6)
    frames[8] = frames[8].with_labels(frames[8].energy, frames[8].forces, frames[8].stress + 2.0)
    found = survey(frames)
    assert set(found.bad) == {3, 6, 7}
    assert "atoms 0 and 3 are at one point" in found.bad[3]
    assert "NaN" in found.bad[6]
    assert "eV/Å" in found.bad[7]
    assert found.duplicates == {5: 4}
    text = "\n".join(found.warnings)
    for part in ("3 (atoms 0 and 3", "5 (of 4)", "--drop-bad", "stress above 100 GPa in 1 struct"):
        assert part in text
    assert "--units stress=kbar" in text


def test_missing_forces_and_labels_are_said() -> None:
    frames = [s.with_labels(s.energy) for s in emt_crystals(8)]
    assert any("no forces in all of 8" in w for w in survey(frames).warnings)
    frames[0] = emt_crystals(8)[0]
    assert any("no forces in 7 of 8" in w for w in survey(frames).warnings)
    frames[1] = frames[1].with_labels(None)
    assert any("no labels in 1 structures (1)" in w for w in survey(frames).warnings)
    # Isolated atoms have none by nature.
    assert not survey([ATOM, *emt_crystals(8)]).warnings


@pytest.mark.parametrize("kind", ["level of theory", "charge", "one wrong"])
def test_energies_that_no_offset_explains(kind: str) -> None:
    frames = emt_crystals(20)
    for i in range(0, 20, 20 if kind == "one wrong" else 3):
        shift = {"level of theory": -900.0 * 4, "charge": 12.6, "one wrong": 500.0}[kind]
        frames[i] = frames[i].with_labels(frames[i].energy + shift, frames[i].forces)
    text = "\n".join(survey(frames).warnings)
    assert "two groups" in text or "no offset per element" in text
    assert "0" in text


def test_ordinary_data_raise_no_alarm() -> None:
    assert not survey(emt_crystals(30)).warnings
    assert not survey(emt_molecules(30)).warnings
    stretched = []
    for scale in np.linspace(0.8, 1.6, 25):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        stretched.append(Structure.from_atoms(atoms))
    text = "\n".join(survey(stretched).warnings)
    assert "two groups" not in text


@pytest.mark.parametrize("key", ["charge", "total_charge", "spin", "multiplicity"])
def test_several_charges_or_spins_are_counted(key: str) -> None:
    frames = [
        s.with_labels(s.energy, s.forces, **{key: int(i % 3 == 0)})
        for i, s in enumerate(emt_crystals(9))
    ]
    (warning,) = [w for w in survey(frames).warnings if "charge or spin" in w]
    assert "0 in 6" in warning
    assert "1 in 3" in warning
    same = [s.with_labels(s.energy, s.forces, **{key: 1}) for s in frames]
    assert not survey(same).warnings


def test_convert_says_what_it_took(tmp_path) -> None:
    lines = []
    for s in emt_crystals(4):
        cell = " ".join(map(str, s.cell.ravel()))
        lines += [
            "4",
            f'Lattice="{cell}" Properties=species:S:1:pos:R:3:REF_forces:R:3:forces:R:3 ',
        ]
        lines[-1] += f"energy=0.5 REF_energy={s.energy}"
        for symbol, p, f in zip(s.to_atoms().symbols, s.positions, s.forces, strict=True):
            lines.append(f"{symbol} " + " ".join(map(str, [*p, *f, 0.1, 0.2, 0.3])))
    (tmp_path / "a.xyz").write_text("\n".join(lines))
    said = run("convert", "a.xyz", "a.h5", cwd=tmp_path)
    for part in ("energy from REF_energy", "forces from REF_forces", "energy (in 4)", "4 of 4",
                 "eV/atom", "eV/Å", "closest pair"):  # fmt: skip
        assert part in said.stdout
    assert said.stderr.count("note: labels taken") == 1
    result = json.loads(run("convert", "a.xyz", "b.h5", "--json", cwd=tmp_path).stdout)
    assert result["num_labelled"] == 4
    assert result["survey"]["labels"] == {"energy": 4, "forces": 4, "stress": 0}
    assert result["sources"][0]["left"] == {"energy": 4, "forces": 4}
    data = HDF5Dataset(tmp_path / "a.h5")
    assert data.provenance[0]["labels"]["energy"] == ["REF_energy"]
    assert "a.xyz" in run("info", "a.h5", cwd=tmp_path).stdout
    info = run("info", "a.xyz", cwd=tmp_path)
    assert "energy from REF_energy" in info.stdout
    told = ["convert", "a.xyz", "c.h5", "--energy-key", "energy", "--forces-key", "forces"]
    run(*told, "--units", "energy=Hartree", cwd=tmp_path)
    assert HDF5Dataset(tmp_path / "c.h5")[0].energy == pytest.approx(0.5 * 27.211386, rel=1e-6)
    refuse("convert", "a.h5", "d.h5", "--units", "eV", say=["leave the options"], cwd=tmp_path)


def test_drop_bad_leaves_out_what_makes_no_sense(tmp_path) -> None:
    frames = emt_crystals(6)
    text = ""
    for i, s in enumerate([*frames, frames[1], frames[2]]):
        s.to_atoms().write(tmp_path / "one.extxyz")
        one = (tmp_path / "one.extxyz").read_text()
        text += one.replace("energy=", "energy=nan old=") if i == 7 else one
    (tmp_path / "a.xyz").write_text(text)
    refuse("convert", "a.xyz", "a.h5", say=["structure 7", "NaN", "--drop-bad"], cwd=tmp_path)
    said = run("convert", "a.xyz", "a.h5", "--drop-bad", cwd=tmp_path).stdout
    assert "6 (like 1)" in said
    assert "7 (energy must be finite" in said
    assert len(HDF5Dataset(tmp_path / "a.h5")) == 6


def test_joining_keeps_teacher_splits_and_provenance(tmp_path) -> None:
    frames = emt_crystals(30)
    for name, part in {"a": frames[:20], "b": frames[20:]}.items():
        with HDF5Writer(tmp_path / f"{name}.h5", teacher="emt", versions={"ase": "3"}) as writer:
            writer.append(part)
    splits = ensure_splits(tmp_path / "a.h5", 0.2, 0.2, seed=3)
    run("convert", "a.h5", "b.h5", "-o", "c.h5", cwd=tmp_path)
    data = HDF5Dataset(tmp_path / "c.h5")
    assert data.hash() == structures_hash(frames)
    assert (data.teacher, data.versions) == ("emt", {"ase": "3"})
    assert [(e["file"], e["num_structures"], e["teacher"]) for e in data.provenance] == [
        ("a.h5", 20, "emt"), ("b.h5", 10, "emt"),
    ]  # fmt: skip
    assert data.provenance[1]["hash"] == structures_hash(frames[20:])
    assert {k: v.tolist() for k, v in data.splits.items()} == {
        k: v.tolist() for k, v in splits.items()
    }
    longer = ensure_splits(tmp_path / "c.h5", 0.2, 0.2, seed=3)
    assert all(set(splits[k]) <= set(longer[k]) for k in splits)
    assert sum(map(len, longer.values())) == 30
    # Joined again, the list grows; other kinds of files join as well.
    write_structures(tmp_path / "d.extxyz", emt_molecules(2))
    said = run("convert", "c.h5", "d.extxyz", "-o", "e.h5", cwd=tmp_path).stderr
    assert "several origins" in said
    data = HDF5Dataset(tmp_path / "e.h5")
    assert [e["file"] for e in data.provenance] == ["a.h5", "b.h5", "d.extxyz"]
    assert data.teacher == "emt + unknown"
    run("convert", "c.h5", "f.h5", "--new-splits", cwd=tmp_path)
    assert not HDF5Dataset(tmp_path / "f.h5").splits
    refuse("convert", "a.h5", "b.h5", "c.h5", say=["convert a.h5 b.h5 -o c.h5"], cwd=tmp_path)
    refuse("convert", "a.h5", "b.h5", "-o", "b.h5", say=["same file"], cwd=tmp_path)
    refuse("convert", "a.h5", say=["a source and a target"], cwd=tmp_path)


def test_repeated_structures_of_joined_files_keep_their_split(tmp_path) -> None:
    frames = emt_crystals(12)
    write_structures(tmp_path / "a.h5", frames[:8])
    write_structures(tmp_path / "b.h5", frames[4:])
    splits = {"train": [0, 1, 2, 3, 4], "valid": [5, 6], "test": [7]}
    store_splits(tmp_path / "a.h5", {k: np.array(v) for k, v in splits.items()})
    store_splits(tmp_path / "b.h5", {"train": np.array([0, 1, 2, 3, 4, 5, 6, 7]),
                                     "valid": np.array([], int), "test": np.array([], int)})  # fmt: skip
    said = run("convert", "a.h5", "b.h5", "-o", "c.h5", "--drop-bad", cwd=tmp_path).stdout
    assert "8 (like 4)" in said
    data = HDF5Dataset(tmp_path / "c.h5")
    assert data.hash() == structures_hash(frames)
    found = {k: v.tolist() for k, v in data.splits.items()}
    assert found == {"train": [0, 1, 2, 3, 4, 8, 9, 10, 11], "valid": [5, 6], "test": [7]}


def test_label_extends_a_file(tmp_path) -> None:
    frames = [s.with_labels(None) for s in emt_crystals(20)]
    emt = get_teacher("emt")
    path = tmp_path / "lab.h5"
    label_dataset(frames[:8], emt, path, progress=False)
    before = HDF5Dataset(path).hash()
    shuffled = [frames[i] for i in np.random.default_rng(0).permutation(20)]
    with pytest.raises(InputError, match="same structures"):
        label_dataset(shuffled, emt, path, progress=False)
    report = label_dataset(shuffled, emt, path, extend=True, progress=False, batch_size=3)
    assert (report.num_before, report.num_known, report.num_labelled) == (8, 8, 20)
    assert "8 were there" in str(report)
    data = HDF5Dataset(path)
    assert structures_hash(data[:8]) == before
    assert {geometry_key(s) for s in data} == {geometry_key(s) for s in frames}
    again = label_dataset(shuffled, emt, path, extend=True, progress=False)
    assert (again.num_resumed, again.num_labelled) == (20, 20)
    # Labels of another origin are not extended.
    write_structures(tmp_path / "dft.h5", emt_crystals(2))
    with pytest.raises(InputError, match="labels of unknown origin, got 'emt'"):
        label_dataset(frames, emt, tmp_path / "dft.h5", extend=True, progress=False)


def test_extending_goes_on_after_an_interruption(tmp_path) -> None:
    frames = [s.with_labels(None) for s in emt_crystals(20)]
    frames[14] = frames[10]  # added twice, as without an interruption
    emt = get_teacher("emt")
    for name in ("whole", "cut"):
        label_dataset(frames[:8], emt, tmp_path / f"{name}.h5", progress=False)
    label_dataset(frames, emt, tmp_path / "whole.h5", extend=True, batch_size=3, progress=False)

    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_dataset(frames, emt, tmp_path / "cut.h5", extend=True, batch_size=3, progress=stop)
    report = label_dataset(
        frames, emt, tmp_path / "cut.h5", extend=True, batch_size=3, progress=False
    )
    assert (report.num_resumed, report.num_before, report.num_labelled) == (12, 8, 20)
    assert HDF5Dataset(tmp_path / "cut.h5").hash() == HDF5Dataset(tmp_path / "whole.h5").hash()


def test_a_higher_limit_of_forces_looks_at_the_rejected_again(tmp_path) -> None:
    frames = [s.with_labels(None) for s in emt_crystals(12)]
    emt, path = get_teacher("emt"), tmp_path / "lab.h5"
    forces = sorted(np.linalg.norm(s.forces, axis=1).max() for s in emt_crystals(12))
    low = label_dataset(frames, emt, path, max_force=float(forces[6]) + 1e-6, progress=False)
    assert low.num_labelled == 7
    limits = {"max_force": 1000.0, "progress": False}
    with pytest.raises(MismatchError, match=r"max_force 1000.0 to go on, got \d"):
        label_dataset(frames, emt, path, **limits)
    calls: list[int] = []

    class Counted(EMT):
        def calculate(self, *arguments: Any, **keywords: Any) -> None:
            calls.append(1)
            super().calculate(*arguments, **keywords)

    high = label_dataset(frames, CalculatorTeacher("emt", Counted()), path, extend=True, **limits)
    assert (high.num_before, high.num_known, high.num_labelled, len(calls)) == (7, 7, 12, 5)
    assert not high.rejected
    again = label_dataset(frames, emt, path, extend=True, **limits)
    assert (again.num_resumed, again.num_labelled) == (12, 12)
    # Nothing can be added that would make this a choice by the lower limit.
    with pytest.raises(MismatchError, match=r"max_force \S+ to go on, got a force of"):
        label_dataset(frames, emt, path, extend=True, max_force=float(forces[6]), progress=False)


def test_extending_goes_before_starting_anew(tmp_path) -> None:
    frames = [s.with_labels(None) for s in emt_crystals(6)]
    path, both = tmp_path / "lab.h5", {"extend": True, "on_mismatch": "restart", "progress": False}
    label_dataset(frames[:4], get_teacher("emt"), path, progress=False)
    report = label_dataset(frames, get_teacher("emt"), path, **both)
    assert (report.num_before, report.num_labelled) == (4, 6)
    assert not (tmp_path / "lab.h5.old").exists()
    other = CalculatorTeacher("other", EMT())
    with pytest.raises(MismatchError, match="labelled by 'emt', got 'other'"):
        label_dataset(frames, other, path, extend=True, progress=False)
    report = label_dataset(frames, other, path, **both)
    assert (report.num_before, report.num_labelled) == (0, 6)
    assert HDF5Dataset(tmp_path / "lab.h5.old").teacher == "emt"
    write_structures(tmp_path / "dft.h5", emt_crystals(2))  # of unknown origin
    assert label_dataset(frames, other, tmp_path / "dft.h5", **both).num_before == 0


@pytest.mark.parametrize("seed", range(12))
def test_rare_elements_and_kinds_are_trained_on(tmp_path, seed: int) -> None:
    frames = emt_crystals(30)
    rare = molecule("CO")
    rare.info["config_type"] = "dimer"
    for i, s in enumerate(frames):
        frames[i] = Structure([29] * 4, s.positions, s.cell, s.pbc, s.energy, s.forces,
                              info={"config_type": "bulk"})  # fmt: skip
    frames[11] = Structure.from_atoms(rare).with_labels(-1.0)
    frames[12] = ATOM
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    splits = ensure_splits(path, 0.2, 0.2, seed=seed)
    assert {11, 12} <= set(splits["train"].tolist())
    assert [len(splits[k]) for k in ("train", "valid", "test")] == [18, 6, 6]
    assert sorted(np.concatenate(list(splits.values()))) == list(range(30))


def test_splits_without_rarities_stay_what_they_were() -> None:
    groups = [f"g{i}" for i in range(40)]
    features = [{"Cu"} if i % 2 else {"Cu", "Ag"} for i in range(40)]
    plain = draw_splits(groups, 0.2, 0.2, seed=1)
    covered = draw_splits(groups, 0.2, 0.2, seed=1, features=features)
    assert all(np.array_equal(plain[k], covered[k]) for k in plain)


def test_stored_splits_that_keep_an_element_out_are_named() -> None:
    groups = [f"g{i}" for i in range(6)]
    features = [{"Ag"}] + [{"Cu"}] * 5
    stored = {"train": np.array([1, 2]), "valid": np.array([0]), "test": np.array([3])}
    with pytest.raises(InputError, match=r"Ag occurs only outside .*--new-splits"):
        draw_splits(groups, 0.2, 0.2, 0, features=features, stored=stored, name="a.h5")


def test_other_files_than_hdf5_are_told_how_to_become_one(tmp_path) -> None:
    write_structures(tmp_path / "a.xyz", emt_crystals(2))
    said = refuse("train", "--data", "a.xyz", "-o", "run", say=["a.xyz"], cwd=tmp_path)
    assert "mlff-distiller convert a.xyz a.h5" in said


def test_stress_that_is_not_symmetric_is_warned_of() -> None:
    even = emt_crystals(3)
    assert not any("symmetric" in w for w in survey(even).warnings)
    stress = even[1].stress + np.array([[0, 0.01, 0], [0, 0, 0], [0, 0, 0]])
    even[1] = even[1].with_labels(even[1].energy, even[1].forces, stress)
    (warning,) = (w for w in survey(even).warnings if "symmetric" in w)
    assert "1 structures (1), by up to 1.6 GPa" in warning
