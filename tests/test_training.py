from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import TINY, emt_crystals, emt_molecules, tiny_config, write
from support.training_runs import (
    assert_same_run,
    history,
    small_data,
    uninterrupted,
    weights_of,
)

from mlff_distiller import __version__
from mlff_distiller.config import TrainConfig, load_config
from mlff_distiller.data import HDF5Dataset, HDF5Writer
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.training import Hooks, evaluate, train
from mlff_distiller.training import trainer as trainer_module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return uninterrupted(data, tmp_path_factory.mktemp("finished"))


# -- learning ------------------------------------------------------------------------------------


def test_a_small_network_learns_and_is_recorded(data, tmp_path):
    config = tiny_config(data, max_epochs=60, batch_size=3, learning_rate=1e-2, ema_decay=0.98)
    config = replace(config, model=replace(TINY, hidden_dim=16))
    result = train(config, tmp_path / "run", progress=False)
    dataset = HDF5Dataset(data)
    train_frames = dataset.subset("train")
    student = StudentForceField.load(tmp_path / "run")
    size = np.abs(np.concatenate([s.forces for s in train_frames])).mean()
    metrics = evaluate(student, train_frames)
    assert size > 0.3  # eV/Å: there is something to learn
    assert metrics["force_mae_mev_per_ang"] < 0.15 * 1e3 * size
    assert metrics["energy_mae_mev_per_atom"] < 20
    assert metrics["stress_mae_gpa"] < 1.0

    validation = evaluate(student, dataset.subset("valid"))
    assert set(validation) - {"num_frames"} == set(result["validation"])
    for key in ("force_mae_mev_per_ang", "energy_rmse_mev_per_atom", "stress_mae_gpa"):
        assert result["validation"][key] == pytest.approx(validation[key], rel=1e-5)
    copper = validation["per_element"]["Cu"]
    assert result["validation"]["per_element"]["Cu"] == pytest.approx(copper, rel=1e-5)
    assert result["steps"] == 4 * result["epochs"]
    json.dumps(result)
    metadata = read_checkpoint(tmp_path / "run")["metadata"]
    assert metadata["teacher"] == "emt"
    assert metadata["data_hash"] == dataset.hash() == result["data_hash"]
    assert metadata["package_version"] == __version__
    assert metadata["validation"]["force_mae_mev_per_ang"] == validation["force_mae_mev_per_ang"]
    distances = [s.to_atoms().get_all_distances(mic=True) for s in train_frames]
    nearest = min(d[d > 0].min() for d in distances)
    assert metadata["min_distance"] == pytest.approx(nearest, abs=1e-9)
    assert load_config(tmp_path / "run" / "config.yaml", TrainConfig) == config


def test_molecules_without_stress_train(tmp_path):
    frames = [s for i, s in enumerate(emt_molecules(30)) if i % 6 < 2]  # water and methane
    config = tiny_config(write(tmp_path / "m.h5", frames), precision="float64", max_epochs=2)
    config = replace(config, model=replace(TINY, zbl=True))
    result = train(config, tmp_path / "run", progress=False)
    assert result["validation"]["stress_mae_gpa"] is None
    assert result["validation"]["force_mae_mev_per_ang"] > 0
    assert history(tmp_path / "run")[0]["valid_stress_mae"] == "nan"
    student = StudentForceField.load(tmp_path / "run")
    assert student.painn.embedding.weight.dtype == torch.float64
    assert student.reference_energies.abs().min() > 0


def test_an_element_in_the_validation_split_alone_is_refused(tmp_path):
    path = write(tmp_path / "m.h5", emt_molecules(2), valid=0.0)
    store_splits(path, {"train": np.array([0]), "valid": np.array([1]), "test": np.array([], int)})
    with pytest.raises(InputError, match=r"validation split holds [CO], which .* lacks") as error:
        train(tiny_config(path), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)


