"""Runs that were stopped go on as if they had not been; what may be resumed, or started from."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.labelled import TINY, emt_crystals, tiny_config, write
from support.processes import clean_environment, default_signals
from support.training_runs import (
    assert_same_run,
    history,
    small_data,
    uninterrupted,
    weights_of,
)

from mlff_distiller.data import ensure_splits
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.export import export_run, export_student
from mlff_distiller.training import Hooks, train
from mlff_distiller.training.interrupt import Interrupt
from mlff_distiller.training.schedule import Schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return uninterrupted(data, tmp_path_factory.mktemp("finished"))


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


def test_a_signal_after_the_last_step_is_not_lost(data, tmp_path):
    config = tiny_config(data, max_epochs=2)

    class Terminated(Hooks):
        def after_epoch(self, run, row):
            if run.epoch == 2:  # nothing looks any more whether training has to stop
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", hooks=Terminated(), progress=False)
    again = train(config, tmp_path / "run", resume=True, progress=False)
    assert again["epochs"] == 2
    train(config, tmp_path / "whole", progress=False)
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


def test_auto_resumes_only_what_fits(data, tmp_path, capsys):
    run = tmp_path / "run"
    first = train(tiny_config(data, max_epochs=2), run, resume="auto")
    again = train(tiny_config(data, max_epochs=2), run, resume="auto")
    assert again["steps"] == first["steps"] == 6
    assert not (run / "best.ckpt.old").exists()
    assert "begins anew" not in capsys.readouterr().err
    (run / "last.ckpt").write_bytes(b"damaged")
    anew = train(tiny_config(data, max_epochs=2), run, resume="auto")
    assert "or damaged: training begins anew" in capsys.readouterr().err
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
