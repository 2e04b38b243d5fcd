"""benchmarks/uncertainty.py: its tables and figure, and what it times; uncertainty_limits.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from support.labelled import emt_crystals
from support.students import make_student

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import uncertainty, uncertainty_limits, uncertainty_report
from mlff_distiller.config import ModelConfig
from mlff_distiller.students.export import export_student
from mlff_distiller.students.uncertainty import fit_uncertainty


@pytest.fixture
def report():
    rng = np.random.default_rng(0)
    kinds = {}
    for kind, scale in (("cold", 0.03), ("hot", 0.3)):
        predicted = scale * rng.uniform(0.5, 2.0, 400)
        error = predicted * np.linalg.norm(rng.normal(size=(400, 3)), axis=1) / np.sqrt(3)
        kinds[kind] = {"frames": 4, "error": error.tolist(), "predicted": predicted.tolist()}
    run = {"time_fs": [0, 10, 20, 30], "largest": [0.1, 0.2, 0.8, 2.0]}
    return {
        "processor": "a CPU",
        "teacher": "emt",
        "fit": {"held_out_atoms": 64, "rms_error": 0.1, "rms_predicted": 0.1, "largest": 0.3},
        "kinds": kinds,
        "in_time": {
            "temperature": 1800.0,
            "limit": 0.9,
            "runs": [
                {"seed": 1, "uncertainty_fs": 20, "others_fs": 30, **run},
                {"seed": 2, "uncertainty_fs": 20, "others_fs": None, **run},
            ],
        },
        "cost": [{"network": "x", "atoms": 8, "with_ms": 1.01, "without_ms": 1.0, "ratio": 1.01}],
    }


def test_report(report, tmp_path):
    text = uncertainty_report.markdown(report)
    assert "| 2 | 20 | never |" in text
    assert "| x | 8 | 1.00 | 1.01 | +1.0 % |" in text
    for predicted, error in uncertainty_report.parts(report):
        assert error == pytest.approx(predicted, rel=0.3)
    uncertainty_report.plot(report, tmp_path / "u.png")
    assert (tmp_path / "u.png").stat().st_size > 10_000


def test_ranks():
    assert uncertainty_report.spearman([1, 2, 3], [10, 20, 50]) == pytest.approx(1.0)
    assert uncertainty_report.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


def test_cost_times_both(tmp_path, monkeypatch):
    monkeypatch.setattr(
        uncertainty, "NETWORKS", {"tiny": ModelConfig(hidden_dim=8, num_interactions=1)}
    )
    (row,) = uncertainty.cost(tmp_path, seconds=0.01, rounds=3)
    assert row["atoms"] == 512
    assert 0.5 < row["ratio"] < 2.0


def test_limits_are_asked_of_strained_crystals_and_of_dynamics(tmp_path, monkeypatch):
    student, frames = make_student((29, 47), scale=0.1, energies=[0.0, 0.0]), emt_crystals(16)
    fit_uncertainty(student, frames[:12], frames[12:])
    export_student(student, tmp_path / "student.pt")
    monkeypatch.setattr(uncertainty_limits, "SCALES", (0.5, 1.0))
    monkeypatch.setattr(uncertainty_limits, "TEMPERATURES", (10.0,))
    monkeypatch.setattr(uncertainty_limits, "STEPS", 20)
    monkeypatch.setattr(uncertainty_limits, "EVERY", 10)
    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    report = uncertainty_limits.measure(crystal, tmp_path / "student.pt", "emt")
    assert [(row["scale"], row["rattle"]) for row in report["rows"]] == [
        (0.5, 0.0), (0.5, 0.05), (1.0, 0.0), (1.0, 0.05)
    ]  # fmt: skip
    far, near = report["rows"][0], report["rows"][2]
    assert far["pressure_GPa"] > near["pressure_GPa"]
    assert far["uncertainty"] == pytest.approx(far["largest"])  # all atoms are alike
    assert far["uncertainty"] > report["frame_limit"] > near["uncertainty"]
    text = uncertainty_limits.markdown(report)
    assert text.count("**said**") >= 2
    assert "| 10 |" in text
