"""Import of SchNetPack's PaiNN: exact, and in any unit."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.schnetpack_files import (
    NUMBERS,
    POSITIONS,
    AddOffsets,
    BesselRBF,
    CastTo64,
    CosineCutoff,
    GaussianRBF,
    MollifierCutoff,
    ScaleProperty,
    SwitchFunction,
    all_postprocessors,
    assert_same,
    evaluate_fake,
    evaluate_student,
    fake_model,
    under_schnetpack_names,
)
from torch import nn

from mlff_distiller.errors import InputError
from mlff_distiller.export import load_exported, read_metadata
from mlff_distiller.importers import convert_model, import_model
from mlff_distiller.importers.inert_pickle import InertObject, read_torch_file
from mlff_distiller.units import energy_in_ev, length_in_angstrom

SHARED = Path(__file__).parents[2] / "shared" / "data" / "schnetpack_painn"


@pytest.fixture
def schnetpack_names(monkeypatch):
    yield from under_schnetpack_names(monkeypatch)


# --- the real file ------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_model_of_its_authors():
    reference = np.load(SHARED / "reference_painn_2_float64.npz")
    student = import_model(
        SHARED / "rmd17_ethanol_painn_2.model", energy_unit="kcal/mol", elements="C,H,O"
    )
    assert student.elements == [1, 6, 8]
    unit = energy_in_ev("kcal/mol")
    numbers = reference["atomic_numbers"].astype(np.int64)
    largest = np.abs(reference["forces"]).max()
    for positions, energy, forces in zip(
        reference["positions"], reference["energy"], reference["forces"], strict=True
    ):
        got_energy, got_forces = evaluate_student(student, numbers, positions.astype(np.float64))
        assert got_energy == pytest.approx(float(np.squeeze(energy)) * unit, rel=1e-9)
        np.testing.assert_allclose(
            got_forces / unit, forces, rtol=1e-9, atol=1e-9 * largest, err_msg="forces"
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_needs_no_schnetpack():
    assert "schnetpack" not in sys.modules
    content = read_torch_file(SHARED / "rmd17_ethanol_painn_2.model")
    assert isinstance(content, InertObject)
    assert content.type_name == "schnetpack.model.base.NeuralNetworkPotential"
    assert not any(name.startswith("schnetpack") for name in sys.modules)


# --- every option -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"f": 24, "depth": 1, "n_rbf": 4},
        {"f": 8, "depth": 4, "radius": 3.0},
        {"f": 20, "depth": 2},  # padded to 24
        {"f": 13, "depth": 2, "hidden": 6},  # odd: padded to 16
        {"hidden": 3},  # a narrow readout
        {"hidden": 27},  # a wide one
        {"epsilon": 1e-4},
        {"cutoff": MollifierCutoff},
        {"cutoff": SwitchFunction},
        {"basis": BesselRBF, "n_rbf": 1},
        {"basis": BesselRBF},
        {"shared_filters": True},
        {"shared_interactions": True},
        {"shared_filters": True, "shared_interactions": True, "basis": BesselRBF},
        {"activation": nn.SiLU()},
    ],
    ids=str,
)
def test_every_shape(tmp_path, schnetpack_names, options):
    model = fake_model(postprocessors=all_postprocessors(), **options)
    torch.save(model, tmp_path / "best_model")
    student = assert_same(tmp_path / "best_model", model)
    assert student.config.hidden_dim % 8 == 0


@pytest.mark.parametrize(
    ("basis", "cutoff"), [(GaussianRBF, CosineCutoff), (BesselRBF, SwitchFunction)]
)
@pytest.mark.parametrize(
    ("energy_unit", "length_unit"), [("Hartree", "Bohr"), ("kJ/mol", "nm"), ("eV", "Ang")]
)
def test_units(tmp_path, schnetpack_names, basis, cutoff, energy_unit, length_unit):
    model = fake_model(basis=basis, cutoff=cutoff, postprocessors=all_postprocessors())
    torch.save(model, tmp_path / "best_model")
    student = assert_same(tmp_path / "best_model", model, energy_unit, length_unit)
    assert student.cutoff == pytest.approx(4.25 * length_in_angstrom(length_unit), rel=1e-12)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [AddOffsets(-7.5, None)],
        [AddOffsets(None, torch.linspace(1, 5, 20, dtype=torch.float64))],
        [AddOffsets(2.0, None), ScaleProperty(0.5)],  # the order matters
        [ScaleProperty(0.5), AddOffsets(2.0, None)],
    ],
)
def test_offsets_and_scales(tmp_path, schnetpack_names, steps):
    model = fake_model(postprocessors=steps)
    torch.save(model, tmp_path / "best_model")
    assert_same(tmp_path / "best_model", model)


def test_postprocessing_turned_off(tmp_path, schnetpack_names):
    model = fake_model(postprocessors=all_postprocessors())
    model.do_postprocessing = False
    torch.save(model, tmp_path / "best_model")
    model.postprocessors = nn.ModuleList()
    assert_same(tmp_path / "best_model", model)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_state_dicts(tmp_path, prefix):
    offsets = AddOffsets(-3.0, torch.linspace(-9.0, 2.0, 20, dtype=torch.float64))
    model = fake_model(postprocessors=[CastTo64(), offsets], shared_interactions=True)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if prefix else state, tmp_path / "state.pt")
    assert_same(tmp_path / "state.pt", model)


def test_elements(tmp_path, schnetpack_names):
    refs = torch.zeros(20, dtype=torch.float64)
    refs[[1, 6, 8]] = torch.tensor([-0.5, -37.0, -75.0], dtype=torch.float64)
    torch.save(fake_model(postprocessors=[AddOffsets(None, refs)]), tmp_path / "refs")
    torch.save(fake_model(), tmp_path / "plain")
    read = functools.partial(import_model, energy_unit="eV")
    assert read(tmp_path / "refs").elements == [1, 6, 8]
    with pytest.warns(UserWarning, match="--elements"):
        assert read(tmp_path / "plain").elements == list(range(1, 20))
    assert read(tmp_path / "plain", elements=["O", 1, "o"]).elements == [1, 8]
    for wrong in ("C,Xx", "U", [0], [25]):
        with pytest.raises(InputError, match="is not among"):
            read(tmp_path / "plain", elements=wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convert_writes_a_student(tmp_path, schnetpack_names, dtype):
    model = fake_model(postprocessors=all_postprocessors())
    torch.save(model, tmp_path / "best_model")
    convert_model(
        tmp_path / "best_model", tmp_path / "student.pt", "kcal/mol", "Ang", "C,H,O", dtype
    )
    metadata = read_metadata(tmp_path / "student.pt")
    assert metadata["dtype"] == dtype
    assert metadata["elements"] == [1, 6, 8]
    assert metadata["imported_from"]["version"] == "2.9.9"
    energy, _ = evaluate_fake(model, NUMBERS, POSITIONS)
    got = load_exported(tmp_path / "student.pt")(
        torch.tensor(NUMBERS),
        torch.tensor(POSITIONS).to(getattr(torch, dtype)),
        torch.zeros(3, 3, dtype=getattr(torch, dtype)),
        torch.zeros(3, dtype=torch.bool),
    ).item()  # fmt: skip
    limit = 1e-11 if dtype == "float64" else 1e-6
    assert got == pytest.approx(energy * energy_in_ev("kcal/mol"), rel=limit)
    with pytest.raises(InputError, match="dtype"):
        convert_model(tmp_path / "best_model", tmp_path / "x.pt", "eV", dtype="float16")


def test_command_line(tmp_path, schnetpack_names):
    """`convert`: the unit is needed, the elements are asked for."""
    from typer.testing import CliRunner

    from mlff_distiller.cli import app

    def run(*arguments):
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    source, target = tmp_path / "best_model", tmp_path / "student.pt"
    torch.save(fake_model(), source)
    result = run(source, target)
    assert result.exit_code == 2
    assert "--energy-unit" in result.output
    result = run(source, tmp_path / "data.h5", "--energy-unit", "eV")
    assert result.exit_code == 2
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.h5"))
    result = run(source, target, "--energy-unit", "eV", "--elements", "C,H", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    assert read_metadata(target)["elements"] == [1, 6]
    result = run(source, target, "--energy-unit", "eV")
    assert result.exit_code == 0
    assert "warning" in result.output
