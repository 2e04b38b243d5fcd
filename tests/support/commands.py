"""Runs the command line for tests."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlff_distiller.cli import app
from support.processes import clean_environment

COMMAND = [sys.executable, "-m", "mlff_distiller.cli"]


def environment(**more: str) -> dict[str, str]:
    return clean_environment(NO_COLOR="1", **more)


@dataclass
class Outcome:
    """What a command printed."""

    stdout: str
    stderr: str


def run(*arguments: Any, code: int = 0, cwd: Path | None = None) -> Outcome:
    """Run a command in this process (importing torch anew for each would take minutes)."""
    stdout, stderr = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(cwd or here)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            app([str(a) for a in arguments], prog_name="mlff-distiller")
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        os.chdir(here)
    assert status == code, stdout.getvalue() + stderr.getvalue()
    return Outcome(stdout.getvalue(), stderr.getvalue())


def launch(*arguments: Any, code: int = 0, **kwargs: Any) -> Outcome:
    """Run a command in a process of its own.

    It leaves no compiled modules behind: with a limit on the size of files they would be cut off,
    and every process after it would end with "marshal data too short".
    """
    command = [*COMMAND, *map(str, arguments)]
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, **kwargs
    )
    assert process.returncode == code, process.stdout + process.stderr
    return Outcome(process.stdout, process.stderr)
