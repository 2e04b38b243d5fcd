"""Structures, files and splits: what is written comes back, and bad input is named."""

from __future__ import annotations

import dataclasses
import json
import pickle

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mlff_distiller.data import (
    HDF5Dataset,
    HDF5Writer,
    Structure,
    check_structure,
    ensure_splits,
    read_structures,
    structures_hash,
    write_structures,
)
from mlff_distiller.data.splits import draw_splits
from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_IN_KCAL_PER_MOL


def labelled(number: int, seed: int = 0) -> list[Structure]:
    """Molecules without and crystals with a stress, in turn."""
    rng = np.random.default_rng(seed)
    structures = []
    for i in range(number):
        atoms = bulk("Cu", cubic=True) if i % 2 else molecule("CH3OH")
        atoms.rattle(0.05, seed=i)
        stress = rng.normal(size=(3, 3))
        structures.append(
            Structure.from_atoms(atoms).with_labels(
                float(rng.normal()),
                rng.normal(size=(len(atoms), 3)),
                stress + stress.T if i % 2 else None,
                group=f"family-{i // 3}",
            )
        )
    return structures


def one(**changes: object) -> Structure:
    fields: dict = {
        "atomic_numbers": [29, 29],
        "positions": [[0.0, 0, 0], [2.5, 0, 0]],
        "cell": np.eye(3) * 8,
        "pbc": [True] * 3,
    }
    return Structure(**{**fields, **changes})


def assert_one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --- Structure -------------------------------------------------------------------------------


def test_from_atoms_takes_labels_and_never_computes() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    assert Structure.from_atoms(atoms).energy is None
    energy, forces, stress = (
        atoms.get_potential_energy(),
        atoms.get_forces(),
        atoms.get_stress(voigt=False),
    )
    s = Structure.from_atoms(atoms)
    assert s.energy == energy
    np.testing.assert_array_equal(s.forces, forces)
    np.testing.assert_array_equal(s.stress, stress)
    back = s.to_atoms()
    assert back.get_potential_energy() == energy
    np.testing.assert_array_equal(back.get_stress(voigt=False), stress)


def test_virial_becomes_stress_with_the_sign_of_ase() -> None:
    atoms = Atoms("Cu", cell=np.eye(3) * 2.0, pbc=True)
    atoms.info["virial"] = np.diag([8.0, 16.0, 24.0])
    np.testing.assert_allclose(Structure.from_atoms(atoms).stress, -np.diag([1.0, 2.0, 3.0]))


def test_prefixed_labels_are_found() -> None:
    atoms = Atoms("Cu")
    atoms.info["REF_energy"] = -3.5
    atoms.arrays["REF_forces"] = np.ones((1, 3))
    s = Structure.from_atoms(atoms)
    assert s.energy == -3.5
    assert s.info == {}
    np.testing.assert_array_equal(s.forces, np.ones((1, 3)))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"atomic_numbers": [29, 0]}, ("1..118", "got 0")),
        ({"atomic_numbers": [29, 119]}, ("1..118", "got 119")),
        ({"positions": [[0.0, 0, 0], [np.nan, 0, 0]]}, ("positions", "NaN", "atom 1 (Cu)")),
        ({"atomic_numbers": [29]}, ("positions", "shape (1, 3)", "(2, 3)")),
        ({"atomic_numbers": [], "positions": np.zeros((0, 3))}, ("at least one atom",)),
        ({"forces": np.zeros((3, 3))}, ("forces", "(2, 3)", "(3, 3)")),
        ({"energy": np.nan}, ("energy", "finite")),
        ({"forces": [[0, 0, np.inf], [0, 0, 0]]}, ("forces", "atom 0")),
        ({"cell": np.zeros((3, 3))}, ("lattice vector 0", "pbc to false")),
        ({"cell": np.diag([1.0, 1.0, 0.0])}, ("lattice vector 2",)),
        ({"cell": np.eye(3)[[1, 0, 2]] * 8}, ("right-handed", "-512", "exchange")),
        ({"cell": [[8, 0, 0], [16, 0, 0], [0, 0, 8]]}, ("volume",)),
    ],
)
def test_invalid_structures_are_named(changes: dict, parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        check_structure(one(**changes), "frame 7")
    assert_one_line(error, "frame 7", *parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": np.zeros((3, 3)), "pbc": [False] * 3},
        {"cell": np.diag([5.0, 5.0, 0.0]), "pbc": [True, True, False]},
        {"cell": np.diag([0.0, 5.0, 0.0]), "pbc": [False, True, False]},
        {"cell": [[5, 0, 0], [4.9, 1, 0], [-3, 2, 6]]},
        {"cell": -np.eye(3), "pbc": [False] * 3},
    ],
)
def test_valid_cells_pass(changes: dict) -> None:
    check_structure(one(**changes))


