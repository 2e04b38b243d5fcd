"""Files of all earlier versions still load and mean what they meant: tests/golden/v1, v2 ...

tests/golden/make.py wrote each folder with the version of its time, numbers included.
"""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from support.openmm import openmm_context, openmm_results

from mlff_distiller import StudentCalculator, StudentForceField, export
from mlff_distiller.config import (
    DistillConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_dict,
)
from mlff_distiller.data import HDF5Dataset, Structure, arrays, collate, structures_hash
from mlff_distiller.distill import export_run, read_history
from mlff_distiller.students import checkpoint
from mlff_distiller.teachers import get_teacher, label_dataset
from mlff_distiller.training import train

GOLDEN = Path(__file__).parent / "golden"
NUMBERS: dict[str, dict[str, Any]] = {
    file.parent.name: json.loads(file.read_text()) for file in sorted(GOLDEN.glob("*/numbers.json"))
}
MODELS = [f"{name}/{model}" for name, numbers in NUMBERS.items() for model in numbers["models"]]

each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(params=NUMBERS)
def numbers(request, tmp_path, monkeypatch) -> dict[str, Any]:
    """The numbers of one generation; the working directory is a copy of its folder."""
    folder = shutil.copytree(GOLDEN / request.param, tmp_path / request.param)
    with gzip.open(folder / "data.h5.gz") as packed:
        (folder / "data.h5").write_bytes(packed.read())
    monkeypatch.chdir(folder)
    return NUMBERS[request.param]


def numbers_of(model: str) -> list[tuple[Atoms, dict[str, Any]]]:
    """Structures and what ``model`` said of them in float64 when it was written."""
    generation, _, name = model.partition("/")
    systems, models = NUMBERS[generation]["systems"], NUMBERS[generation]["models"]
    return [(Atoms(**systems[system]), expected) for system, expected in models[name].items()]


def assert_numbers(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Energy, forces and (if periodic) stress agree within ``tolerance`` of eV and Å."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_every_format_of_this_version_has_golden_files():
    """RAISED A FORMAT_VERSION? Run tests/golden/make.py (see there) and commit what it writes."""
    here = {
        "exported": export.FORMAT_VERSION,
        "checkpoint": checkpoint.FORMAT_VERSION,
        "data": arrays.FORMAT_VERSION,
    }
    assert here in [numbers["versions"] for numbers in NUMBERS.values()], (
        f"no golden files of formats {here}; run `python tests/golden/make.py "
        f"tests/golden/v{here['exported']}` and commit that folder, changing no other"
    )


@each_model
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["portable", "native"])
def test_models_give_the_numbers_of_their_time(model, dtype, backend, tmp_path):
    if backend == "native":
        pytest.importorskip("mlff_distiller._native")
    tolerance = 1e-9
    if dtype == "float32":
        # TorchScript of version 1 loses 4e-5 eV/Å of ZBL near its range; the engine never did.
        tolerance = 1e-4 if backend == "portable" else 5e-6
    path = GOLDEN / model
    if path.suffix == ".ckpt":
        path = tmp_path / "student.pt"
        export_run(GOLDEN / model, path, dtype)
    for atoms, expected in numbers_of(model):
        atoms.calc = StudentCalculator(path, dtype=dtype, backend=backend, threads=1)
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all():
            found["stress"] = atoms.get_stress(voigt=False)
        assert_numbers(found, expected, tolerance)


@each_model
def test_models_load_as_python_students(model):
    student = StudentForceField.load(GOLDEN / model).to(torch.float64)
    for atoms, expected in numbers_of(model):
        structure = Structure.from_atoms(atoms)
        result = student.compute(collate([structure], student.cutoff, torch.float64))
        found = {"energy": result["energy"].item(), "forces": result["forces"].numpy()}
        if structure.pbc.all():
            found["stress"] = result["stress"][0].numpy()
        assert_numbers(found, expected, 1e-9)


@each_model
def test_metadata_describe_the_student(model):
    path = GOLDEN / model
    read = export.read_metadata if path.suffix == ".pt" else checkpoint.read_checkpoint
    metadata = read(path)
    student = StudentForceField.load(path)
    assert from_dict(ModelConfig, metadata["model_config"]) == student.config
    assert metadata["elements"] == student.elements
    assert getattr(torch, metadata["dtype"]) == student.painn.embedding.weight.dtype
    if path.suffix == ".ckpt":
        assert from_dict(TrainConfig, metadata["config"]).model == student.config


