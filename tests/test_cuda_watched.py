"""Every kernel, watched: by AddressSanitizer and UBSan under a random schedule, and for races.

The race detector (tests/cuda_host/racecheck.h) follows every load and store of a kernel, whatever the
schedule. What is run is tests/cuda_engine/workout.py; that it launches all that the sources launch is tested.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cuda_host import CSRC, FLAGS, compiler
from support.cuda_models import MODELS
from support.cuda_module import build, sanitizer_environment
from support.processes import clean_environment
from support.students import export_to, make_student
from test_cuda_uncertainty import uncertain

from mlff_distiller.students.export import export_student

WORKOUT = Path(__file__).parent / "cuda_engine" / "workout.py"
#: Who watches, and which schedule: in order, in reverse, at random (tests/cuda_host/cuda_host.h). The race
#: detector's findings do not depend on it; the other two of the sanitizers are some minutes: docs/testing.md.
WATCHED = [("sanitized", 2), ("races", 2)]
if os.environ.get("MLFF_TEST_SCHEDULES") == "all":
    WATCHED += [("sanitized", 0), ("sanitized", 1)]


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    for name in ("default", "one", "odd", "zbl", "other"):
        Path(export_to(folder, **MODELS[name])[1]).rename(folder / f"{name}.pt")
    export_student(uncertain(make_student()), str(folder / "uncertain.pt"))
    return folder


@pytest.fixture(scope="module")
def kernels() -> set[str]:
    """Names of all launches in the sources, as the preprocessor leaves them."""
    found = set()
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        command = [str(compiler()), *FLAGS, "-E", "-x", "c++", str(source)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= set(re.findall(r'gpu::launch\("\(?([^"()]+)\)?",', text))
    assert len(found) > 40
    return found


@pytest.mark.parametrize(("watch", "schedule"), WATCHED)
def test_nothing_is_found(students, kernels, watch, schedule):
    module = build(sanitize=watch == "sanitized", races=watch == "races")
    done = subprocess.run(
        [sys.executable, str(WORKOUT), str(module.parent), str(students), str(schedule)],
        env=sanitizer_environment() if watch == "sanitized" else clean_environment(),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "runtime error" not in done.stderr  # UBSan's, which does not end the process
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["watched"] == [watch]
    assert not kernels - set(report["launches"])
