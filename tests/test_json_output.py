"""``--json``: stdout is one JSON object, whatever a teacher prints there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from support.commands import launch

# Through Python, through C (whose lines wait in a buffer of their own) and by a program of its own.
NOISY = """
import ctypes, os
from ase.calculators.emt import EMT

class Noisy(EMT):
    def __init__(self):
        print("loading")
        super().__init__()

    def calculate(self, *arguments):
        print("iteration 1")
        ctypes.CDLL(None).puts(b"converged")
        os.system("echo done")
        super().calculate(*arguments)
"""


@pytest.mark.parametrize("command", ["label", "sample"])
def test_a_teacher_that_prints_leaves_stdout_to_json(tmp_path: Path, command: str) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    write(tmp_path / "cu.extxyz", bulk("Cu", cubic=True))
    more = ["--rattle", 2, "--md", 2] if command == "sample" else []
    name = "out.extxyz" if more else "out.h5"
    found = launch(
        command,
        "cu.extxyz",
        "--teacher",
        "noisy:Noisy()",
        "-o",
        name,
        *more,
        "--json",
        cwd=tmp_path,
    )
    assert json.loads(found.stdout)["path"] == name
    for line in ("iteration 1", "converged", "done"):
        assert line in found.stderr
