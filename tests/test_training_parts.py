"""What a run is made of: schedules, averages, reference energies, the first weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.labelled import TINY, emt_crystals, emt_molecules

from mlff_distiller.config import ModelConfig, TrainingConfig
from mlff_distiller.data import collate
from mlff_distiller.data.coverage import closest_pairs
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.training import fit_reference_energies
from mlff_distiller.training.reference import repulsion_of, scale_readout, vectors_of
from mlff_distiller.training.schedule import Schedule


def test_schedules():
    config = TrainingConfig(
        max_epochs=10, warmup_steps=5, learning_rate=1.0, max_minutes=2.0, long_run_rate=0.0
    )
    cosine = Schedule(config, steps_per_epoch=10)
    half = 0.01 + 0.99 * 0.5
    assert cosine.learning_rate(50, 0.0) == pytest.approx(half)
    assert cosine.learning_rate(50, 60.0) == pytest.approx(half)
    assert cosine.learning_rate(20, 60.0) == pytest.approx(half)  # the clock is ahead
    assert cosine.learning_rate(100, 0.0) == pytest.approx(0.01)
    assert cosine.progress(3, 500.0) == 1.0

    config = TrainingConfig(
        schedule="plateau",
        plateau_patience=1,
        plateau_factor=0.5,
        learning_rate=1.0,
        warmup_steps=0,
        long_run_rate=0.0,
    )
    plateau = Schedule(config, steps_per_epoch=10)
    rates = []
    for loss in [3.0, 2.0, 2.5, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0]:
        plateau.end_epoch(loss)
        rates.append(plateau.learning_rate(10, 0.0))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    copy = Schedule(config, steps_per_epoch=10)
    copy.load_state_dict(plateau.state_dict())
    assert copy.learning_rate(10, 0.0) == 0.125


def test_average_of_weights():
    from mlff_distiller.training.setup import AveragedStudent

    student = StudentForceField(TINY, [29])
    averaged = AveragedStudent(student, 0.6)
    weight, expected = (
        student.painn.embedding.weight,
        student.painn.embedding.weight.detach().clone(),
    )
    for step, value in enumerate([1.0, -2.0, 5.0, 3.0, 0.5, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]):
        with torch.no_grad():
            weight.fill_(value)
        averaged.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(averaged.student.painn.embedding.weight, expected, atol=1e-6)
    follower = AveragedStudent(student, 0.0)
    with torch.no_grad():
        weight.fill_(7.0)
    follower.update(100)
    assert torch.equal(follower.student.painn.embedding.weight, weight)


def test_reference_energies_recover_a_sum_over_atoms():
    rng = np.random.default_rng(0)
    truth = {1: -13.6, 6: -1030.25, 7: -1485.5, 8: -2042.125}
    frames = [
        s.with_labels(float(sum(truth[int(z)] for z in s.atomic_numbers))) for s in emt_molecules(6)
    ]
    order = [8, 1, 6, 7]
    found = fit_reference_energies(frames, order)
    assert found == pytest.approx([truth[z] for z in order], rel=1e-10)
    extra = rng.normal(0, 5, len(frames))
    shifted = [s.with_labels(s.energy + e) for s, e in zip(frames, extra, strict=True)]
    assert fit_reference_energies(shifted, order, extra) == pytest.approx(found, rel=1e-10)


def test_reference_energies_where_composition_says_too_little():
    water = emt_molecules(1)[0]
    frames = [water.with_labels(-30.0), water.with_labels(-33.0)]
    oxygen, hydrogen = fit_reference_energies(frames, [8, 1])
    assert oxygen + 2 * hydrogen == pytest.approx(-31.5)
    assert hydrogen == pytest.approx(2 * oxygen)  # the shortest such vector
    (silicon,) = fit_reference_energies([s.with_labels(-40.0) for s in emt_crystals(1)], [29])
    assert silicon == pytest.approx(-10.0)
    assert fit_reference_energies(frames, [8, 1, 92])[2] == pytest.approx(0.0)
    with pytest.raises(InputError, match="an energy, got none"):
        fit_reference_energies([water.with_labels(None)], [8, 1])
    with pytest.raises(InputError, match="Z=8"):
        fit_reference_energies(frames, [1])


def test_readout_starts_small_and_centred():
    frames = emt_crystals(6)
    torch.manual_seed(3)
    student = StudentForceField(replace(TINY, zbl=True), [29, 47], [-1.0, -2.0])
    batch = collate(frames, student.cutoff)
    scale_readout(student, batch)
    student.repulsion = None
    result = student.compute(batch)
    rms = float(result["forces"].square().mean().sqrt() / batch.forces.square().mean().sqrt())
    assert rms == pytest.approx(0.1, rel=1e-3)
    energies = (
        result["energies"] - student.reference_energies[student.species(batch.atomic_numbers)]
    )
    assert float(energies.mean()) == pytest.approx(0.0, abs=1e-5)


def test_repulsion_and_closest_pair():
    frames = emt_crystals(3) + emt_molecules(2)
    elements = sorted({int(z) for s in frames for z in s.atomic_numbers})
    model = ModelConfig(hidden_dim=8, zbl=True, zbl_reach=1.0)
    student = StudentForceField(model, elements).to(torch.float64)
    with torch.no_grad():
        student.painn.readout[-1].weight.zero_()
        student.painn.readout[-1].bias.zero_()
    batch = collate(frames, student.cutoff, torch.float64)
    expected = student.compute(batch)["energy"]
    species = student.species(batch.atomic_numbers)
    found = repulsion_of(student.repulsion, species, batch, vectors_of(batch))
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert found[0] > 0
    lone = replace(frames[-1], atomic_numbers=[1], positions=[[0, 0, 0]], forces=None)
    assert closest_pairs([lone], 5.0) == {}
    distances = frames[-1].to_atoms().get_all_distances()
    assert min(closest_pairs(frames[-1:], 5.0).values()) == pytest.approx(
        distances[distances > 0].min()
    )
