"""benchmarks/openmm_plugin.py at its smallest: figures, verdicts, picture."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import clean_environment
from support.students import make_student

pytest.importorskip("openmm")

from mlff_distiller.export import export_student
from mlff_distiller.openmm.native import plugin_is_built

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "openmm_plugin.py"
pytestmark = pytest.mark.skipif(not plugin_is_built(), reason="the native back end is measured")


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    export_student(make_student([1, 6, 8], scale=0.2), tmp_path / "student.pt")
    common = ("--quick", "--model", tmp_path / "student.pt", "--output", tmp_path)
    done = run("--only", "overhead", "--platforms", "CPU", *common)
    assert done.returncode == 0, done.stderr
    done = run("--only", "drift", "memory", "--picoseconds", 0.1, *common)
    assert done.returncode == 0, done.stderr

    report = json.loads((tmp_path / "openmm.json").read_text())
    rows = {(row["atoms"], row["backend"]): row for row in report["overhead"]["rows"]}
    assert set(rows) == {(n, b) for n in (21, 1029) for b in ("native", "python")}
    for row in rows.values():
        assert 0 < row["without_us"] < row["with_us"]
        left = row["with_us"] - row["without_us"] - row["engine_us"]
        assert row["overhead_us"] == pytest.approx(left, abs=0.5 * row["with_us"])
    drift = report["drift"]["rows"]
    assert [row["precision"] for row in drift] == ["single", "double"]
    assert all(len(row["slopes"]) == 2 for row in drift)
    assert all(0 < row["noise"] < 1 and 50 < row["temperature"] < 900 for row in drift)
    assert [row["backend"] for row in report["memory"]["rows"]] == ["native", "python"]
    assert all(len(row["bytes"]) == 21 for row in report["memory"]["rows"])

    table = (tmp_path / "openmm.md").read_text()
    for heading in ("Overhead over the bare engine", "Conservation of energy", "Resident memory"):
        assert heading in table
    assert table in done.stdout
    assert (tmp_path / "openmm.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_student(tmp_path):
    done = run("--only", "drift", "--model", tmp_path / "none.pt", "--output", tmp_path)
    assert done.returncode == 1
    assert "make demo DEMO=molecule" in done.stderr
    assert "Traceback" not in done.stderr


def test_verdicts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    report = importlib.import_module("benchmarks.openmm_report")

    def overhead(atoms, backend, microseconds, percent):
        row = {"atoms": atoms, "backend": backend}
        return report.target_of({**row, "overhead_us": microseconds, "overhead_percent": percent})

    assert overhead(21, "native", 49.0, 90.0) == ("≤ 50 µs", "yes")
    assert overhead(21, "native", 51.0, 1.0) == ("≤ 50 µs", "**no**")
    assert overhead(21, "python", 51.0, 1.0) == ("–", "–")
    assert overhead(1029, "native", 1000.0, 4.9) == ("≤ 5 %", "yes")
    assert overhead(1029, "python", 1000.0, 15.1) == ("≤ 15 %", "**no**")

    verdicts = [
        report.drift_verdict({"drift": drift, "error": error})
        for drift, error in ((4e-6, 1e-6), (-9e-6, 1e-6), (-4e-5, 1e-5), (1e-6, None))
    ]
    assert verdicts == ["yes", "undecided", "**no**", "–"]
