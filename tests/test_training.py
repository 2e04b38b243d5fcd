from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import TINY, emt_crystals, emt_molecules, tiny_config, write
from support.processes import clean_environment, default_signals

from mlff_distiller import __version__
from mlff_distiller.config import ModelConfig, TrainConfig, TrainingConfig, load_config
from mlff_distiller.data import HDF5Dataset, HDF5Writer, collate, ensure_splits
from mlff_distiller.data.coverage import closest_pairs
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.export import export_run, export_student
from mlff_distiller.training import Hooks, evaluate, fit_reference_energies, train
from mlff_distiller.training import trainer as trainer_module
from mlff_distiller.training.interrupt import Interrupt
from mlff_distiller.training.reference import repulsion_of, scale_readout, vectors_of
from mlff_distiller.training.schedule import Schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(16))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted run of four epochs: directory and result."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, train(tiny_config(data), output, progress=False)


def history(output: Path) -> list[dict[str, str]]:
    """Rows of history.csv as text, so that comparisons are bit for bit; without the clock."""
    with (output / "history.csv").open(newline="") as file:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(file)]


def weights_of(output: Path, name: str = "last.ckpt") -> list[torch.Tensor]:
    content = torch.load(output / name, weights_only=True)
    states = [content["model"]]
    if content["training"] is not None:
        states.append(content["training"]["student"])
        moments = content["training"]["optimizer"]["state"]
        states += [moments[k] for k in sorted(moments)]
    return [v for state in states for v in state.values()]


