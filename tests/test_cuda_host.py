"""The host emulation of CUDA is tested before anything is tested with it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support import cuda_host

SELFTEST = cuda_host.EMULATION / "selftest"
SOURCES = sorted(SELFTEST.glob("*.cpp"))
CASES = sorted(
    name
    for path in SOURCES
    for name in re.findall(r"^CASE\((\w+)\)", path.read_text(), flags=re.MULTILINE)
)
# Errors that only AddressSanitizer can see; these cases end the process.
ONLY_SANITIZED = {
    "host_dereference": "use-after-poison",
    "global_read_out_of_bounds": "use-after-poison",
}
# AddressSanitizer itself reports these, as the planted faults that they are.
REPORTED_EARLIER = {
    "global_writes_out_of_bounds_are_found": "use-after-poison",
    "an_error_drops_the_work_behind_it": "use-after-poison",
    "shared_writes_out_of_bounds_are_found": "AddressSanitizer",
}

pytestmark = pytest.mark.skipif(cuda_host.compiler() is None, reason="no C++ compiler")


MODES = ["plain", "sanitized", "races"]


def applies(mode: str, case: str) -> bool:
    if mode == "races":
        return case.startswith("races_")
    return not case.startswith("races_are") and (mode == "sanitized" or case not in ONLY_SANITIZED)


def selftest(mode: str) -> Path:
    return cuda_host.build_program("selftest", SOURCES, mode)


@pytest.mark.parametrize(
    ("mode", "case"), [(mode, case) for mode in MODES for case in CASES if applies(mode, case)]
)
def test_case(mode: str, case: str) -> None:
    program = selftest(mode)
    result = subprocess.run([str(program), case], capture_output=True, text=True, timeout=120)
    report = (ONLY_SANITIZED | REPORTED_EARLIER).get(case) if mode == "sanitized" else None
    if report is None:
        assert result.returncode == 0, result.stderr[-4000:]
    else:
        assert result.returncode != 0
        assert report in result.stderr


@pytest.mark.parametrize("mode", MODES)
def test_every_case_is_listed(mode: str) -> None:
    result = subprocess.run([str(selftest(mode))], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == CASES
