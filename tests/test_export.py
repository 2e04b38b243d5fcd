"""The exported file: TorchScript = eager, metadata, and files that cannot be used."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from support.labelled import TINY
from support.processes import clean_environment

from mlff_distiller import __version__
from mlff_distiller.config import from_dict, to_dict
from mlff_distiller.data import Structure, collate
from mlff_distiller.errors import InputError
from mlff_distiller.export import (
    FORMAT_VERSION,
    export_student,
    load_exported,
    load_student,
    read_metadata,
)
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.portable import PortablePotential

ENERGIES = [-13.6, -2042.123456789012]


def make(dtype: torch.dtype = torch.float32, **changes: object) -> StudentForceField:
    torch.manual_seed(7)
    student = StudentForceField(replace(TINY, **changes), [1, 8], ENERGIES).to(dtype)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student


@pytest.fixture
def exported(tmp_path) -> Path:
    path = tmp_path / "student.pt"
    export_student(make(), path, {"teacher": "emt", "data_hash": "ab", "min_distance": 0.9})
    return path


def structures() -> list[Structure]:
    water = molecule("H2O")
    box = molecule("H2O")
    box.set_cell([[3.1, 0, 0], [0.8, 3.0, 0], [-0.4, 0.5, 3.2]])
    box.pbc = True
    slab = bulk("O", "sc", a=2.2)
    slab.pbc = [True, False, True]
    lone = molecule("O")
    return [Structure.from_atoms(a) for a in (water, box, slab, lone)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rbf": "bessel", "rbf_trainable": True, "cutoff_function": "cosine", "norm": "paper"},
        {"zbl": True, "num_interactions": 1, "cutoff_function": "mollifier"},
        {"rbf": "chebyshev", "cutoff_function": "switch", "cutoff_onset": 2.5, "readout_dim": 11},
        {"rbf_per_interaction": True, "zbl": True, "zbl_switched": False, "cutoff_exponent": 4},
    ],
    ids=str,
)
def test_torchscript_equals_eager(tmp_path, dtype, changes):
    student = make(dtype, **changes)
    export_student(student, tmp_path / "student.pt")
    module = load_exported(tmp_path / "student.pt")
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    for structure in structures():
        batch = collate([structure], student.cutoff, dtype)
        eager = student.compute(batch)
        positions = torch.tensor(structure.positions, dtype=dtype, requires_grad=True)
        numbers = torch.tensor(structure.atomic_numbers)
        cell, pbc = torch.tensor(structure.cell, dtype=dtype), torch.tensor(structure.pbc)
        energy = module(numbers, positions, cell, pbc)
        assert energy.dtype == torch.float64
        assert energy.item() == pytest.approx(eager["energy"].item(), abs=tolerance)
        (gradient,) = torch.autograd.grad(energy, positions, allow_unused=True)
        gradient = torch.zeros_like(positions) if gradient is None else gradient
        assert torch.allclose(-gradient, eager["forces"], atol=10 * tolerance, rtol=0)
        vectors = batch.positions[batch.edge_index[0]] - batch.positions[batch.edge_index[1]]
        vectors = vectors + batch.shifts.to(dtype) @ cell
        energies = module.atomic_energies(numbers, batch.edge_index, vectors)
        assert torch.allclose(energies, eager["energies"], atol=tolerance, rtol=0)


def test_runs_in_a_process_that_knows_nothing_of_this_package(exported, tmp_path):
    """The portable promise: plain torch.jit.load, no custom operator."""
    code = (
        "import sys, torch; m = torch.jit.load(sys.argv[1]);"
        "z = torch.tensor([8, 1]); r = torch.tensor([[0., 0, 0], [0.9, 0, 0]]);"
        "e = m(z, r, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool));"
        "assert not any(name.startswith('mlff') for name in sys.modules); print(repr(e.item()))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(exported)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=True, env=clean_environment()
    )
    pair = Structure([8, 1], [[0, 0, 0], [0.9, 0, 0]])
    student = make()
    expected = student.compute(collate([pair], student.cutoff))["energy"].item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_load_student_round_trip(tmp_path, dtype):
    student = make(dtype, zbl=True)
    export_student(student, tmp_path / "student.pt")
    for loaded in (
        load_student(tmp_path / "student.pt"),
        StudentForceField.load(tmp_path / "student.pt"),
    ):
        assert loaded.config == student.config
        assert loaded.elements == student.elements
        assert loaded.reference_energies.tolist() == ENERGIES
        for name, value in student.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
            assert loaded.state_dict()[name].dtype == value.dtype


def test_casting_on_load(tmp_path, exported):
    module = load_exported(exported, dtype=torch.float64)
    structure = structures()[1]
    student = make().to(torch.float64)
    batch = collate([structure], student.cutoff, torch.float64)
    energy = module(
        torch.tensor(structure.atomic_numbers),
        torch.tensor(structure.positions),
        torch.tensor(structure.cell),
        torch.tensor(structure.pbc),
    )
    assert energy.item() == pytest.approx(student.compute(batch)["energy"].item(), abs=1e-10)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_total_energies_keep_their_digits_in_float32(tmp_path, stored):
    """Of all-electron codes: a rounded reference energy is a constant error of each atom."""
    student = make(stored)
    student.set_reference_energies([-13.612345678, -301234.567890123])
    path = tmp_path / "heavy.pt"
    export_student(student, path)
    module = load_exported(path, dtype=torch.float32)
    assert module.painn.embedding.weight.dtype == torch.float32
    assert torch.equal(module.reference_energies, student.reference_energies)
    for s in structures():
        arrays = (s.atomic_numbers, s.positions, s.cell, s.pbc)
        exact = PortablePotential(path, dtype="float64").compute(*arrays)["energy"]
        single = PortablePotential(path, dtype="float32").compute(*arrays)["energy"]
        assert single == pytest.approx(exact, abs=5e-6 * len(s), rel=0)


def test_metadata(exported):
    metadata = read_metadata(exported)
    student = make()
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["package_version"] == __version__
    assert metadata["elements"] == [1, 8]
    assert metadata["cutoff"] == student.cutoff
    assert metadata["dtype"] == "float32"
    assert metadata["num_parameters"] == student.num_parameters
    assert metadata["reference_energies"] == ENERGIES
    assert from_dict(type(student.config), metadata["model_config"]) == student.config
    assert metadata["model_config"] == to_dict(student.config)
    assert (metadata["teacher"], metadata["data_hash"], metadata["min_distance"]) == (
        "emt",
        "ab",
        0.9,
    )


def test_native_parameters_are_the_state_of_the_student(exported):
    """Parse native.bin by its description and compare every tensor."""
    with zipfile.ZipFile(exported) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("extra/native.bin")]
        assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
        blob = archive.read(name)
    end = blob.index(b"\n", blob.index(b"\nend ") + 1) + 1
    header = [line.split() for line in blob[:end].decode().splitlines()]
    keys = {line[0]: line[1:] for line in header if line[0] != "tensor"}
    assert keys["mlff-native"] == [str(FORMAT_VERSION)]
    assert [float(word) for word in keys["norm"]] == [1.0, 1.0]
    assert [line[1:] for line in header if line[0] == "filter"] == [
        [str(k), "gaussian", "6", "polynomial", "6"] for k in range(2)
    ]
    assert keys["elements"] == ["1", "8"]
    assert float(keys["min_distance"][0]) == 0.9
    assert int(keys["end"][0]) == len(blob) - end
    student = make()
    expected = {k.removeprefix("painn."): v for k, v in student.state_dict().items()}
    for name in ("centers", "widths"):  # one basis for all, written for each
        shared = expected.pop(f"bases.0.{name}")
        expected.update({f"interactions.{k}.rbf.{name}": shared for k in range(2)})
    found = [line for line in header if line[0] == "tensor"]
    assert {line[1] for line in found} == set(expected)
    for _, name, kind, ndim, *numbers in found:
        *shape, offset = (int(n) for n in numbers)
        assert len(shape) == int(ndim)
        code = {"f32": "<f4", "f64": "<f8"}[kind]
        values = np.frombuffer(blob, code, int(np.prod(shape)), end + offset).reshape(shape)
        assert np.array_equal(values, expected[name].numpy()), name


def test_unknown_element_is_refused_by_the_portable_form(exported):
    module = load_exported(exported)
    with pytest.raises(Exception, match="not trained on"):
        module(
            torch.tensor([26]),
            torch.zeros(1, 3),
            torch.zeros(3, 3),
            torch.zeros(3, dtype=torch.bool),
        )


def rewrite(path: Path, change) -> None:
    """Write the zip again with other metadata."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in entries if n.endswith("metadata.json"))
    entries[name] = change(entries[name])
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in entries.items():
            archive.writestr(key, value)


