"""Teachers, students and what is made of them by addition have one face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.energy_model import EnergyModel, Labels, Sum, spread
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation import accuracy, predict
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.energy_model import ExportedModel, StudentModel
from mlff_distiller.teachers import get_teacher, label_dataset

SMALL = ModelConfig(hidden_dim=16, num_interactions=2, num_rbf=8, cutoff=4.0, zbl=True)


def student(seed: int, elements: list[int]) -> StudentForceField:
    torch.manual_seed(seed)
    model = StudentForceField(SMALL, elements, [-1.5 * z for z in elements]).to(torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def frames() -> list[Structure]:
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.rattle(0.1, seed=3)
    dimer = molecule("Na2")
    dimer.numbers[:] = 29
    return [Structure.from_atoms(crystal), Structure.from_atoms(dimer)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EnergyModel]:
    folder = tmp_path_factory.mktemp("models")
    export_student(student(0, [29]), folder / "a.pt")
    return {
        "teacher": get_teacher("emt"),
        "student": StudentModel(student(0, [29])),
        "portable": ExportedModel(folder / "a.pt", backend="portable"),
        "auto": ExportedModel(folder / "a.pt"),
        "other": StudentModel(student(1, [29, 47]), "other"),
    }


def assert_same(found: Labels, expected: Labels, tolerance: float = 1e-9) -> None:
    assert found.energy == pytest.approx(expected.energy, abs=tolerance)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=tolerance)
    assert (found.stress is None) == (expected.stress is None)
    if found.stress is not None and expected.stress is not None:
        np.testing.assert_allclose(found.stress, expected.stress, rtol=0, atol=tolerance)


def test_every_model_has_the_face(models: dict[str, EnergyModel]) -> None:
    for model in models.values():
        assert isinstance(model, EnergyModel)
        crystal, dimer = frames()
        labels = model.compute(crystal)
        assert isinstance(labels.energy, float)
        assert labels.forces.shape == (8, 3)
        assert labels.stress is not None
        assert labels.stress.shape == (3, 3)
        assert model.compute(dimer).stress is None
        labelled = model.label([crystal, dimer])
        assert labelled[0].energy == pytest.approx(labels.energy, abs=1e-9)
        assert labelled[1].stress is None
    assert models["student"].cutoff == models["auto"].cutoff == 4.0
    assert models["teacher"].cutoff is None


def test_a_student_is_the_same_in_memory_and_in_a_file(models: dict[str, EnergyModel]) -> None:
    for structure in frames():
        for name in ("portable", "auto"):
            assert_same(models[name].compute(structure), models["student"].compute(structure))


def test_sums_are_sums(models: dict[str, EnergyModel]) -> None:
    one, two = models["teacher"], models["other"]
    total = Sum([(2.0, one), (-0.5, two)])
    assert total.name == "2 emt + -0.5 other"
    assert total.elements == {29, 47}
    assert total.cutoff is None
    assert Sum([(1.0, models["student"]), (1.0, two)]).cutoff == 4.0
    for structure in frames():
        a, b, found = (m.compute(structure) for m in (one, two, total))
        stress = None
        if a.stress is not None and b.stress is not None:
            stress = 2.0 * a.stress - 0.5 * b.stress
        expected = Labels(2.0 * a.energy - 0.5 * b.energy, 2.0 * a.forces - 0.5 * b.forces, stress)
        assert_same(found, expected, 1e-12)
    with pytest.raises(InputError, match="at least one model"):
        Sum([])


def test_spread_is_the_standard_deviation_of_a_committee(models: dict[str, EnergyModel]) -> None:
    one, two = models["student"], models["other"]
    for structure in frames():
        a, b, found = one.compute(structure), two.compute(structure), spread([one, two], structure)
        half = np.sqrt(0.5)
        assert found.energy == pytest.approx(half * abs(a.energy - b.energy))
        np.testing.assert_allclose(found.forces, half * np.abs(a.forces - b.forces), atol=1e-12)
        assert (found.stress is None) == (a.stress is None)
    with pytest.raises(InputError, match="two models or more, got 1"):
        spread([one], frames()[0])


def test_a_difference_labels_and_is_evaluated_like_a_teacher(
    models: dict[str, EnergyModel], tmp_path: Path
) -> None:
    path = tmp_path / "difference.h5"
    difference = Sum([(1.0, models["teacher"]), (-1.0, models["student"])])
    report = label_dataset(frames(), difference, path, max_force=None, progress=False)
    assert report.num_labelled == 2
    data = HDF5Dataset(path)
    assert data.teacher == "1 emt + -1 student"
    rest = predict(models["student"], frames())
    for structure, remaining in zip(data, rest, strict=True):
        expected = models["teacher"].compute(structure)
        assert structure.energy + remaining.energy == pytest.approx(expected.energy, abs=1e-9)
    assert accuracy(list(data), predict(difference, frames()))["force_mae_mev_per_ang"] < 1e-6
    assert predict(models["student"], frames())[0].energy == pytest.approx(
        predict(student(0, [29]), frames())[0].energy
    )


def test_unknown_elements_are_named_before_any_work(models: dict[str, EnergyModel]) -> None:
    gold = Structure.from_atoms(bulk("Au"))
    for name, text in (("auto", "a.pt knows Cu, got Au"), ("student", "student knows Cu, got Au")):
        with pytest.raises(InputError, match=text):
            models[name].check([gold])
        with pytest.raises(InputError, match=text):
            Sum([(1.0, models["teacher"]), (1.0, models[name])]).check([gold])