# --- HDF5 ------------------------------------------------------------------------------------


def test_layout_and_round_trip(tmp_path) -> None:
    path, structures = tmp_path / "a.h5", labelled(7)
    with HDF5Writer(path, teacher="emt", versions={"ase": "3"}, seed=5) as writer:
        writer.append(structures[:3])
        writer.append(structures[3:])
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    atoms = sum(len(s) for s in structures)
    with h5py.File(path) as file:
        shapes = {name: file[name].shape for group in file for name in _datasets(file, group)}
        assert shapes == {
            "structures/atomic_numbers": (atoms,),
            "structures/atomic_numbers_splits": (8,),
            "structures/positions": (atoms, 3),
            "structures/cells": (7, 3, 3),
            "structures/pbc": (7, 3),
            "structures/info": (7,),
            "labels/energy": (7,),
            "labels/forces": (atoms, 3),
            "labels/stress": (7, 3, 3),
        }
        assert json.loads(file.attrs["units"])["energy"] == "eV"
    for in_memory in (True, False):
        data = HDF5Dataset(path, in_memory=in_memory)
        assert (data.teacher, data.versions, data.seed) == ("emt", {"ase": "3"}, 5)
        assert data.hash() == structures_hash(structures)
        assert [s.info for s in data] == [s.info for s in structures]
        assert data[0].stress is None
        assert data[1].stress is not None
        copy = pickle.loads(pickle.dumps(data))
        assert copy.hash() == data.hash()
        assert len(data[2:5]) == 3
        with pytest.raises(IndexError):
            data[7]


def _datasets(file: h5py.File, group: str) -> list[str]:
    return [f"{group}/{name}" for name in file[group]]


def test_hash_sees_every_quantity_but_not_the_storage(tmp_path) -> None:
    structures = labelled(4)
    reference = structures_hash(structures)
    many, once = tmp_path / "many.h5", tmp_path / "once.h5"
    for i in range(4):
        with HDF5Writer(many) as writer:
            writer.append(structures[i : i + 1])
    write_structures(once, structures)
    assert HDF5Dataset(many).hash() == HDF5Dataset(once).hash() == reference
    s = structures[1]
    assert structures_hash([s]) != structures_hash([s.with_labels(s.energy, s.forces, None)])
    nudged = s.with_labels(np.nextafter(s.energy, 9.0), s.forces, s.stress)
    assert structures_hash([s]) != structures_hash([nudged])
    held = np.arange(3 * len(s)).reshape(-1, 3) == 0
    for change in ({"pbc": ~s.pbc}, {"cell": s.cell + 1.0}, {"fixed": held}):
        assert structures_hash([s]) != structures_hash([dataclasses.replace(s, **change)]), change


