"""Held atoms and momenta: read, kept, written, sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, diamond111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixScaled
from ase.io import read, write

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import HDF5Dataset, Structure, read_structures, write_structures
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import sample

HELD = [0, 1, 3]


def slab():
    atoms = diamond111("Si", (2, 1, 2), a=5.43, vacuum=8.0)
    atoms.pbc = True
    atoms.info.clear()
    return atoms


def mask(rows: dict[int, list[bool]]) -> np.ndarray:
    fixed = np.zeros((len(slab()), 3), dtype=bool)
    for i, row in rows.items():
        fixed[i] = row
    return fixed


@pytest.mark.parametrize("name", ["POSCAR", "a.extxyz", "a.traj", "a.db"])
def test_held_atoms_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    atoms = slab()
    atoms.set_constraint(FixAtoms(HELD))
    write(tmp_path / name, atoms)
    (found,) = read_structures(tmp_path / name)
    np.testing.assert_array_equal(found.fixed, mask(dict.fromkeys(HELD, [True] * 3)))


def test_single_coordinates_are_read(tmp_path: Path) -> None:
    atoms = slab()
    atoms.set_constraint([FixAtoms([0]), FixCartesian([1, 2], [False, False, True])])
    expected = mask({0: [True] * 3, 1: [False, False, True], 2: [False, False, True]})
    write(tmp_path / "a.extxyz", atoms)
    np.testing.assert_array_equal(read_structures(tmp_path / "a.extxyz")[0].fixed, expected)
    # z is a lattice coordinate of this cell, though its other axes are skewed.
    atoms.set_constraint([FixAtoms([0]), FixScaled([1, 2], [False, False, True])])
    write(tmp_path / "POSCAR", atoms, direct=True)
    np.testing.assert_array_equal(read_structures(tmp_path / "POSCAR")[0].fixed, expected)


@pytest.mark.parametrize("name", ["b.vasp", "b.extxyz", "b.h5", "b.db"])
def test_held_atoms_are_kept_by_every_format_that_is_written(tmp_path: Path, name: str) -> None:
    fixed = mask({0: [True] * 3, 3: [False, False, True]})
    write_structures(tmp_path / name, [replace(Structure.from_atoms(slab()), fixed=fixed)])
    again = (
        HDF5Dataset(tmp_path / name, require_labels=False)[0]
        if name.endswith("h5")
        else read_structures(tmp_path / name)[0]
    )
    np.testing.assert_array_equal(again.fixed, fixed)
    assert "fixed_coordinates" not in again.info


def test_a_poscar_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    fixed = mask({2: [True, False, False]})  # the second vector of the cell moves x
    s = replace(Structure.from_atoms(slab()), fixed=fixed)
    with pytest.raises(InputError, match=r"skewed cell; write \.extxyz"):
        write_structures(tmp_path / "POSCAR", [s])


def test_momenta_are_kept(tmp_path: Path) -> None:
    atoms = slab()
    momenta = np.random.default_rng(0).normal(size=atoms.positions.shape)
    atoms.set_momenta(momenta)
    write(tmp_path / "a.extxyz", atoms)
    found = read_structures(tmp_path / "a.extxyz")
    write_structures(tmp_path / "b.extxyz", found)
    np.testing.assert_allclose(read(tmp_path / "b.extxyz").get_momenta(), momenta, atol=1e-8)


def test_labels_hold_the_forces_on_held_atoms(tmp_path: Path) -> None:
    """ASE leaves them out unless it is told not to."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    forces = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    s = Structure.from_atoms(atoms)
    assert s.fixed is not None
    np.testing.assert_allclose(s.forces, forces)
    write_structures(tmp_path / "a.extxyz", [s])
    np.testing.assert_allclose(read_structures(tmp_path / "a.extxyz")[0].forces, forces, atol=1e-7)
    free = s.to_atoms(labels=False)
    free.calc = EMT()
    np.testing.assert_allclose(free.get_forces(), forces)


def test_sampling_leaves_held_atoms_where_they_are() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.set_constraint([FixAtoms([0, 1]), FixCartesian([2], [True, False, False])])
    start = Structure.from_atoms(atoms)
    config = SamplingConfig(
        num_rattle=4,
        num_md=24,
        max_strain=0.05,
        md_temperatures=[300.0],
        md_interval=5,
        md_warmup=5,
    )
    frames = sample([start], config, EMT())
    assert {f.info["source"] for f in frames} == {"rattle", "md"}
    for frame in frames:
        np.testing.assert_array_equal(frame.cell, start.cell)
        moved = np.abs(frame.positions - start.positions)
        assert moved[start.fixed].max() < 1e-12
        assert moved[~start.fixed].min() > 0
        np.testing.assert_array_equal(frame.fixed, start.fixed)


def test_other_constraints_are_refused() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match=r"starting structure 0 .* \(FixBondLengths\)"):
        sample([Structure.from_atoms(atoms)], SamplingConfig(num_rattle=1, num_md=0))