def assert_same_run(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    pairs = list(zip(weights_of(one), weights_of(other), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)
    best = zip(weights_of(one, "best.ckpt"), weights_of(other, "best.ckpt"), strict=True)
    assert all(torch.equal(a, b) for a, b in best)


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


# -- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_stopped_and_resumed_equals_uninterrupted(data, finished, tmp_path, steps):
    """Stops in the middle of an epoch, at its end (before validation) and in a later one."""
    done = []

    class Counted(Hooks):
        def after_step(self, run, loss):
            done.append(loss)
            if len(done) == steps:
                run.stop()

    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(data), tmp_path / "run", hooks=Counted(), progress=False)
    assert len(done) == steps
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["training"]["step"] == steps
    train(tiny_config(data), tmp_path / "run", resume=True, hooks=Counted(), progress=False)
    assert len(done) == 12
    assert_same_run(finished[0], tmp_path / "run")


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_every_epoch_can_be_a_stop(data, tmp_path, schedule):
    options = {"schedule": schedule, "plateau_patience": 0, "ema_decay": 0.5, "max_epochs": 5}
    config = tiny_config(data, **options)
    train(config, tmp_path / "whole", progress=False)

    class Stopping(Hooks):
        def after_epoch(self, run, row):
            run.stop()

    for stops in range(10):
        try:
            resume = bool(stops)
            train(config, tmp_path / "pieces", resume=resume, hooks=Stopping(), progress=False)
        except KeyboardInterrupt:
            continue
        break
    assert stops == 4
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")


SCRIPT = """
import sys
from pathlib import Path
from support.labelled import tiny_config
from mlff_distiller.training import train
train(tiny_config(Path(sys.argv[1]), max_epochs=int(sys.argv[3])), sys.argv[2])
"""


def test_ctrl_c_keeps_the_state_and_resume_equals_uninterrupted(data, tmp_path):
    epochs = 2000
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data), str(tmp_path / "run"), str(epochs)],
        cwd=Path(__file__).parent,
        env=clean_environment(),
        preexec_fn=default_signals,
        stderr=subprocess.PIPE,
        text=True,
    )
    table = tmp_path / "run" / "history.csv"
    deadline = time.monotonic() + 240
    while not (table.exists() and table.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in output
    assert "holds the state" in output
    stopped = read_checkpoint(tmp_path / "run" / "last.ckpt")["training"]
    assert 0 < stopped["step"] < 3 * epochs
    # Compare a few epochs beyond the stop with a run that was never stopped. With the schedule
    # of the long run, of course, so both are stopped there by patience.
    end = stopped["epoch"] + 2
    config = tiny_config(data, max_epochs=epochs)

    class Ending(Hooks):
        def after_epoch(self, run, row):
            if run.epoch >= end:
                run.finish("enough")

    for folder in ("run", "whole"):
        resume = folder == "run"
        result = train(config, tmp_path / folder, resume=resume, hooks=Ending(), progress=False)
        assert result["stopped"] == "enough"
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_second_ctrl_c_does_not_wait():
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    with interrupt.watch():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_refuses_what_does_not_belong_together(data, finished, tmp_path):
    output, _ = finished
    config = tiny_config(data)
    with pytest.raises(InputError, match="start without --resume"):
        train(config, tmp_path / "none", resume=True, progress=False)
    wider = replace(config, model=replace(TINY, hidden_dim=16))
    with pytest.raises(InputError, match="hidden_dim 8 instead of 16"):
        train(wider, output, resume=True, progress=False)
    other = write(tmp_path / "other.h5", emt_crystals(16, seed=9))
    with pytest.raises(InputError, match="other data"):
        train(tiny_config(other), output, resume=True, progress=False)
    # The same structures, split in another way: what would be validated was trained on.
    content = data.read_bytes()
    split = tmp_path / "split.h5"
    split.write_bytes(content)
    ensure_splits(split, 0.5, 0.0, 7, anew=True)
    with pytest.raises(InputError, match="other data"):
        train(tiny_config(split), output, resume=True, progress=False)


def test_auto_resumes_only_what_fits(data, tmp_path):
    run = tmp_path / "run"
    first = train(tiny_config(data, max_epochs=2), run, resume="auto", progress=False)
    again = train(tiny_config(data, max_epochs=2), run, resume="auto", progress=False)
    assert again["steps"] == first["steps"] == 6
    assert not (run / "best.ckpt.old").exists()
    (run / "last.ckpt").write_bytes(b"damaged")
    anew = train(tiny_config(data, max_epochs=2), run, resume="auto", progress=False)
    assert anew["steps"] == 6
    assert (run / "best.ckpt.old").exists()
    train(tiny_config(data, max_epochs=1), run, resume="auto", progress=False)
    assert len(history(run)) == 1


def test_auto_goes_on_with_other_limits_and_another_way_to_compute(data, tmp_path):
    """A finished training must not be thrown away for a longer one or for TensorBoard."""
    run = tmp_path / "run"
    first = train(tiny_config(data, max_epochs=2), run, progress=False)
    weights = weights_of(run, "best.ckpt")
    moved = tmp_path / "moved.h5"
    shutil.copy(data, moved)
    same = tiny_config(moved, max_epochs=2, tensorboard=True, threads=2)
    again = train(same, run, resume="auto", progress=False)
    assert again["steps"] == first["steps"]
    assert all(map(torch.equal, weights_of(run, "best.ckpt"), weights))
    longer = tiny_config(data, max_epochs=3)
    assert train(longer, run, resume="auto", progress=False)["epochs"] == 3
    assert [int(row["epoch"]) for row in history(run)] == [0, 1, 2]
    assert not (run / "best.ckpt.old").exists()
    drawn = replace(longer, data=replace(longer.data, split_seed=1))
    for other in (drawn, tiny_config(data, max_epochs=3, learning_rate=1e-4)):
        (run / "best.ckpt.old").unlink(missing_ok=True)
        train(other, run, resume="auto", progress=False)
        assert (run / "best.ckpt.old").exists()


# -- starting from a student -----------------------------------------------------------------------


def test_start_from_takes_the_weights_and_nothing_else(data, finished, tmp_path):
    seen = []

    class First(Hooks):
        def before_step(self, run):
            if run.step == 0:
                seen.append({k: v.clone() for k, v in run.student.state_dict().items()})

    output, _ = finished
    expected = read_checkpoint(output)["model"]
    exported = tmp_path / "student.pt"
    export_run(output, exported)
    for k, source in enumerate((output, output / "best.ckpt", exported)):
        config = tiny_config(data, max_epochs=1, seed=7)
        result = train(config, tmp_path / f"{k}", start_from=source, hooks=First(), progress=False)
        assert all(torch.equal(value, expected[name]) for name, value in seen[-1].items())
        assert result["steps"] == 3
        rates = [float(row["learning_rate"]) for row in history(tmp_path / f"{k}")]
        assert rates[0] == Schedule(config.training, 3).learning_rate(2, 0.0)
    assert len(seen) == 3


def test_start_from_keeps_a_resumed_run_on_its_way(data, finished, tmp_path):
    output, _ = finished
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    config = tiny_config(data)
    train(config, whole, start_from=output, progress=False)

    class Stopping(Hooks):
        def after_epoch(self, run, row):
            if run.epoch == 2:
                run.stop()

    with pytest.raises(KeyboardInterrupt):
        train(config, pieces, start_from=output, hooks=Stopping(), progress=False)
    train(config, pieces, resume=True, progress=False)
    assert_same_run(whole, pieces)


def test_start_from_refuses_another_network_or_an_unknown_element(data, finished, tmp_path):
    output, _ = finished
    wider = replace(tiny_config(data), model=replace(TINY, hidden_dim=16))
    with pytest.raises(InputError, match=r"hidden_dim 8 instead of 16.*without --from"):
        train(wider, tmp_path / "run", start_from=output, progress=False)
    student = StudentForceField(TINY, [1, 6])
    export_student(student, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt knows H C, the data holds"):
        train(tiny_config(data), tmp_path / "run", start_from=tmp_path / "other.pt", progress=False)
    with pytest.raises(InputError, match="no such"):
        train(tiny_config(data), tmp_path / "run", start_from=tmp_path / "no.pt", progress=False)
    assert not (tmp_path / "run").exists()


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


def test_a_loss_that_is_not_finite_names_epoch_and_remedy(data, tmp_path):
    class Poison(Hooks):
        def before_step(self, run):
            if run.step == 4:
                with torch.no_grad():
                    next(run.student.parameters()).fill_(math.nan)

    with pytest.raises(InputError) as error:
        train(tiny_config(data), tmp_path / "run", hooks=Poison(), progress=False)
    text = str(error.value)
    assert "nan in epoch 2, batch 2" in text
    assert "training.learning_rate (now 0.003)" in text
    assert "kept: best.ckpt, last.ckpt" in text
    assert "\n" not in text
    for name in ("best.ckpt", "last.ckpt"):
        assert all(torch.isfinite(v).all() for v in weights_of(tmp_path / "run", name))


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


# -- parts ---------------------------------------------------------------------------------------


def test_schedules():
    config = TrainingConfig(max_epochs=10, warmup_steps=5, learning_rate=1.0, max_minutes=2.0)
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