def test_unmerged_batches_are_read(tmp_path) -> None:
    path, structures = tmp_path / "a.h5", labelled(6)
    with HDF5Writer(path) as writer:
        writer.append(structures[:2])
    writer = HDF5Writer(path)
    writer.append(structures[2:4], progress={"done": 4})
    writer.append(structures[4:])
    data = HDF5Dataset(path)
    assert data.hash() == structures_hash(structures)
    assert data.progress == {"done": 4}
    with pytest.raises(InputError, match="being written by another process"):
        HDF5Writer(path)
    writer.close()
    assert HDF5Dataset(path).hash() == structures_hash(structures)


def test_labels_may_differ_from_structure_to_structure(tmp_path) -> None:
    full, energy_only, bare = labelled(2)[1], labelled(1)[0], one()
    energy_only = energy_only.with_labels(-1.5)
    forces_only = labelled(1)[0].with_labels(None, np.ones((6, 3)))
    for name, order in {
        "a": [full, energy_only, bare, forces_only],
        "b": [bare, energy_only, full, forces_only],
        "c": [forces_only, bare, energy_only, full],
    }.items():
        at_once, one_by_one = tmp_path / f"{name}.h5", tmp_path / f"{name}1.h5"
        write_structures(at_once, order)
        for s in order:
            with HDF5Writer(one_by_one) as writer:
                writer.append([s])
        journal = HDF5Writer(tmp_path / f"{name}2.h5")
        journal.append(order[:2])
        journal.append(order[2:])
        for path in (at_once, one_by_one, tmp_path / f"{name}2.h5"):
            for in_memory in (True, False):
                data = HDF5Dataset(path, in_memory=in_memory)
                assert data.hash() == structures_hash(order)
                assert [s.energy for s in data] == [s.energy for s in order]
        journal.close()
        assert HDF5Dataset(tmp_path / f"{name}2.h5").hash() == structures_hash(order)
    # Nothing new in files whose structures have the same labels.
    write_structures(tmp_path / "same.h5", [full, full])
    with h5py.File(tmp_path / "same.h5") as file:
        assert set(file["labels"]) == {"energy", "forces", "stress"}


def test_appending_stops_at_bad_labels_and_other_teachers(tmp_path) -> None:
    path = tmp_path / "a.h5"
    with HDF5Writer(path, teacher="emt") as writer:
        writer.append(labelled(2))
        with pytest.raises(InputError, match="NaN"):
            writer.append([labelled(1)[0].with_labels(np.nan)])
        assert len(writer) == 2
    with pytest.raises(InputError, match=r"labelled by 'emt', got 'chgnet'"):
        HDF5Writer(path, teacher="chgnet")
    assert len(HDF5Dataset(path)) == 2


def foreign(path, **changes: object) -> None:
    """A file of the same layout as another program might write it."""
    arrays: dict = {
        "structures/atomic_numbers": np.array([8, 1, 1, 29], dtype="u1"),
        "structures/atomic_numbers_splits": np.array([0, 3, 4], dtype="i4"),
        "structures/positions": np.arange(12, dtype="f4").reshape(4, 3),
        "structures/cells": np.stack([np.zeros((3, 3)), np.eye(3) * 4]).astype("f4"),
        "structures/pbc": np.array([[0, 0, 0], [1, 1, 1]], dtype="u1"),
        "labels/energy": np.array([-1.0, -2.0], dtype="f4"),
        "labels/forces": np.ones((4, 3), dtype="f4"),
    }
    attributes = changes.pop("attributes", {})
    with h5py.File(path, "w") as file:
        for name, value in {**arrays, **changes}.items():
            if value is not None:
                file[name] = value
        file.attrs.update(attributes)