def test_history_agrees_with_the_checkpoint(finished):
    output, result = finished
    rows = history(output)
    assert [int(r["epoch"]) for r in rows] == [0, 1, 2, 3]
    assert [int(r["step"]) for r in rows] == [3, 6, 9, 12]
    kinds = ("energy", "force", "stress")
    best = min(rows, key=lambda r: math.prod(float(r[f"valid_{kind}_mae"]) for kind in kinds))
    assert result["best_epoch"] == int(best["epoch"]) + 1
    assert 1e3 * float(best["valid_force_mae"]) == result["validation"]["force_mae_mev_per_ang"]
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])


def test_training_leaves_the_random_state_and_threads_alone(data, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    train(tiny_config(data, max_epochs=1), tmp_path / "run", progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_seeds_decide_the_run(data, finished, tmp_path):
    train(tiny_config(data), tmp_path / "same", progress=False)
    assert_same_run(finished[0], tmp_path / "same")
    train(tiny_config(data, seed=1), tmp_path / "other", progress=False)
    assert history(finished[0]) != history(tmp_path / "other")


# -- limits and failures -------------------------------------------------------------------------


def test_a_limit_in_minutes_ends_the_run_in_the_middle_of_an_epoch(data, tmp_path):
    config = tiny_config(data, max_epochs=100_000, max_minutes=1 / 60, batch_size=1)
    start = time.monotonic()
    result = train(config, tmp_path / "run", progress=False)
    assert result["stopped"] == "max_minutes"
    assert 1.0 <= result["seconds"] < time.monotonic() - start
    assert result["epochs"] == len(history(tmp_path / "run"))
    rates = [float(r["learning_rate"]) for r in history(tmp_path / "run")]
    assert rates[-1] < 0.2 * config.training.learning_rate


def test_early_stop(data, tmp_path, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0, 1.0])
    monkeypatch.setattr(trainer_module.ErrorSums, "loss", lambda self: next(losses))
    config = tiny_config(data, max_epochs=50, early_stop_patience=2)
    result = train(config, tmp_path / "run", progress=False)
    assert result["stopped"] == "early stop"
    assert (result["epochs"], result["best_epoch"]) == (7, 4)
    assert read_checkpoint(tmp_path / "run")["metadata"]["epoch"] == 4


class Poison(Hooks):
    """Puts NaN into the weights before a step, as often as it is asked to."""

    def __init__(self, times, step=4):
        self.left, self.step = times, step

    def before_step(self, run):
        if run.step == self.step and self.left:
            self.left -= 1
            with torch.no_grad():
                next(run.student.parameters()).fill_(math.nan)


def test_a_loss_that_is_not_finite_again_and_again_names_epoch_and_remedy(data, tmp_path):
    poison = Poison(100)
    with pytest.raises(InputError) as error:
        train(tiny_config(data), tmp_path / "run", hooks=poison, progress=False)
    assert poison.left == 94
    text = str(error.value)
    assert "nan in epoch 2, batch 2" in text
    assert "training.learning_rate (now 0.003, halved 5 times)" in text
    assert "kept: best.ckpt, last.ckpt" in text
    assert "\n" not in text
    for name in ("best.ckpt", "last.ckpt"):
        assert all(torch.isfinite(v).all() for v in weights_of(tmp_path / "run", name))


def test_a_run_that_blows_up_goes_back_and_on_with_smaller_steps(
    data, tmp_path, monkeypatch, capsys
):
    # Of the beginning only the first epoch is kept, so that two more are lost.
    monkeypatch.setattr(trainer_module, "_SAVE_INTERVAL", 1e9)
    config = tiny_config(data, max_epochs=5, warmup_steps=0)
    plain = train(config, tmp_path / "plain", progress=False)
    capsys.readouterr()
    result = train(config, tmp_path / "run", hooks=Poison(2, step=10))
    assert "back to epoch 2, batch 1, with a learning rate of 0.00075" in capsys.readouterr().err
    assert (result["epochs"], result["steps"]) == (plain["epochs"], plain["steps"])
    rows = history(tmp_path / "run")
    assert [int(r["epoch"]) for r in rows] == list(range(5))
    rates = [float(r["learning_rate"]) for r in rows]
    straight = [float(r["learning_rate"]) for r in history(tmp_path / "plain")]
    assert rates == pytest.approx([straight[0], *(0.25 * r for r in straight[1:])])
    # What has been halved stays so in a run that is resumed.
    longer = replace(config, training=replace(config.training, max_epochs=6))
    train(longer, tmp_path / "run", resume=True, progress=False)
    train(longer, tmp_path / "plain", resume=True, progress=False)
    last, full = (float(history(tmp_path / n)[-1]["learning_rate"]) for n in ("run", "plain"))
    assert last == pytest.approx(0.25 * full)


def test_a_validation_loss_that_is_absurd_counts_as_blown_up(data, tmp_path, monkeypatch, capsys):
    losses = iter([1.0, 2e4, *[0.9] * 5])
    monkeypatch.setattr(trainer_module.ErrorSums, "loss", lambda self: next(losses))
    result = train(tiny_config(data, max_epochs=3), tmp_path / "run")
    assert "validation loss became 20000 in epoch 2" in capsys.readouterr().err
    assert result["epochs"] == 3
    assert [float(r["valid_loss"]) for r in history(tmp_path / "run")] == [1.0, 0.9, 0.9]


def test_bad_input_is_reported_in_one_line(tmp_path, data):
    def message(config):
        with pytest.raises(InputError) as error:
            train(config, tmp_path / "run", progress=False)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file" in message(tiny_config(tmp_path / "none.h5"))
    unlabelled = tmp_path / "bare.h5"
    with HDF5Writer(unlabelled) as writer:
        writer.append([s.with_labels(None) for s in emt_crystals(4)])
    assert "labels" in message(tiny_config(unlabelled))
    assert "devices must be" in message(tiny_config(data, devices=10**6))
    assert "data.path" in message(TrainConfig())
    if not torch.cuda.is_available():
        assert "CUDA" in message(tiny_config(data, device="cuda"))
    with pytest.raises(InputError, match="device must be one of auto, cpu, cuda"):
        tiny_config(data, device="abacus")
    with pytest.raises(InputError, match="devices must be >= 1, got 0"):
        tiny_config(data, devices=0)


def test_missing_tensorboard_is_no_obstacle(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tiny_config(data, max_epochs=1, tensorboard=True), tmp_path / "run")
    assert "tensorboard is not installed" in capfd.readouterr().err
    assert len(history(tmp_path / "run")) == 1


def test_tensorboard_holds_the_history(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_config(data, max_epochs=2, tensorboard=True), tmp_path / "run", progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("valid/force_mae")]
    assert found == pytest.approx([float(r["valid_force_mae"]) for r in history(tmp_path / "run")])


def test_plain_lines_where_there_is_no_terminal(data, tmp_path, capfd):
    train(tiny_config(data), tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    assert "12 structures, 48 atoms, validated on 4" in err
    assert "reference energies, eV: Z=29" in err
    assert "meV/Å" in err
    assert "\x1b" not in err


def test_two_processes_equal_one(data, tmp_path):
    """Each takes half of every batch; only the order of sums differs."""
    for devices, name in ((1, "one"), (2, "two")):
        config = tiny_config(data, devices=devices, precision="float64")
        train(config, tmp_path / name, progress=False)
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert {k: float(v) for k, v in b.items()} == pytest.approx(
            {k: float(v) for k, v in a.items()}, rel=1e-9
        )
    with pytest.raises(InputError, match="start without --resume") as error:
        train(tiny_config(data, devices=2), tmp_path / "no", resume=True, progress=False)
    assert "\n" not in str(error.value)
