"""`make test` (MLFF_NO_SKIPS=1) accepts only skips for what a machine can truly lack."""

import os
import re
import sys

import pytest

#: The whole reason of a skip, not a part of it.
ALLOWED = [
    r"there is a GPU",
    r"built without the GPU engine: make cuda",
    r"torch that was built for a GPU has no autograd in a forked child",
    r"no \.\./shared/data",
    r"mounting a small disk needs root; RLIMIT_FSIZE is tested above",
    r"no network for lammps==.*",
]
if os.environ.get("MLFF_EXPECT_OPENMM_TORCH"):  # make openmm-torch, with releases of its own
    ALLOWED.append(r"link atoms came with OpenMM-ML 1\.8")
else:
    ALLOWED.append(r"openmm-torch is not installed: make openmm-torch")
if sys.version_info >= (3, 12):  # there are no wheels
    ALLOWED.append(r"could not import 'orb_models': No module named 'orb_models'")
_unexpected: list[str] = []


@pytest.fixture(params=["lammps", "openmm", "ase"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine of ``md`` in turn; one that is not installed is a skip."""
    if request.param != "ase":
        pytest.importorskip(request.param)
    return request.param


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _note(report)


def pytest_collectreport(report):
    if report.skipped:
        _note(report)


def _note(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if os.environ.get("MLFF_NO_SKIPS") and not re.fullmatch("|".join(ALLOWED), reason):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    if _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _unexpected:
        terminalreporter.section("skipped, though `make test` installs what is needed", sep="!")
        for line in _unexpected:
            terminalreporter.line(line)
