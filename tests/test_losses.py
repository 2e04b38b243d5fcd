from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from support.labelled import TINY, emt_crystals, emt_molecules

from mlff_distiller.config import TrainingConfig
from mlff_distiller.data import collate
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation import accuracy, predict
from mlff_distiller.models import StudentForceField
from mlff_distiller.training import evaluate
from mlff_distiller.training.losses import Loss, Residuals, residuals
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA


@pytest.fixture(scope="module")
def frames():
    """Crystals with all labels, molecules, and frames that lack one label each."""
    crystals, molecules = emt_crystals(5, seed=3), emt_molecules(3)
    crystals[1] = replace(crystals[1], stress=None)
    crystals[2] = replace(crystals[2], forces=None)
    crystals[3] = replace(crystals[3], energy=None)
    # Without a third lattice vector there is no volume, so its stress label means nothing.
    flat = crystals[4].cell * [[1], [1], [0]]
    crystals[4] = replace(crystals[4], pbc=[True, True, False], cell=flat)
    return [*crystals, *molecules]


@pytest.fixture(scope="module")
def student(frames):
    torch.manual_seed(1)
    elements = sorted({int(z) for s in frames for z in s.atomic_numbers})
    energies = np.linspace(-3.0, 2.0, len(elements))
    return StudentForceField(TINY, elements, energies.tolist()).to(torch.float64)


def of_residuals(config, found):
    loss = Loss.of(config)
    return loss.value(loss.sums(found), found.counts())


def by_hand(frames, predicted):
    """Errors as flat numpy arrays, frame by frame: energy per atom, forces, stress."""
    energy, forces, stress = [], [], []
    for label, found in zip(frames, predicted, strict=True):
        if label.energy is not None:
            energy.append((found.energy - label.energy) / len(label))
        if label.forces is not None:
            forces.append((found.forces - label.forces).ravel())
        if label.stress is not None and label.pbc.all():
            stress.append((found.stress - label.stress).ravel())
    return np.array(energy), np.concatenate(forces), np.concatenate(stress)


def test_loss_is_the_documented_sum_over_the_labels_that_exist(frames, student):
    config = TrainingConfig(energy_weight=2.0, force_weight=7.0, stress_weight=300.0)
    batch = collate(frames, student.cutoff, torch.float64)
    found = residuals(student.compute(batch), batch)
    loss = of_residuals(config, found)
    energy, forces, stress = by_hand(frames, predict(student, frames, batch_size=1))
    assert found.counts().tolist() == [len(energy), len(forces), len(stress)] == [7, 28 * 3, 3 * 9]
    expected = 2.0 * (energy**2).mean() + 7.0 * (forces**2).mean() + 300.0 * (stress**2).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_huber_counts_lengths_of_vectors_linearly_beyond_delta(frames, student):
    energy, forces, stress = by_hand(frames, predict(student, frames, batch_size=1))
    lengths = (
        abs(energy),
        np.linalg.norm(forces.reshape(-1, 3), axis=1),
        np.linalg.norm(stress.reshape(-1, 9), axis=1),
    )
    deltas = [float(x.mean()) for x in lengths]  # some are larger, some smaller
    names = ("energy_huber", "force_huber", "stress_huber")
    config = TrainingConfig(
        energy_weight=2.0,
        force_weight=7.0,
        stress_weight=300.0,
        **dict(zip(names, deltas, strict=True)),
    )
    batch = collate(frames, student.cutoff, torch.float64)
    found = residuals(student.compute(batch), batch)
    expected = 0.0
    for x, delta, weight, n in zip(
        lengths, deltas, (2.0, 7.0, 300.0), (7, 28 * 3, 3 * 9), strict=True
    ):
        expected += weight / n * np.where(x <= delta, x**2, delta * (2 * x - delta)).sum()
    assert float(of_residuals(config, found)) == pytest.approx(expected, rel=1e-12)


def test_huber_has_one_slope_on_both_sides_of_delta_and_none_at_zero():
    def slope(x):
        rows = torch.tensor([[0.6 * x, 0.8 * x, 0.0]], dtype=torch.float64, requires_grad=True)
        found = Residuals(rows[:0, 0], rows, rows[:0].reshape(0, 3, 3), torch.tensor([1]))
        loss = Loss.of(TrainingConfig(force_huber=0.1))
        (gradient,) = torch.autograd.grad(loss.sums(found).sum(), rows)
        return gradient[0].tolist()

    assert slope(0.1 - 1e-9) == pytest.approx([0.12, 0.16, 0.0], rel=1e-6)
    assert slope(0.1 + 1e-9) == pytest.approx([0.12, 0.16, 0.0], rel=1e-6)
    assert slope(5.0) == pytest.approx([0.12, 0.16, 0.0], rel=1e-12)
    assert slope(0.0) == [0.0, 0.0, 0.0]