def test_foreign_files_open_with_defaults(tmp_path) -> None:
    path = tmp_path / "f.h5"
    voigt = np.array([[0] * 6, [1, 2, 3, 4, 5, 6]], dtype="f4")
    foreign(path, **{"labels/stress": voigt})
    data = HDF5Dataset(path)
    assert data.units["energy"] == "eV"
    assert data.teacher is None
    assert data.splits == {}
    np.testing.assert_array_equal(data[1].stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert data[0].atomic_numbers.tolist() == [8, 1, 1]
    foreign(path, **{"structures/pbc": None, "structures/cells": None})
    assert not HDF5Dataset(path)[1].pbc.any()
    foreign(path, **{"structures/pbc": None})
    assert [s.pbc.all() for s in HDF5Dataset(path)] == [False, True]


def test_foreign_units_are_converted(tmp_path) -> None:
    path = tmp_path / "f.h5"
    units = {"units": json.dumps({"energy": "kcal/mol", "length": "nm"})}
    foreign(path, attributes=units, **{"labels/stress": np.ones((2, 3, 3), dtype="f4")})
    s = HDF5Dataset(path)[1]
    np.testing.assert_allclose(s.stress, 1 / EV_IN_KCAL_PER_MOL / 1000)
    assert s.energy == pytest.approx(-2.0 / EV_IN_KCAL_PER_MOL, rel=1e-12)
    np.testing.assert_allclose(s.cell, np.eye(3) * 40)
    np.testing.assert_allclose(s.forces, 1 / EV_IN_KCAL_PER_MOL / 10)
    foreign(path, attributes={"units": "furlong"})
    with pytest.raises(InputError, match="unknown energy unit 'furlong'"):
        HDF5Dataset(path)


def test_missing_offsets_only_for_equal_structures(tmp_path) -> None:
    path = tmp_path / "f.h5"
    name = "structures/atomic_numbers_splits"
    foreign(path, **{name: None})
    with pytest.raises(InputError, match="atomic_numbers_splits"):
        HDF5Dataset(path)
    foreign(path, **{name: None, "structures/atomic_numbers": np.array([8, 1, 8, 1])})
    assert [len(s) for s in HDF5Dataset(path)] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"labels/forces": np.ones((3, 3))}, ("labels/forces", "(4, 3)", "(3, 3)")),
        ({"labels/energy": np.ones(3)}, ("labels/energy", "(2,)", "(3,)")),
        ({"labels/stress": np.ones((2, 5))}, ("labels/stress", "(2, 6)", "(2, 5)")),
        ({"structures/positions": None}, ("structures/positions",)),
        ({"structures/atomic_numbers_splits": [0, 3, 5]}, ("rise from 0 to the 4 atoms", "0..5")),
        ({"structures/atomic_numbers_splits": [0, 4, 4]}, ("rise",)),
        ({"splits/train": [0, 1], "splits/valid": [1]}, ("occur once",)),
        ({"splits/train": [0, 2]}, ("indices below 2",)),
    ],
)
def test_inconsistent_files_are_named(tmp_path, changes: dict, parts: tuple[str, ...]) -> None:
    path = tmp_path / "f.h5"
    foreign(path, **changes)
    with pytest.raises(InputError) as error:
        HDF5Dataset(path)
    assert_one_line(error, "f.h5", *parts)


def test_bad_values_are_found_when_taken(tmp_path) -> None:
    path = tmp_path / "f.h5"
    forces = np.ones((4, 3))
    forces[3, 1] = np.nan
    foreign(path, **{"labels/forces": forces})
    data = HDF5Dataset(path)
    assert data[0].energy == -1.0
    with pytest.raises(InputError, match=r"f.h5, structure 1: forces .*NaN"):
        data[1]


def test_missing_truncated_foreign_and_unlabelled_files(tmp_path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(InputError, match="no such file"):
        HDF5Dataset(path)
    write_structures(path, labelled(20))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 100, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="truncated or foreign") as error:
            HDF5Dataset(path)
        assert_one_line(error, "a.h5")
    path.write_text("not HDF5")
    with pytest.raises(InputError, match="truncated or foreign"):
        HDF5Dataset(path)
    write_structures(path, [one()])
    with pytest.raises(InputError, match=r"must hold labels/energy.*mlff-distiller label"):
        HDF5Dataset(path)
    assert len(read_structures(path)) == 1


