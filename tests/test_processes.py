"""Training in several processes: started in every way, killed, interrupted, resumed by others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from support.commands import environment
from support.labelled import emt_crystals, tiny_config, write
from support.processes import default_signals

from mlff_distiller.config import TrainConfig, TrainingConfig, save_yaml
from mlff_distiller.errors import InputError
from mlff_distiller.launch import Launch, launched, leads, speaks
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.training import processes, train
from mlff_distiller.training.history import read_history

MODULE = [sys.executable, "-m", "mlff_distiller"]
# s; a loaded machine needs that long to import torch in three processes.
PATIENCE = 240
# s in which the others must end when one was killed.
SECONDS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(16))


def config_of(data: Path, **training) -> TrainConfig:
    """Whose learning rate does not depend on where the run ends."""
    return tiny_config(data, precision="float64", schedule="plateau", device="cpu", **training)


def saved(config: TrainConfig, path: Path) -> Path:
    save_yaml(config, path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(count: int, *arguments) -> list[list[str]]:
    own = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    own += [f"--master-port={free_port()}", "-m", "mlff_distiller"]
    return [[*own, *map(str, arguments)]]


def slurm(rank: int, count: int, port: int) -> dict[str, str]:
    """What srun tells a task."""
    return {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count), "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": str(count),
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


@contextmanager
def started(*commands: list[str], environments=({},), group: bool = False) -> Iterator[list]:
    """Processes with pipes; whatever is left of them is killed at the end."""
    found = [
        subprocess.Popen(
            command, env=environment(**more), preexec_fn=default_signals, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=group,
        )
        for command, more in zip(commands, environments, strict=True)
    ]  # fmt: skip
    try:
        yield found
    finally:
        for process in found:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.communicate()


def srun(count: int, *arguments):
    port = free_port()
    command = [*MODULE, *map(str, arguments)]
    return started(
        *[command] * count, environments=[slurm(rank, count, port) for rank in range(count)]
    )


def wait_for_epochs(run: Path, count: int, process) -> None:
    table, deadline = run / "history.csv", time.monotonic() + PATIENCE
    while not (table.exists() and table.read_text().count("\n") > count):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(process) -> list[psutil.Process]:
    """In the order of their ranks."""
    children = psutil.Process(process.pid).children()
    mine = [c for c in children if "spawn_main" in " ".join(c.cmdline())]
    return sorted(mine, key=lambda c: c.create_time())


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def assert_same_history(one: Path, other: Path) -> None:
    a, b = (read_history(run / "history.csv") for run in (one, other))
    assert len(a["epoch"]) == len(b["epoch"])
    for key in set(a) - {"seconds"}:
        assert a[key].tolist() == pytest.approx(b[key].tolist(), rel=1e-8), key


# -- the same numbers ----------------------------------------------------------------------------


def test_torchrun_srun_and_one_process_go_on_from_each_other(data, tmp_path):
    """Three processes share batches of five and of two: one of them has nothing to do then."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(config_of(data, max_epochs=4), whole, progress=False)

    first = saved(config_of(data, max_epochs=1), tmp_path / "1.yaml")
    with started(*torchrun(2, "train", first, "-o", run, "--json")) as (process,):
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["epochs"] == 1
    assert stderr.count("training in") == 1

    second = saved(config_of(data, max_epochs=3), tmp_path / "2.yaml")
    with srun(3, "train", second, "-o", run, "--resume", "--json") as tasks:
        outputs = [task.communicate(timeout=PATIENCE) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], outputs
    assert json.loads(outputs[0][0])["steps"] == 9
    assert [out for out, _ in outputs[1:]] == ["", ""]

    train(config_of(data, max_epochs=4), run, resume=True, progress=False)
    assert_same_history(whole, run)
    one, other = (read_checkpoint(r / "last.ckpt")["model"] for r in (whole, run))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-8, atol=1e-10, msg=name)


# -- ends ----------------------------------------------------------------------------------------


