"""Uncertainty of each atom: fitting, calibration, and the same numbers wherever a student runs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run as command
from support.labelled import emt_crystals, tiny_config, write
from support.students import make_student

from mlff_distiller import StudentCalculator, _native
from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.ops.engine import NativePotential, available_isas
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.checkpoint import save_checkpoint
from mlff_distiller.students.export import export_run, export_student
from mlff_distiller.students.features import features_of
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.native_parameters import native_parameters
from mlff_distiller.students.uncertainty import fit_uncertainty, uncertainties
from mlff_distiller.training import train
from mlff_distiller.training.setup import first_student, load_data

CU_AG = (29, 47)


def fitted(dtype: torch.dtype = torch.float64, **changes) -> StudentForceField:
    """A random student with uncertainties from twelve crystals."""
    student = make_student(CU_AG, dtype=dtype, scale=0.1, energies=[0.0, 0.0], **changes)
    frames = emt_crystals(16)
    fit_uncertainty(student, frames[:12], frames[12:])
    return student


def moved(structure: Structure, factor: float) -> Structure:
    """The same crystal at another density."""
    return replace(structure, positions=factor * structure.positions, cell=factor * structure.cell)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_formula_of_the_paper(dtype):
    student = fitted(dtype)
    train, (frame, *_) = emt_crystals(12), emt_crystals(3, seed=5)
    h = np.concatenate(features_of(student, train))
    mean = h.mean(axis=0)
    covariance = (h - mean).T @ (h - mean) / len(h)
    calibration = fit_uncertainty(student, train, emt_crystals(16)[12:])
    covariance += (
        calibration.ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    slope = np.trace(student.uncertainty.weight.double().numpy()) / np.trace(
        np.linalg.inv(np.linalg.cholesky(covariance))
    )
    x = features_of(student, [frame])[0] - mean
    variance = np.einsum("ij,jk,ik->i", x, np.linalg.inv(covariance), x)
    expected = np.sqrt(calibration.floor**2 + slope**2 * variance)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    np.testing.assert_allclose(uncertainties(student, [frame])[0], expected, rtol=tolerance)
    assert student.uncertainty.weight.dtype == dtype


def test_held_out_errors_have_the_predicted_size():
    student = make_student(CU_AG, scale=0.1, energies=[0.0, 0.0])
    frames = emt_crystals(60)
    calibration = fit_uncertainty(student, frames[:30], frames[30:])
    assert calibration.held_out_atoms == 4 * 30
    assert calibration.rms_predicted == pytest.approx(calibration.rms_error, rel=0.1)
    values = np.concatenate(uncertainties(student, frames[30:]))
    assert values.max() == pytest.approx(calibration.largest)
    assert np.sqrt(np.mean(values**2)) == pytest.approx(calibration.rms_predicted)
    of_frames = [np.sqrt(np.mean(u**2)) for u in uncertainties(student, frames[30:])]
    assert max(of_frames) == pytest.approx(calibration.largest_frame)
    assert float(student.uncertainty.largest_frame) == pytest.approx(calibration.largest_frame)


def test_rises_outside_of_training_without_bound():
    student = fitted()
    frame = emt_crystals(1)[0]
    largest = [uncertainties(student, [moved(frame, f)])[0].max() for f in (1.0, 0.9, 0.8, 0.7)]
    assert largest == sorted(largest)
    assert largest[-1] > 5 * float(student.uncertainty.largest)


def test_rises_where_held_out_errors_tell_no_atom_from_another():
    student = make_student(CU_AG, scale=0.0, energies=[0.0, 0.0])
    frames = [s.with_labels(0.0, np.full((len(s), 3), 0.1)) for s in emt_crystals(12)]
    student.repulsion = None
    fit_uncertainty(student, frames[:6], frames[6:])
    near, far = uncertainties(student, [frames[0], moved(frames[0], 0.8)])
    assert far.max() > 1.5 * near.max()


def test_an_atom_without_neighbours_and_one_without_training_of_its_kind():
    student = make_student((29, 47), scale=0.1)
    frames = [s for s in emt_crystals(24) if 47 not in s.atomic_numbers]
    fit_uncertainty(student, frames[:6], frames[6:])
    lone, other = Structure([29], [[0.0, 0, 0]]), Structure([47], [[0.0, 0, 0]])
    values = uncertainties(student, [lone, other, frames[0]])
    assert all(np.isfinite(v).all() and (v > 0).all() for v in values)
    assert values[0].shape == (1,)
    assert min(values[0][0], values[1][0]) > values[2].max()


def test_batches_do_not_matter():
    student, frames = fitted(), emt_crystals(5)
    for one, other in zip(
        uncertainties(student, frames, 2), uncertainties(student, frames), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    assert uncertainties(student, []) == []


def test_a_checkpoint_keeps_them(tmp_path: Path):
    student, frame = fitted(), emt_crystals(1)[0]
    save_checkpoint(tmp_path / "best.ckpt", student.stored(), metadata={})
    again = StudentForceField.load(tmp_path)
    np.testing.assert_array_equal(
        uncertainties(again, [frame])[0], uncertainties(student, [frame])[0]
    )
    half = again.to(torch.float32)
    np.testing.assert_allclose(
        uncertainties(half, [frame])[0], uncertainties(student, [frame])[0], rtol=1e-3
    )


def test_a_checkpoint_from_before_frames_were_judged(tmp_path: Path):
    student = fitted()
    stored = student.stored()
    state = {k: v for k, v in stored.state.items() if not k.endswith("largest_frame")}
    save_checkpoint(tmp_path / "best.ckpt", replace(stored, state=state), metadata={})
    again = StudentForceField.load(tmp_path)
    assert float(again.uncertainty.largest_frame) == float(student.uncertainty.largest)


def test_training_on_drops_them(tmp_path: Path):
    student, config = fitted(), tiny_config(write(tmp_path / "data.h5", emt_crystals(8)))
    save_checkpoint(tmp_path / "best.ckpt", student.stored(), metadata={})
    config = replace(config, model=student.config)
    data = load_data(config, student.cutoff)
    assert first_student(config, data, tmp_path / "best.ckpt").uncertainty is None


def test_says_what_it_needs():
    student, frames = make_student(CU_AG), emt_crystals(4)
    with pytest.raises(InputError, match=r"has no uncertainties; call fit_uncertainty"):
        uncertainties(student, frames)
    with pytest.raises(InputError, match=r"held-out structures with forces, got 4 and 0"):
        fit_uncertainty(student, frames, [s.with_labels(1.0) for s in frames])
    with pytest.raises(InputError, match=r"got 0 and 4; set data.valid_fraction"):
        fit_uncertainty(student, [], frames)


BACKENDS = ("native", "portable")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uncertain") / "student.pt"
    export_student(fitted(), path)
    return path


def isolated_and_crowded() -> list[Structure]:
    crystal, *_ = emt_crystals(2, seed=7)
    lone = Structure([47], [[0.0, 0, 0]])
    skewed = replace(crystal, cell=crystal.cell + np.diag([1.0, 1.0], 1) @ np.eye(3))
    return [crystal, moved(crystal, 0.85), lone, skewed]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree(exported, backend, dtype):
    student = StudentForceField.load(exported)
    calculator = StudentCalculator(exported, dtype=dtype, backend=backend, uncertainty=True)
    for structure in isolated_and_crowded():
        expected = uncertainties(student, [structure])[0]
        atoms = structure.to_atoms(labels=False)
        atoms.calc = calculator
        atoms.get_potential_energy()
        found = calculator.results["uncertainties"]
        assert found.shape == (len(atoms),)
        np.testing.assert_allclose(found, expected, rtol=1e-9 if dtype == "float64" else 2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_computed_only_when_asked_and_the_rest_stays_the_same(exported, backend):
    plain = StudentCalculator(exported, backend=backend)
    asked = StudentCalculator(exported, backend=backend, uncertainty=True)
    atoms = emt_crystals(1)[0].to_atoms(labels=False)
    for calculator in (plain, asked):
        calculator.calculate(atoms)
    assert "uncertainties" not in plain.results
    for name in ("energies", "forces", "stress"):
        np.testing.assert_allclose(plain.results[name], asked.results[name], rtol=1e-12, atol=1e-12)
    found = plain.get_property("uncertainties", atoms)
    np.testing.assert_array_equal(found, asked.results["uncertainties"])
    atoms.rattle(0.1, seed=1)
    again = plain.get_property("uncertainties", atoms)
    assert not np.array_equal(found, again)
    assert plain.get_property("uncertainties", atoms, allow_calculation=False) is not None
    assert "uncertainties" in plain.implemented_properties
    assert "uncertainties" not in StudentCalculator.implemented_properties


def test_copies_of_a_calculator_ask_as_well(exported):
    calculator = pickle.loads(pickle.dumps(StudentCalculator(exported, uncertainty=True)))
    calculator.calculate(emt_crystals(1)[0].to_atoms(labels=False))
    assert calculator.results["uncertainties"].min() > 0


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_native_engine_on_every_instruction_set(exported, isa, threads):
    student = StudentForceField.load(exported)
    potential = NativePotential(exported, dtype="float64", isa=isa, threads=threads, tabulate=False)
    for s in isolated_and_crowded():
        for forces in (True, False):
            out = potential.compute(
                s.atomic_numbers, s.positions, s.cell, s.pbc, forces=forces, uncertainties=True
            )
            np.testing.assert_allclose(
                out["uncertainties"], uncertainties(student, [s])[0], rtol=1e-10
            )
            assert ("forces" in out) == forces


@pytest.mark.parametrize("readout_dim", [1, 7, 16])
def test_any_width_of_the_readout(tmp_path, readout_dim):
    student = fitted(readout_dim=readout_dim)
    export_student(student, tmp_path / "student.pt")
    s = emt_crystals(1)[0]
    out = NativePotential(tmp_path / "student.pt", dtype="float64", tabulate=False).compute(
        s.atomic_numbers, s.positions, s.cell, s.pbc, uncertainties=True
    )
    np.testing.assert_allclose(out["uncertainties"], uncertainties(student, [s])[0], rtol=1e-10)


def test_the_engine_passes_over_rows_without_species(exported):
    engine = _native.testing.Engine(str(exported), dtype="float64")
    arrays = (np.array([0, -1], np.int32), np.zeros(3, np.int64), np.zeros(0, np.int32))
    engine.begin(*arrays, np.zeros((0, 3)), uncertainties=True)
    while engine.advance() is not None:
        pass
    lone = uncertainties(StudentForceField.load(exported), [Structure([29], [[0.0, 0, 0]])])[0]
    np.testing.assert_allclose(engine.uncertainties, [lone[0], 0.0], rtol=1e-9)


def test_files_without_say_so(tmp_path):
    export_student(make_student(CU_AG), tmp_path / "student.pt")
    path, atoms = tmp_path / "student.pt", emt_crystals(1)[0].to_atoms(labels=False)
    with pytest.raises(InputError, match=r"student.pt must have data for uncertainties"):
        StudentCalculator(path, uncertainty=True)
    for backend in BACKENDS:
        calculator = StudentCalculator(path, backend=backend)
        with pytest.raises(InputError, match=r"must have data for uncertainties"):
            calculator.get_property("uncertainties", atoms)
        assert calculator.get_potential_energy(atoms)
    arrays = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    with pytest.raises(InputError, match=r"has no data for uncertainties"):
        NativePotential(path).compute(*arrays, uncertainties=True)
    assert "uncertainty" not in read_metadata(path)


def test_the_file_says_how_they_were_calibrated_and_gives_them_back(exported, tmp_path):
    student = StudentForceField.load(exported)
    metadata = read_metadata(exported)["uncertainty"]
    assert metadata["largest"] == pytest.approx(float(student.uncertainty.largest))
    assert metadata["largest_frame"] == pytest.approx(float(student.uncertainty.largest_frame))
    assert metadata["unit"] == "eV/Ang"
    student.uncertainty = None
    stale = {"uncertainty": metadata}
    assert "uncertainty" not in export_student(student, tmp_path / "without.pt", stale)


def test_info_tells(exported, tmp_path):
    assert "eV/Å on held-out atoms" in command("info", exported).stdout
    export_student(make_student(CU_AG), tmp_path / "student.pt")
    shown = command("info", tmp_path / "student.pt").stdout
    assert [line.split()[-1] for line in shown.splitlines() if "uncertainty" in line] == ["none"]


@pytest.fixture
def run(tmp_path) -> Path:
    """A training run of one epoch."""
    config = tiny_config(write(tmp_path / "data.h5", emt_crystals(12)), max_epochs=1)
    train(config, tmp_path / "run", progress=False)
    return tmp_path


def test_export_fits_them_to_the_data_of_the_run(run):
    notes: list[str] = []
    metadata = export_run(run / "run", run / "student.pt", say=notes.append)
    assert notes == []
    assert metadata["uncertainty"]["held_out_atoms"] == 4 * 3
    assert StudentForceField.load(run / "student.pt").uncertainty is not None
    metadata = export_run(run / "run", run / "student.pt", uncertainty=False, say=notes.append)
    assert "uncertainty" not in metadata
    assert notes == []


def test_export_without_its_data_says_what_is_missing(run):
    (run / "data.h5").rename(run / "elsewhere.h5")
    notes: list[str] = []
    assert "uncertainty" not in export_run(run / "run", run / "student.pt", say=notes.append)
    assert len(notes) == 1
    assert "without uncertainties of atoms: " in notes[0]
    again = export_run(run / "run", run / "student.pt", data=run / "elsewhere.h5")
    assert "uncertainty" in again
    other = write(run / "other.h5", emt_crystals(8, seed=2))
    with pytest.raises(InputError, match=r"must hold the data that the student was trained on"):
        export_run(run / "run", run / "student.pt", data=other)


def test_a_damaged_section_is_an_error(exported, tmp_path):
    student = StudentForceField.load(exported)
    student.uncertainty.bias[0] = float("nan")
    with pytest.raises(InputError, match=r"uncertainty.bias holds NaN"):
        export_student(student, tmp_path / "student.pt")
    student.uncertainty.bias = torch.zeros(3)
    (tmp_path / "native.bin").write_bytes(native_parameters(student, 0.0))
    with pytest.raises(InputError, match=r"'uncertainty.bias' must have shape \(8\), got \(3\)"):
        NativePotential(tmp_path / "native.bin")
