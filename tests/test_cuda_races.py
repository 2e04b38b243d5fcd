"""Every kernel, every load and store of it watched for races (tests/cuda_host/racecheck.h)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import test_cuda_engine
import test_cuda_messages
from support.cuda_models import MODELS
from support.cuda_module import build
from support.students import export_to

# More atoms than one round of a scan takes.
LARGE = """
import sys
sys.path[:0] = sys.argv[1:2]
import numpy as np
import _cuda_emulated as gpu
potential = gpu.GpuPotential(sys.argv[3])
sites = np.stack(np.meshgrid(*[np.arange(17)] * 3), -1).reshape(-1, 3)
positions = 2.8 * sites + np.random.default_rng(0).uniform(-0.1, 0.1, sites.shape)
numbers = np.full(len(sites), 8, np.int64)
out = potential.compute(numbers, positions, 47.6 * np.eye(3), np.ones(3, bool), True, False)
assert np.isfinite(out["forces"]).all()
print("no complaints")
"""
PROOF = """
import ctypes
assert ctypes.CDLL(gpu.__file__)._ZN9cuda_host12race_enabledEv() & 1, "nobody watches"
"""


@pytest.mark.parametrize(
    ("script", "models"),
    [
        (test_cuda_engine.SANITIZED, ("one", "odd", "zbl")),
        (LARGE, ("one",)),
        (test_cuda_messages.SANITIZED, ()),
    ],
    ids=["engine", "large", "messages"],
)
def test_no_races(script: str, models: tuple[str, ...], tmp_path: Path) -> None:
    module = build(races=True)
    paths = [export_to(tmp_path, **MODELS[name])[1] for name in models]
    command = [sys.executable, "-c", script + PROOF, str(module.parent), str(Path(__file__).parent)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no complaints" in done.stdout
