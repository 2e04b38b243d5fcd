"""Every kernel, every load and store of it watched for races (tests/cuda_host/racecheck.h)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import test_cuda_engine
import test_cuda_messages
from cuda_module import build
from native_models import export_to

PROOF = """
import ctypes
assert ctypes.CDLL(gpu.__file__)._ZN9cuda_host12race_enabledEv() & 1, "nobody watches"
"""


@pytest.mark.parametrize(
    ("script", "models"),
    [
        (test_cuda_engine.SANITIZED, ("one", "odd", "zbl")),
        (test_cuda_messages.SANITIZED, ()),
    ],
    ids=["engine", "messages"],
)
def test_no_races(script: str, models: tuple[str, ...], tmp_path: Path) -> None:
    module = build(races=True)
    paths = [export_to(tmp_path, **test_cuda_engine.MODELS[name])[1] for name in models]
    command = [sys.executable, "-c", script + PROOF, str(module.parent), str(Path(__file__).parent)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no complaints" in done.stdout
