"""Uncertainty of each atom: fitting, calibration, and the same numbers wherever a student runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import emt_crystals
from support.students import make_student

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.checkpoint import save_checkpoint
from mlff_distiller.students.features import features_of
from mlff_distiller.students.uncertainty import fit_uncertainty, uncertainties

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
    covariance = h.T @ h / len(h)
    calibration = fit_uncertainty(student, train, emt_crystals(16)[12:])
    covariance += (
        calibration.ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    slope = np.trace(student.uncertainty.factor.double().numpy()) / np.trace(
        np.linalg.inv(np.linalg.cholesky(covariance))
    )
    x = features_of(student, [frame])[0]
    variance = np.einsum("ij,jk,ik->i", x, np.linalg.inv(covariance), x)
    expected = np.sqrt(calibration.floor**2 + slope**2 * variance)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    np.testing.assert_allclose(uncertainties(student, [frame])[0], expected, rtol=tolerance)
    assert student.uncertainty.factor.dtype == dtype


def test_held_out_errors_have_the_predicted_size():
    student = make_student(CU_AG, scale=0.1, energies=[0.0, 0.0])
    frames = emt_crystals(60)
    calibration = fit_uncertainty(student, frames[:30], frames[30:])
    assert calibration.held_out_atoms == 4 * 30
    assert calibration.rms_predicted == pytest.approx(calibration.rms_error, rel=0.1)
    values = np.concatenate(uncertainties(student, frames[30:]))
    assert values.max() == pytest.approx(calibration.largest)
    assert np.sqrt(np.mean(values**2)) == pytest.approx(calibration.rms_predicted)


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


def test_training_on_drops_them(tmp_path: Path):
    from support.labelled import tiny_config, write

    from mlff_distiller.training.setup import first_student, load_data

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
