"""fix painn/correct and its server when the other end fails, is gone or is somebody else."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support.backends import needs_lammps
from support.commands import COMMAND, environment
from support.lammps import run_lmp
from support.multistep import TEACHER, FailsAt, write_model
from support.multistep_lammps import run_script, script, serving
from support.processes import default_signals

from mlff_distiller.data import HDF5Dataset
from mlff_distiller.errors import InputError
from mlff_distiller.multistep.server import CorrectionServer
from mlff_distiller.teachers import get_teacher

pytestmark = needs_lammps
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("server") / "si.pt")


# -- a server that fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_teacher_that_fails(model, tmp_path, ranks) -> None:
    lines = "FIX\nfix m all nve\nrun 40"
    done = run_script(tmp_path, model, lines, ranks, teacher=FailsAt(4))
    assert done.returncode != 0
    assert done.output.count("ERROR") == 1
    assert "the teacher failed at step 12" in done.error
    assert "no convergence after 250 iterations" in done.error


class _Stranger:
    """A socket that takes connections and does with them what ``behave`` says."""

    def __init__(self, path: Path, behave) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, args=(behave,), daemon=True)
        self._thread.start()

    def _run(self, behave) -> None:
        connection, _ = self._listener.accept()
        with connection:
            behave(connection)

    def close(self) -> None:
        self._listener.close()


def _gone(connection: socket.socket) -> None:
    connection.recv(10)


def _silent(connection: socket.socket) -> None:
    time.sleep(8)


def _babbling(connection: socket.socket) -> None:
    connection.recv(104)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 10)
    time.sleep(1)


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (_gone, "the server at socket has gone"),
        (_silent, "did not answer within 1 s"),
        (_babbling, "socket is the socket of another program"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_server_that_does_not_answer(model, tmp_path, behave, message, ranks) -> None:
    stranger = _Stranger(tmp_path / "socket", behave)
    lines = "FIX timeout 1\nfix m all nve\nrun 8"
    began = time.monotonic()
    done = run_lmp(tmp_path, script(tmp_path, model, lines), ranks, timeout=60)
    stranger.close()
    assert done.returncode != 0
    assert done.output.count("ERROR") == 1
    assert message in done.error
    assert time.monotonic() - began < 20


# -- the server -------------------------------------------------------------------------------------


def test_the_socket_is_private_and_goes(model, tmp_path) -> None:
    with serving(model, tmp_path / "socket"):
        assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
        with pytest.raises(InputError, match="cannot make the socket"):
            CorrectionServer(None, tmp_path / "socket")  # type: ignore[arg-type]
    assert not (tmp_path / "socket").exists()
    with pytest.raises(InputError, match="at most 103 bytes"):
        CorrectionServer(None, tmp_path / ("x" * 104))  # type: ignore[arg-type]


def test_a_socket_that_a_killed_server_left(model, tmp_path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "socket"))
    left.close()
    with serving(model, tmp_path / "socket"):
        pass


def test_strangers_at_the_server(model, tmp_path) -> None:
    with serving(model, tmp_path / "socket") as server:
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(tmp_path / "socket"))
        stranger.sendall(b"GET / HTTP/1.1\r\n" + b" " * 100)
        assert b"this socket is for fix painn/correct" in stranger.recv(4000)
        stranger.close()
        done = run_lmp(tmp_path, script(tmp_path, model, "FIX\nfix m all nve\nrun 8"), timeout=60)
        assert done.returncode == 0, done.output
        assert server.correction.calls == 3


def test_elements_of_a_server(model, tmp_path) -> None:
    with serving(model, tmp_path / "socket", get_teacher("emt")):
        done = run_lmp(tmp_path, script(tmp_path, model, "FIX\nfix m all nve\nrun 8"), timeout=60)
    assert "emt does not know Si" in done.error


def test_the_command_prints_the_line_to_paste(model, tmp_path) -> None:
    command = [*COMMAND, "correct-server", model, "--teacher", TEACHER, "--every", 4]
    command += ["--dtype", "float64", "--keep-labels", tmp_path / "labels.h5"]
    with subprocess.Popen(
        list(map(str, command)), env=environment(), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=tmp_path, preexec_fn=default_signals,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        assert re.fullmatch(r"fix correct all painn/correct /\S+ every 4", line)
        text = script(tmp_path, model, f"{line}\nfix m all nve\nrun 16")
        done = run_lmp(tmp_path, text, timeout=60)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
    assert done.returncode == 0, done.output
    assert not Path(line.split()[4]).exists()
    labels = HDF5Dataset(tmp_path / "labels.h5")
    assert [labels[k].info["step"] for k in range(len(labels))] == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("ranks", [1, 2])
def test_example(tmp_path, ranks) -> None:
    path = write_model(tmp_path / "si.pt")
    text = (EXAMPLES / "lammps" / "multiple_time_steps.lmp").read_text()
    settings = {"model": path, "socket": "socket", "every": 4, "cells": 1, "steps": 16}
    words = [w for key, value in settings.items() for w in ("-var", key, str(value))]
    with serving(path, tmp_path / "socket") as server:
        done = run_lmp(tmp_path, text, ranks, *words, timeout=60)
        assert done.returncode == 0, done.output
        assert server.correction.calls == 5
    assert re.search(r"^TEACHER MINUS STUDENT -?\d+\.\d{6} eV$", done.output, re.MULTILINE)