# --- splits ----------------------------------------------------------------------------------


def test_splits_are_stored_and_keep_relatives_together(tmp_path) -> None:
    path = tmp_path / "a.h5"
    structures = labelled(60)
    write_structures(path, structures[:45])
    splits = ensure_splits(path, 0.2, 0.2, seed=1)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(45))
    assert [len(splits[s]) for s in ("train", "valid", "test")] == [27, 9, 9]
    side = {s.info["group"]: k for k, v in splits.items() for s in [structures[i] for i in v]}
    for name, indices in splits.items():
        assert all(side[structures[i].info["group"]] == name for i in indices)
    # Another seed changes nothing: they are stored.
    again = ensure_splits(path, 0.4, 0.1, seed=2)
    assert all(np.array_equal(again[k], splits[k]) for k in splits)
    data = HDF5Dataset(path)
    assert data.hash() == structures_hash(structures[:45])
    assert len(data.subset("valid")) == 9
    # Appending extends them, and relatives of old structures join their side.
    with HDF5Writer(path) as writer:
        writer.append(structures[45:] + structures[:3])
    longer = ensure_splits(path, 0.2, 0.2, seed=1)
    assert all(set(splits[k]) <= set(longer[k]) for k in splits)
    assert sum(len(v) for v in longer.values()) == 63
    assert {60, 61, 62} <= set(longer[side[structures[0].info["group"]]])


def test_splits_share_out_every_kind_and_refuse_too_few_groups() -> None:
    groups = [f"r{i}" for i in range(60)] + [f"m{i // 10}" for i in range(60)]
    kinds = ["rattle"] * 60 + ["md"] * 60
    splits = draw_splits(groups, 0.15, 0.15, seed=0, strata=kinds)
    for indices in splits.values():
        assert {kinds[i] for i in indices} == {"rattle", "md"}
    again = draw_splits(groups, 0.15, 0.15, seed=0, strata=kinds)
    other = draw_splits(groups, 0.15, 0.15, seed=1, strata=kinds)
    assert all(np.array_equal(splits[k], again[k]) for k in splits)
    assert not np.array_equal(splits["test"], other["test"])
    with pytest.raises(InputError, match="2 independent groups cannot fill the split"):
        draw_splits(["a"] * 50 + ["b"] * 50, 0.1, 0.1, seed=0)
    only = draw_splits(["a", "b"], 0.0, 0.0, seed=0)
    assert len(only["train"]) == 2


# --- other formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.db", "a.h5"])
def test_labels_survive_every_format(tmp_path, name: str) -> None:
    structures = labelled(4)
    write_structures(tmp_path / name, structures)
    back = read_structures(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for a, b in zip(structures, back, strict=True):
        np.testing.assert_array_equal(a.atomic_numbers, b.atomic_numbers)
        np.testing.assert_array_equal(a.pbc, b.pbc)
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-8)
        np.testing.assert_allclose(a.cell, b.cell, atol=1e-8)
        np.testing.assert_allclose(a.energy, b.energy, atol=1e-8)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-8)
        assert (a.stress is None) == (b.stress is None)
        if a.stress is not None:
            np.testing.assert_allclose(a.stress, b.stress, atol=1e-8)
        assert b.info["group"] == a.info["group"]


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.vasp"])
def test_crystals_survive(tmp_path, name: str) -> None:
    structure = Structure.from_atoms(bulk("Si"))
    write_structures(tmp_path / name, [structure])
    (back,) = read_structures(tmp_path / name)
    assert back.formula == "Si2"
    assert back.pbc.all()
    lengths = [np.linalg.norm(s.cell, axis=1) for s in (structure, back)]
    np.testing.assert_allclose(*lengths, atol=1e-6)
    with pytest.raises(InputError, match="holds one structure, got 2"):
        write_structures(tmp_path / name, [structure] * 2)


