"""Several starting structures, repeated cells, and cells that are too narrow for the cutoff."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.io import write
from support.commands import run

from mlff_distiller import teacher_calculator
from mlff_distiller.config import DistillConfig, SamplingConfig, from_dict
from mlff_distiller.data import Structure, read_structures
from mlff_distiller.errors import InputError
from mlff_distiller.sampling.geometry import narrow_cell, supercell
from mlff_distiller.schema import json_schema


def test_a_supercell_is_that_of_ase() -> None:
    for atoms, repeats in (
        (bulk("Cu"), (2, 3, 1)),
        (fcc111("Cu", (1, 2, 3), vacuum=8.0), (3, 2, 4)),
    ):
        structure = replace(
            Structure.from_atoms(atoms),
            fixed=np.arange(3 * len(atoms)).reshape(-1, 3) % 2 == 0,
            momenta=np.ones((len(atoms), 3)),
        )
        found = supercell(structure, repeats)
        times = np.where(atoms.pbc, repeats, 1)
        wanted = atoms.repeat(tuple(times))
        np.testing.assert_allclose(found.positions, wanted.positions, atol=1e-12)
        np.testing.assert_array_equal(found.atomic_numbers, wanted.numbers)
        np.testing.assert_allclose(found.cell, wanted.cell.array)
        np.testing.assert_array_equal(found.fixed, np.tile(structure.fixed, (times.prod(), 1)))
        assert found.momenta is None
    molecule = Structure([1, 1], [[0.0] * 3, [0.0, 0.0, 0.74]])
    assert supercell(molecule, (2, 2, 2)) is molecule


def test_narrow_cells() -> None:
    primitive = Structure.from_atoms(bulk("Cu", a=3.6))
    assert narrow_cell(primitive, 5.0) == pytest.approx(3.6 / np.sqrt(3))  # planes 111
    assert narrow_cell(supercell(primitive, (5, 5, 5)), 5.0) is None
    slab = Structure.from_atoms(fcc111("Cu", (5, 5, 1), vacuum=2.0))  # open and thin: no matter
    assert narrow_cell(slab, 5.0) is None
    wire = replace(primitive, cell=np.diag([0.0, 0.0, 9.0]), pbc=[False, False, True])
    assert narrow_cell(wire, 5.0) == pytest.approx(9.0)
    assert narrow_cell(wire, 4.5) is None
    assert narrow_cell(Structure([1], [[0.0] * 3]), 5.0) is None


def test_structures_may_be_a_list() -> None:
    assert from_dict(DistillConfig, {"structures": "a.cif"}).structures == ["a.cif"]
    assert from_dict(DistillConfig, {"structures": ["a", "b"]}).structures == ["a", "b"]
    assert DistillConfig("a").structures == ["a"]
    with pytest.raises(InputError, match=r"structures must name at least one file, got \[\]"):
        from_dict(DistillConfig, {"structures": []})
    with pytest.raises(
        InputError, match=r"supercell must be a list of 3, got \[2, 2\]; set sampling.supercell to"
    ):
        SamplingConfig(supercell=[2, 2])
    with pytest.raises(InputError, match="supercell"):
        SamplingConfig(supercell=[2, 2, -1])
    schema = json_schema(DistillConfig)["properties"]["structures"]
    assert [kind["type"] for kind in schema["anyOf"]] == ["string", "array"]


def test_sample_repeats_the_cell(tmp_path: Path) -> None:
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "s.yaml").write_text("sampling: {supercell: [2, 1, 1]}")
    run("sample", "cu.extxyz", "-o", "f.extxyz", "--config", "s.yaml", "--rattle", 2, cwd=tmp_path)
    assert [len(s) for s in read_structures(tmp_path / "f.extxyz")] == [8, 8]
    text = run("sample", "--help").stdout
    defaults = SamplingConfig()
    assert f"[default: ({defaults.num_rattle})]" in text
    assert f"[default: ({defaults.num_md} with a teacher)]" in text.replace("│", "").replace(
        "\n", " "
    )


def test_as_many_repeats_as_two_cutoffs_need() -> None:
    copper = Structure.from_atoms(bulk("Cu", cubic=True))  # 3.61 Å wide
    assert len(supercell(copper, [0, 0, 0], 4.0)) == 4 * 27
    assert len(supercell(copper, [0, 1, 0], 4.0)) == 4 * 9
    assert narrow_cell(supercell(copper, [0, 0, 0], 4.0), 4.0) is None
    skewed = Structure.from_atoms(bulk("Cu"))  # its planes are 2.08 Å apart
    assert len(supercell(skewed, [0, 0, 0], 4.0)) == 64
    assert len(supercell(copper, [0, 0, 0])) == 4, "no cutoff, no repeats"


def test_distill_of_two_structures(tmp_path: Path) -> None:
    for name in ("Cu", "Al"):
        write(tmp_path / f"{name}.extxyz", bulk(name, cubic=True))
    config = {
        "structures": ["Cu.extxyz", "Al.extxyz"],
        "output": "run",
        "teacher": {"name": "emt"},
        "sampling": {"supercell": [2, 2, 2], "num_rattle": 20, "num_md": 0},
        "model": {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 4.5},
        "training": {"max_epochs": 1, "threads": 1},
        "loop": {"rounds": 0},
        "acceptance": {"measure": False},
        "engines": {"lammps": False, "openmm": False, "ase": False},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    errors = run("distill", "c.yaml", cwd=tmp_path).stderr
    text = " ".join(errors.split())
    assert (
        "warning: the cell of 2 of 2 starting structures is narrower than two cutoffs (9 Å)" in text
    )
    assert "structure 0 only 7.2 Å" in text
    elements = {tuple(set(s.atomic_numbers)) for s in read_structures(tmp_path / "run" / "data.h5")}
    assert elements == {(29,), (13,)}
    assert "distilled on Cu.extxyz, Al.extxyz" in (tmp_path / "run" / "report.html").read_text()


def test_the_teacher_is_a_calculator_of_ase() -> None:
    atoms, same = bulk("Cu", cubic=True), bulk("Cu", cubic=True)
    atoms.calc, same.calc = teacher_calculator("emt"), EMT()
    assert atoms.get_potential_energy() == same.get_potential_energy()
    with pytest.raises(InputError, match="unknown teacher"):
        teacher_calculator("emtt-0")