def test_huber_with_a_wide_delta_is_the_squared_loss(frames, student):
    batch = collate(frames, student.cutoff, torch.float64)
    found = residuals(student.compute(batch), batch)
    wide = TrainingConfig(energy_huber=1e9, force_huber=1e9, stress_huber=1e9)
    assert float(of_residuals(wide, found)) == float(of_residuals(TrainingConfig(), found))


def test_a_quantity_without_labels_drops_out(frames, student):
    bare = [replace(s, stress=None, forces=None) for s in frames[:3]]
    batch = collate(bare, student.cutoff, torch.float64)
    found = residuals(student.compute(batch, create_graph=True), batch)
    config = TrainingConfig()
    loss = of_residuals(config, found)
    energy = np.array(
        [(p.energy - s.energy) / len(s) for s, p in zip(bare, predict(student, bare), strict=True)]
    )
    assert loss.item() == pytest.approx(config.energy_weight * (energy**2).mean(), rel=1e-12)
    loss.backward(inputs=list(student.parameters()))
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    student.zero_grad(set_to_none=True)


def test_energies_of_large_systems_lose_nothing_in_float32():
    """64 atoms at -350 eV: a total of -22400 eV has steps of 2 meV in float32."""
    frame = emt_crystals(1)[0]
    atoms = frame.to_atoms(labels=False) * (4, 2, 2)
    torch.manual_seed(0)
    student = StudentForceField(TINY, [29], [-350.0])
    frame = type(frame).from_atoms(atoms)
    (found,) = predict(student, [frame])
    label = replace(frame, energy=found.energy - 64 * 1e-6)
    batch = collate([label], student.cutoff, torch.float32)
    (error,) = residuals(student.compute(batch), batch).energy.tolist()
    assert error == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_metrics_equal_numpy_whatever_the_batches(frames, student, batch_size):
    found = evaluate(student, frames, batch_size)
    energy, forces, stress = by_hand(frames, predict(student, frames, batch_size=1))
    expected = {
        "energy_mae_mev_per_atom": 1e3 * np.abs(energy).mean(),
        "energy_rmse_mev_per_atom": 1e3 * np.sqrt((energy**2).mean()),
        "force_mae_mev_per_ang": 1e3 * np.abs(forces).mean(),
        "force_rmse_mev_per_ang": 1e3 * np.sqrt((forces**2).mean()),
        "stress_mae_gpa": EV_PER_ANGSTROM3_IN_GPA * np.abs(stress).mean(),
        "stress_rmse_gpa": EV_PER_ANGSTROM3_IN_GPA * np.sqrt((stress**2).mean()),
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-10)


def test_metrics_agree_with_the_evaluation_package(frames, student):
    whole = [s for s in frames if s.pbc.all() or not s.pbc.any()]
    theirs, ours = accuracy(whole, predict(student, whole)), evaluate(student, whole)
    for key, value in ours.items():
        if key != "per_element":
            assert theirs[key] == pytest.approx(value, rel=1e-10)
    for symbol, errors in ours["per_element"].items():
        for key, value in errors.items():
            assert theirs["per_element"][symbol][key] == pytest.approx(value, rel=1e-10)
    present = {chemical_symbols[z] for s in whole if s.forces is not None for z in s.atomic_numbers}
    assert set(ours["per_element"]) == present == {"H", "C", "O", "N", "Cu", "Ag"}


def test_missing_labels_are_none_and_no_frames_an_error(frames, student):
    metrics = evaluate(student, [replace(frames[-1], stress=None)])
    assert metrics["stress_mae_gpa"] is None
    assert metrics["force_mae_mev_per_ang"] > 0
    with pytest.raises(InputError, match="at least one structure"):
        evaluate(student, [])


@pytest.mark.parametrize("pbc", [[True, True, False], [False, True, False]])
def test_stress_labels_of_slabs_and_wires_with_a_cell_count(frames, student, pbc) -> None:
    """ASE's convention, that of EMT: the labels that training compares with."""
    slab = replace(frames[0], pbc=pbc, energy=None, forces=None)
    batch = collate([slab], student.cutoff, torch.float64)
    found = residuals(student.compute(batch), batch)
    assert found.stress.shape == (1, 3, 3)
    energies = []
    for sign in (1, -1):
        strain = np.eye(3) + sign * 1e-5 * np.diag([0, 1, 0])
        moved = replace(slab, positions=slab.positions @ strain, cell=slab.cell @ strain)
        energies.append(student.compute(collate([moved], student.cutoff, torch.float64))["energy"])
    slope = (energies[0] - energies[1]).item() / 2e-5 / abs(np.linalg.det(slab.cell))
    expected = slope - slab.stress[1, 1]
    assert found.stress[0, 1, 1].item() == pytest.approx(expected, abs=1e-7)