def test_extxyz_agrees_with_ase(tmp_path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(tmp_path / "ase.extxyz", atoms)
    (s,) = read_structures(tmp_path / "ase.extxyz")
    np.testing.assert_allclose(s.stress, atoms.get_stress(voigt=False), atol=1e-8)
    write_structures(tmp_path / "ours.extxyz", [s])
    back = ase.io.read(tmp_path / "ours.extxyz")
    np.testing.assert_allclose(back.get_forces(), results["forces"], atol=1e-8)
    with ase.db.connect(tmp_path / "ase.db") as database:
        database.write(atoms)
    assert read_structures(tmp_path / "ase.db")[0].energy == results["energy"]


def test_rmd17_and_deepmd_layouts(tmp_path) -> None:
    coordinates = np.arange(12.0).reshape(2, 2, 3)
    np.savez(
        tmp_path / "m.npz",
        nuclear_charges=[8, 1],
        coords=coordinates,
        energies=[EV_IN_KCAL_PER_MOL, 0.0],
        forces=coordinates,
    )
    first, second = read_structures(tmp_path / "m.npz")
    assert (first.energy, second.energy) == (pytest.approx(1.0), 0.0)
    np.testing.assert_allclose(second.forces, coordinates[1] / EV_IN_KCAL_PER_MOL)
    np.savez(tmp_path / "bad.npz", nuclear_charges=[8, 1], coords=coordinates, energies=[1.0])
    with pytest.raises(InputError, match="energies must have 2 rows like coords, got 1"):
        read_structures(tmp_path / "bad.npz")
    folder = tmp_path / "deepmd"
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("1\n0\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    for name, array in {
        "coord": coordinates.reshape(2, 6),
        "box": np.tile(np.eye(3).ravel() * 20, (2, 1)),
        "energy": [1.0, 2.0],
        "force": coordinates.reshape(2, 6),
        "virial": np.tile(np.eye(3).ravel() * 8000, (2, 1)),
    }.items():
        np.save(folder / "set.000" / f"{name}.npy", array)
    frames = read_structures(folder)
    assert frames[0].atomic_numbers.tolist() == [1, 8]
    assert frames[1].energy == 2.0
    np.testing.assert_allclose(frames[0].stress, -np.eye(3))


def test_unreadable_files_are_named(tmp_path) -> None:
    good = tmp_path / "a.extxyz"
    write_structures(good, labelled(3))
    lines = good.read_text().splitlines()
    cut, nan, empty, odd = (tmp_path / n for n in ("cut.xyz", "nan.xyz", "empty.xyz", "a.qqq"))
    cut.write_text("\n".join(lines[:-2]) + "\n")
    words = lines[2].split()
    nan.write_text("\n".join([*lines[:2], " ".join([words[0], "nan", *words[2:]]), *lines[3:8]]))
    empty.write_text("")
    odd.write_text("what is this")
    for path, part in ((cut, "cannot be read"), (nan, "structure 0: positions"), (odd, "a.qqq")):
        with pytest.raises(InputError) as error:
            read_structures(path)
        assert_one_line(error, path.name, part)
    for path in (empty, tmp_path / "missing.xyz", tmp_path):
        with pytest.raises(InputError, match="must"):
            read_structures(path)
    with pytest.raises(InputError, match="unknown extension"):
        write_structures(odd, labelled(1))


def test_failed_write_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "a.extxyz"
    write_structures(path, labelled(2))
    before = path.read_bytes()
    with pytest.raises(InputError, match="NaN"):
        write_structures(path, [one(energy=np.nan)])
    assert path.read_bytes() == before


def test_copies_do_not_share_their_info() -> None:
    info = {"group": "a"}
    one = Structure([1], [[0.0] * 3], info=info)
    other = dataclasses.replace(one, energy=1.0)
    other.info["group"] = "b"
    assert (info["group"], one.info["group"]) == ("a", "a")
