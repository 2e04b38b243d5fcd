"""`make test` (MLFF_NO_SKIPS=1) accepts only skips for what a machine can truly lack."""

import os
import re

import pytest

ALLOWED = re.compile(r"\bGPU\b|shared/data|root|Python 3\.1[2-9]|no network")
_unexpected: list[str] = []


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _note(report)


def pytest_collectreport(report):
    if report.skipped:
        _note(report)


def _note(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if os.environ.get("MLFF_NO_SKIPS") and not ALLOWED.search(reason):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    if _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _unexpected:
        terminalreporter.section("skipped, though `make test` installs what is needed", sep="!")
        for line in _unexpected:
            terminalreporter.line(line)
