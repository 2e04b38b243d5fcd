"""Damaged models, checkpoints and data are refused in one line, or read for what was written."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from support.backends import needs_engine
from support.damage import METADATA, outcomes, read_model, read_native, student, write_whole

from mlff_distiller import StudentCalculator
from mlff_distiller.data import HDF5Dataset, Structure, sums, write_structures
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.errors import InputError
from mlff_distiller.students.checkpoint import read_checkpoint, save_checkpoint
from mlff_distiller.students.export import export_student
from mlff_distiller.students.file import load_exported, read_metadata

pytestmark = needs_engine


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_whole(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("name", "count"), [("student.pt", 200), ("best.ckpt", 150), ("data.h5", 250)]
)
def test_damage_is_refused_in_one_line_or_does_not_matter(files, name: str, count: int) -> None:
    found = outcomes(files[name], count, seed=0)
    assert set(found) <= {"refused", "right"}, found
    assert found["refused"] > 0.5 * count


def rewrite(source: Path, target: Path, change) -> Path:  # type: ignore[no-untyped-def]
    """A whole zip file in which ``change(name, bytes)`` made the entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def test_parameters_in_a_whole_zip_are_compared(files, tmp_path) -> None:
    """Another number whose CRC-32 fits: an editor of zip files, a memory fault when writing."""

    def flip(part: str):  # type: ignore[no-untyped-def]
        def change(name: str, data: bytes) -> bytes:
            return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:] if part in name else data

        return change

    native = rewrite(files["student.pt"], tmp_path / "native.pt", flip("extra/native.bin"))
    for read in (read_native, read_model, load_exported):
        with pytest.raises(InputError, match=r"checksum of native\.bin differs"):
            read(native)
    largest = max(zipfile.ZipFile(files["student.pt"]).infolist(), key=lambda e: (
        "/data/" in e.filename, e.file_size)).filename  # fmt: skip
    weights = rewrite(files["student.pt"], tmp_path / "weights.pt", flip(largest))
    with pytest.raises(InputError, match="checksum of the parameters differs"):
        load_exported(weights)
    run = rewrite(files["best.ckpt"], tmp_path / "run.ckpt", flip("/data/1"))
    with pytest.raises(InputError, match="checksum of the parameters differs"):
        read_checkpoint(run)


def test_constants_of_torchscript_are_compared(files, tmp_path) -> None:
    """The cutoff is no parameter; torch compares no CRC-32."""
    data, cutoff = files["student.pt"].read_bytes(), b"G" + struct.pack(">d", 3.0)
    assert cutoff in data
    path = tmp_path / "cutoff.pt"
    path.write_bytes(data.replace(cutoff, b"G" + struct.pack(">d", 2.5)))
    with pytest.raises(InputError, match=r"cutoff\.pt must be .*checksum of .*data\.pkl' differs"):
        load_exported(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"frame 3"', b'"frame 4"'),
        (b'"energy": "eV"', b'"energy": "Ry"'),
        (np.array([2, 4]).tobytes(), np.array([2, 3]).tobytes()),
    ],
    ids=["info", "units", "splits"],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_all_of_an_hdf5_file_is_compared(tmp_path, old, new, in_memory: bool) -> None:
    """Also what HDF5 itself has no sums of, and what would be valid."""
    path = tmp_path / "data.h5"
    write_structures(
        path, [Structure([1], [[0, 0, i]], energy=0.0, info={"source": f"frame {i}"})
               for i in range(6)]
    )  # fmt: skip
    store_splits(
        path, {"train": np.array([0, 2, 4]), "valid": np.array([5]), "test": np.zeros(0, int)}
    )
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match=r"data\.h5 .*its checksum differs"):
        HDF5Dataset(path, in_memory=in_memory)
    with pytest.raises(InputError, match=r"data\.h5 .*its checksum differs"):
        store_splits(path, {"train": np.arange(6), "valid": np.zeros(0, int)})


def test_files_without_checksums_are_read(files, tmp_path) -> None:
    """As those of older versions; a number of the metadata that matters is compared all the same."""

    def old(name: str, data: bytes, energy: float = -13.5) -> bytes:
        if not name.endswith(METADATA):
            return data
        metadata = json.loads(data)
        del metadata["checksums"]
        metadata["reference_energies"][0] = energy
        return json.dumps(metadata).encode()

    path = rewrite(files["student.pt"], tmp_path / "old.pt", old)
    assert all(map(np.array_equal, read_model(path), read_model(files["student.pt"])))
    path = rewrite(path, tmp_path / "other.pt", lambda n, d: d.replace(b"-13.5", b"-13.6"))
    with pytest.raises(InputError, match=r"other\.pt have other reference energies"):
        read_model(path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe{}", b'{"format_version": ', b"[1]", b"", b"[" * 99999]
)
def test_metadata_that_are_no_json(files, tmp_path, content: bytes) -> None:
    path = rewrite(
        files["student.pt"], tmp_path / "a.pt", lambda n, d: content if n.endswith(METADATA) else d
    )
    with pytest.raises(InputError, match=r"a\.pt.* is no exported student") as error:
        read_metadata(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value: float) -> None:
    model = student()
    with torch.no_grad():
        model.painn.readout[0].weight[0, 0] = value
    with pytest.raises(InputError, match=r"readout\.0\.weight holds NaN or infinity"):
        export_student(model, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "a.ckpt", model.stored(), metadata={})
    with pytest.raises(InputError, match=r"a\.ckpt: .*readout\.0\.weight holds NaN or infinity"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("backend", ["native", "portable"])
def test_results_that_are_not_finite_stop_the_calculator(tmp_path, backend: str) -> None:
    model = student()
    with torch.no_grad():  # finite, and too large for what is made of it
        model.painn.readout[0].weight.fill_(3e38)
        model.painn.readout[2].weight.fill_(3e38)
    export_student(model, tmp_path / "huge.pt")
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    atoms.calc = StudentCalculator(tmp_path / "huge.pt", backend=backend)
    with pytest.raises(InputError, match=r"the model gave a NaN or infinite (energy|force)"):
        atoms.get_forces()
    assert atoms.calc.results == {}


def test_chunks_of_large_files_are_compared(files, tmp_path) -> None:
    """A file without the checksum of the whole, as HDF5 programs leave it."""
    path = tmp_path / "data.h5"
    shutil.copy(files["data.h5"], path)
    with h5py.File(path, "a") as file:
        file.attrs["comment"] = "mine"
    data = path.read_bytes()
    assert sums.MAGIC not in data
    assert HDF5Dataset(path).hash() == HDF5Dataset(files["data.h5"]).hash()
    at = data.index(HDF5Dataset(path)[3].positions.tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(InputError, match=r"data\.h5 must be a complete HDF5 file"):
        HDF5Dataset(path)
    with pytest.raises(InputError, match=r"data\.h5 must be a complete HDF5 file"):
        HDF5Dataset(path, in_memory=False)[3]
