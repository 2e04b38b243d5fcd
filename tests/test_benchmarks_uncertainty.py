"""benchmarks/uncertainty.py: its tables and figure, and what it times."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import uncertainty, uncertainty_report
from mlff_distiller.config import ModelConfig


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