def test_a_run_resumes_as_it_did(numbers):
    config = from_dict(TrainConfig, checkpoint.read_checkpoint("run/last.ckpt")["config"])
    longer = replace(config, training=replace(config.training, max_epochs=3))
    train(longer, "run", resume=True, progress=False)
    history = read_history(Path("run/history.csv"))
    for column, expected in numbers["history"].items():
        assert history[column].tolist() == pytest.approx(expected, rel=1e-4), column


def test_a_finished_run_is_not_done_again(numbers):
    config = from_dict(TrainConfig, checkpoint.read_checkpoint("run/last.ckpt")["config"])
    result = train(config, "run", resume="auto", progress=False)
    assert result["epochs"] == 2
    assert not Path("run/last.ckpt.old").exists()


@pytest.mark.parametrize(
    ("path", "kind"), [("run/config.yaml", TrainConfig), ("distill.yaml", DistillConfig)]
)
def test_configurations_keep_every_setting(numbers, path, kind):
    stored = yaml.safe_load(Path(path).read_text())
    loaded = to_dict(load_config(path, kind))
    for key, value in stored.items():
        if isinstance(value, dict):
            assert loaded[key].items() >= value.items()
        else:
            assert loaded[key] in (value, [value])  # structures: text is a list of one


def test_data_read_bit_for_bit(numbers):
    data, expected = HDF5Dataset("data.h5"), numbers["data"]
    assert data.hash() == expected["hash"]
    assert {name: indices.tolist() for name, indices in data.splits.items()} == expected["splits"]
    assert [s.info for s in data] == expected["info"]
    for i, structure in enumerate(data):
        for label in ("energy", "forces", "stress"):
            assert np.array_equal(getattr(structure, label), expected[label][i])
    assert {s.stress is None for s in data} == {True, False}


def test_killed_labelling_goes_on(numbers):
    data, killed = HDF5Dataset("data.h5"), HDF5Dataset("killed.h5")
    done = killed.progress["done"]
    assert 0 < done == len(killed) < len(data)
    assert killed.hash() == structures_hash(data[:done])

    frames = [s.with_labels(None) for s in data]
    report = label_dataset(frames, get_teacher("emt"), "killed.h5", max_force=None, progress=False)
    assert (report.num_resumed, report.num_labelled) == (done, len(data))
    for structure, expected in zip(HDF5Dataset("killed.h5"), data, strict=True):
        assert structure.energy == pytest.approx(expected.energy, rel=1e-6)
        np.testing.assert_allclose(structure.forces, expected.forces, atol=1e-6)
        assert structure.info == expected.info
    assert not Path("killed.h5.journal").exists()


@pytest.mark.parametrize("backend", ["native", "python"])
def test_openmm_systems_evaluate(numbers, backend):
    openmm = pytest.importorskip("openmm")
    from mlff_distiller.openmm.native import load_plugin, plugin_is_built

    if backend == "native":
        if not plugin_is_built():
            pytest.skip("PainnForce is not built")
        load_plugin()
    name, text = with_model_of_here(Path(f"openmm_{backend}.xml"))
    system = openmm.XmlSerializer.deserialize(text)
    context = openmm_context(system, numbers["systems"]["crystal"]["positions"])
    energy, forces = openmm_results(context)
    expected = numbers["models"][name]["crystal"]
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-9)


def with_model_of_here(file: Path) -> tuple[str, str]:
    """Name of the model and the XML with its path in the working directory.

    Both forces hold the absolute path of the file on the machine where they were made: PainnForce
    as an attribute, PythonForce in the pickle of a PainnComputation, as hexadecimal text.
    """
    root = ElementTree.parse(file).getroot()
    force = root.find("Forces/Force")
    if force.get("type") == "PainnForce":
        name = Path(force.get("model")).name
        force.set("model", str(Path(name).absolute()))
    else:
        computation = pickle.loads(bytes.fromhex(force.get("function")))
        name = Path(computation.path).name
        computation.path = str(Path(name).absolute())
        force.set("function", pickle.dumps(computation).hex())
    return name, ElementTree.tostring(root, encoding="unicode")
