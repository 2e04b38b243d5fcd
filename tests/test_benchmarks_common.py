"""benchmarks/common.py, and that every script starts from anywhere."""

from __future__ import annotations

import importlib
import json
import platform
import random
import subprocess
import sys
from pathlib import Path

import ase
import numpy as np
import pytest

from mlff_distiller.export import read_metadata

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.relative_to(ROOT / "benchmarks")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.name != "worker.py" and '__name__ == "__main__"' in path.read_text()
)


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.common")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_start_from_anywhere(script, tmp_path):
    if "openmm" in script.name:
        pytest.importorskip("openmm")
    if {"lammps", "graph_pes.py"} & set(script.parts):
        pytest.importorskip("lammps")
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert script.name in done.stdout


def test_the_processor_has_a_name(common):
    name = common.processor()
    assert name
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert name != platform.machine()


def test_results_name_no_architecture_as_processor():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert '"x86_64"' not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "ab ab ab"),
        ({"rotate": True}, "ba ab ba"),
        ({"repeats": 2}, "aabb aabb aabb"),
    ],
)
def test_rounds_in_turn(common, options, expected):
    done = []
    calls = {name: lambda name=name: done.append(name) or len(done) for name in "ab"}
    found = common.in_turn(calls, 3, **options)
    assert "".join(done) == expected.replace(" ", "")
    assert sorted(found["a"] + found["b"]) == list(range(1, len(done) + 1))
    assert all(done[number - 1] == name for name in "ab" for number in found[name])


def test_rounds_in_an_order_that_is_drawn(common):
    done = []
    calls = {name: lambda name=name: done.append(name) for name in "abc"}
    common.in_turn(calls, 20, shuffle=random.Random(0))
    rounds = ["".join(done[i : i + 3]) for i in range(0, 60, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) > 3


def test_statistics(common):
    assert common.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0
    with pytest.raises(ValueError, match=r"longer|shorter"):
        common.ratio([1.0], [1.0, 2.0])
    assert common.spread([3.0, 1.0, 2.0]) == {
        "median_s": 2.0, "low_s": 1.0, "high_s": 3.0, "calls": 3,
    }  # fmt: skip


def test_systems_and_students(common, tmp_path):
    numbers, positions, cell = common.water(3)
    assert len(numbers) == len(positions) == 81
    grams = sum(ase.Atoms(numbers).get_masses()) / abs(np.linalg.det(cell)) / 0.602214076
    assert grams == pytest.approx(1.0, abs=0.01)
    common.write_structure(tmp_path / "new" / "w.json", numbers, positions, cell, [True] * 3)
    atoms = ase.Atoms(**json.loads((tmp_path / "new" / "w.json").read_text()))
    assert np.array_equal(atoms.positions, positions)
    assert atoms.pbc.all()
    common.random_student(tmp_path / "s.pt", (1, 8), hidden_dim=8, num_interactions=1)
    assert read_metadata(tmp_path / "s.pt")["elements"] == [1, 8]


def test_report_files(common, tmp_path):
    def plot(report, path):
        figure, axes = common.pyplot().subplots()
        axes.plot(report["rows"])
        common.save(figure, path)

    common.write_report(tmp_path / "a" / "b", "x", {"rows": [1, 2]}, "text", plot)
    assert json.loads((tmp_path / "a" / "b" / "x.json").read_text()) == {"rows": [1, 2]}
    assert (tmp_path / "a" / "b" / "x.md").read_text() == "text"
    assert (tmp_path / "a" / "b" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert not common.pyplot().get_fignums()