def refused(path: Path, match: str) -> str:
    texts = []
    for reader in (read_metadata, load_exported, load_student):
        with pytest.raises(InputError, match=match) as error:
            reader(path)
        texts.append(str(error.value))
    assert all("\n" not in text for text in texts)
    return texts[0]


def test_newer_format(exported):
    def newer(text: bytes) -> bytes:
        return json.dumps({**json.loads(text), "format_version": FORMAT_VERSION + 1}).encode()

    rewrite(exported, newer)
    assert __version__ in refused(exported, "upgrade mlff_distiller")


def test_damaged_metadata(exported):
    rewrite(exported, lambda text: text[:-40])
    refused(exported, "truncated|export or copy")
    rewrite(exported, lambda text: b"[1, 2]")
    refused(exported, "format_version")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated(exported, keep):
    content = exported.read_bytes()
    exported.write_bytes(content[: int(keep * len(content))])
    assert str(exported) in refused(exported, "truncated")


def test_foreign_and_missing(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, "no such model file")
    path.write_text("hello")
    refused(path, "no exported student")
    torch.save({"weights": torch.zeros(2)}, path)
    refused(path, "zip file but no exported student")
    path.write_bytes(struct.pack("<I", 0x04034B50) + bytes(100))
    refused(path, "no exported student")


def test_failed_export_keeps_the_old_file(exported, monkeypatch):
    before = exported.read_bytes()

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch.jit, "save", fail)
    with pytest.raises((RuntimeError, InputError)):
        export_student(make(), exported)
    assert exported.read_bytes() == before
    assert [p.name for p in exported.parent.iterdir()] == [exported.name]
