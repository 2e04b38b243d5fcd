"""Two runs never share a folder, and a lock never outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import environment, run

from mlff_distiller.errors import InputError
from mlff_distiller.pipeline.alone import LOCK, alone_in

HOLD = """
import pathlib, sys, time
from mlff_distiller.pipeline.alone import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_folder_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with alone_in(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"):  # noqa: SIM117
            with alone_in(tmp_path):
                pass


def test_a_file_system_without_locks_is_no_reason_to_refuse(tmp_path, monkeypatch) -> None:
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")


def test_a_second_distill_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    arguments = ("distill", "builtin:silicon-8", "--teacher", "nonsense", "-o", tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        error = run(*arguments, code=2).stderr
        assert f"used by another distill (process {first.pid} on" in error
        assert "wait for it to end, or name another directory with -o" in error
        assert [p.name for p in tmp_path.iterdir()] == [LOCK], "nothing was touched"
        first.send_signal(signal.SIGKILL)
    assert "used by another" not in run(*arguments, code=2).stderr