def test_a_killed_process_ends_the_run_in_seconds(data, tmp_path):
    """The first, which else writes; in the test of srun it is another one."""
    run, victim = tmp_path / "run", 0
    config = saved(config_of(data, max_epochs=100_000, devices=2), tmp_path / "c.yaml")
    with started([*MODULE, "train", str(config), "-o", str(run)]) as (process,):
        wait_for_epochs(run, 2, process)
        workers = workers_of(process)
        assert len(workers) == 2
        workers[victim].kill()
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    (line,) = errors(stderr)
    assert f"process {victim + 1} of 2 was killed (SIGKILL)" in line
    assert "--resume" in line
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    step = read_checkpoint(run / "last.ckpt")["training"]["step"]
    assert step >= 6
    longer = config_of(data, max_epochs=step // 3 + 2)
    assert train(longer, run, resume=True, progress=False)["epochs"] == step // 3 + 2


def test_tasks_of_srun_do_not_wait_for_one_that_was_killed(data, tmp_path):
    run = tmp_path / "run"
    config = saved(config_of(data, max_epochs=100_000), tmp_path / "c.yaml")
    with srun(3, "train", config, "-o", run) as tasks:
        wait_for_epochs(run, 1, tasks[0])
        tasks[2].kill()
        outputs = [task.communicate(timeout=SECONDS)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [2, 2, -signal.SIGKILL], outputs
    (line,) = [line for text in outputs for line in errors(text)]
    assert "another process of this run has ended" in line
    assert "last.ckpt" in line
    assert not any("Traceback" in text for text in outputs)
    assert read_checkpoint(run / "last.ckpt")["training"]["step"] >= 3


def test_ctrl_c_reaches_all_processes_once(data, tmp_path):
    """The keyboard sends SIGINT to every process of the terminal."""
    run = tmp_path / "run"
    config = saved(config_of(data, max_epochs=100_000, devices=2), tmp_path / "c.yaml")
    command = [*MODULE, "train", str(config), "-o", str(run), "--json"]
    with started(command, group=True) as (process,):
        wait_for_epochs(run, 1, process)
        workers = workers_of(process)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "interrupted: the state is kept" in stderr
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    assert read_checkpoint(run / "last.ckpt")["training"]["step"] > 0


def test_bad_input_of_all_processes_is_one_line(data, tmp_path):
    config = saved(config_of(tmp_path / "none.h5"), tmp_path / "c.yaml")
    with srun(2, "train", config, "-o", tmp_path / "run") as tasks:
        outputs = [task.communicate(timeout=PATIENCE)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [2, 2]
    (line,) = [line for text in outputs for line in errors(text)]
    assert "no such file" in line


# -- who started us ------------------------------------------------------------------------------

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip


def given(monkeypatch, variables: dict[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in TORCHRUN:
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_environments_are_told_apart(monkeypatch):
    given(monkeypatch, {})
    assert launched() is None
    assert (leads(), speaks()) == (True, True)
    given(monkeypatch, TORCHRUN)
    assert launched() == Launch("torchrun", 5, 1, 4, 2)
    assert (leads(), speaks()) == (False, False)
    given(monkeypatch, {**TORCHRUN, "RANK": "4", "LOCAL_RANK": "0"})
    assert (leads(), speaks()) == (False, True)
    given(monkeypatch, slurm(2, 3, 1))
    assert launched() == Launch("srun", 2, 2, 3, 1)
    # torchrun within a job of SLURM; a batch script; a shell; a step of one task
    given(monkeypatch, {**slurm(0, 1, 1), **TORCHRUN})
    assert launched().by == "torchrun"
    script = slurm(0, 4, 1)
    del script["SLURM_STEP_ID"]
    given(monkeypatch, script)
    assert launched() is None
    given(monkeypatch, {**slurm(0, 4, 1), "SLURM_JOB_NAME": "interactive"})
    assert launched() is None
    given(monkeypatch, {**slurm(0, 4, 1), "SLURM_STEP_NUM_TASKS": "1"})
    assert launched() is None
    given(monkeypatch, {**slurm(0, 3, 1), "SLURM_STEP_NUM_NODES": "2"})
    with pytest.raises(InputError, match="equally many processes on each machine, got 3"):
        launched()


def test_other_commands_refuse_to_run_many_times(monkeypatch, tmp_path, data):
    from support.commands import run

    given(monkeypatch, {**TORCHRUN, "LOCAL_RANK": "0"})
    found = run("evaluate", tmp_path, "--data", data, code=2)
    assert "runs in one process, got 8 of torchrun" in found.stderr
    with pytest.raises(InputError, match=r"training\.devices must be 1 or as many as torchrun"):
        train(config_of(data, devices=3), tmp_path / "run", progress=False)


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(processes, "usable_cpus", lambda: 8)
    assert processes.threads_of_each(6, None) == 6
    assert processes.threads_of_each(6, Launch("torchrun", 0, 0, 4, 2)) == 2
    assert processes.threads_of_each(6, Launch("torchrun", 0, 0, 16, 1)) == 1
    assert processes.threads_of_each(6, Launch("srun", 0, 0, 4, 2)) == 6


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 2)
    config = TrainingConfig(device="cpu")
    processes.check_devices(config, 8)
    with pytest.raises(InputError, match=r"devices must be 1\.\.8 \(4 for each core\), got 9"):
        processes.check_devices(config, 9)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"1\.\.1 \(GPUs that this process sees\), got 2"):
        processes.check_devices(replace(config, device="cuda"), 2)
