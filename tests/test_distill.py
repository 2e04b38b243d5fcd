"""A whole distillation in miniature: EMT copper, stage by stage, and what is skipped when."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import bulk
from ase.io import write
from cli_runner import Outcome, run

from mlff_distiller.config import DistillConfig, from_dict, load_config
from mlff_distiller.data import HDF5Dataset
from mlff_distiller.distill import Stages, run_distillation
from mlff_distiller.export import read_metadata

EXAMPLES = Path(__file__).parents[1] / "examples"
KEYS = [
    "force_mae_mev_per_ang",
    "energy_mae_mev_per_atom",
    "stress_mae_gpa",
    "engines_max_energy_diff_ev_per_atom",
    "engines_max_force_diff_ev_per_ang",
    "speedup_vs_teacher_lammps",
    "nve_drift_mev_per_atom_per_ps",
]
STAGES = ["sample", "label", "train", "export", "evaluate", "engines"]


def settings(folder: Path) -> dict[str, Any]:
    return {
        "structures": str(folder / "cu.extxyz"),
        "output": str(folder / "run"),
        "teacher": {"name": "emt"},
        "sampling": {
            "num_rattle": 30,
            "rattle_stdev": [0.03, 0.08],
            "max_strain": 0.02,
            "num_md": 10,
            "md_temperatures": [300],
            "md_warmup": 5,
            "md_interval": 5,
        },
        "model": {"hidden_dim": 16, "num_interactions": 1, "num_rbf": 8, "cutoff": 4.0},
        "training": {
            "max_epochs": 60,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "ema_decay": 0.9,
            "threads": 1,
            "tensorboard": False,
        },
        "engines": {"nve_steps": 100, "npt_steps": 50},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill")
    write(path / "cu.extxyz", bulk("Cu", cubic=True))
    (path / "config.yaml").write_text(yaml.safe_dump(settings(path)))
    return path


def distill(folder: Path, *arguments: str) -> Outcome:
    return run("distill", folder / "config.yaml", *arguments)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Outcome:
    return distill(folder)


def test_everything_is_there(finished: Outcome, folder: Path) -> None:
    run = folder / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    for key in KEYS:
        assert key in metrics
    assert metrics["engines"]["not_run"] == {}, "an engine is missing from the test environment"
    assert all(metrics[key] is not None for key in KEYS)
    assert list(metrics["stage_seconds"]) == STAGES
    assert all(seconds > 0 for seconds in metrics["stage_seconds"].values())
    assert {r["engine"] for r in metrics["engines"]["runs"]} == {"lammps", "openmm", "ase"}
    assert {r["ensemble"] for r in metrics["engines"]["runs"]} == {"nve", "npt"}
    for name in (
        "report.html",
        "learning_curve.png",
        "parity.png",
        "energy_drift.png",
        "speed.png",
    ):
        assert (run / name).stat().st_size > 5000, name
    assert "report.html" in finished.stdout
    assert "Force error" in finished.stdout


def test_student_learnt_from_its_teacher(finished: Outcome, folder: Path) -> None:
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    test = metrics["test"]
    assert test["force_relative_error"] < 0.3
    assert test["force_r2"] > 0.8
    assert metrics["engines_max_energy_diff_ev_per_atom"] < 1e-6
    assert metrics["engines_max_force_diff_ev_per_ang"] < 1e-4
    double = metrics["engines"]["agreement"]["float64"]
    assert double["max_energy_diff_ev_per_atom"] < 1e-9
    assert double["max_force_diff_ev_per_ang"] < 1e-8
    assert abs(metrics["nve_drift_mev_per_atom_per_ps"]) < 5


def test_files_belong_together(finished: Outcome, folder: Path) -> None:
    run = folder / "run"
    data = HDF5Dataset(run / "data.h5")
    metrics = json.loads((run / "metrics.json").read_text())
    counts = {name: len(indices) for name, indices in data.splits.items()}
    assert counts == metrics["num_frames"]
    assert sum(counts.values()) == len(data)
    assert min(counts.values()) > 0
    card = read_metadata(run / "student.pt")
    assert card["teacher"] == "emt"
    assert card["elements"] == [29]
    assert card["data_hash"] == data.hash()
    assert load_config(run / "config.yaml", DistillConfig).structures.endswith("cu.extxyz")


def test_second_run_skips_every_stage(finished: Outcome, folder: Path) -> None:
    before = (folder / "run" / "student.pt").stat().st_mtime_ns
    again = distill(folder, "--json")
    for stage in STAGES:
        assert f"[{stage}] done before" in again.stderr
    assert (folder / "run" / "student.pt").stat().st_mtime_ns == before
    assert json.loads(again.stdout) == json.loads((folder / "run" / "metrics.json").read_text())


def test_lost_file_is_made_again(finished: Outcome, folder: Path) -> None:
    (folder / "run" / "parity.png").unlink()
    again = distill(folder)
    assert "[evaluate]\n" in again.stderr
    assert "[train] done before" in again.stderr
    assert (folder / "run" / "parity.png").exists()


def test_changed_settings_redo_what_depends_on_them(finished: Outcome, folder: Path) -> None:
    config = from_dict(DistillConfig, settings(folder))
    shorter = dataclasses.replace(
        config, engines=dataclasses.replace(config.engines, nve_steps=40, npt_steps=0)
    )
    student = (folder / "run" / "student.pt").read_bytes()
    metrics = run_distillation(shorter, quiet=True)
    assert (folder / "run" / "student.pt").read_bytes() == student
    assert {r["ensemble"] for r in metrics["engines"]["runs"]} == {"nve"}


def test_stages_run_once_per_input(tmp_path: Path) -> None:
    calls: list[str] = []
    output = tmp_path / "out"

    def work() -> dict[str, int]:
        calls.append("work")
        output.write_text("done")
        return {"n": len(calls)}

    def stage(value: int, fresh: bool = False) -> Any:
        stages = Stages(tmp_path / "stages", lambda text: None, fresh)
        return stages.run("s", {"value": value}, [output], work)

    assert stage(1) == stage(1) == {"n": 1}
    assert stage(2) == {"n": 2}
    output.unlink()
    assert stage(2) == {"n": 3}
    assert stage(2, fresh=True) == {"n": 4}

    def fail() -> dict[str, int]:
        raise KeyboardInterrupt

    stages = Stages(tmp_path / "stages", lambda text: None)
    with pytest.raises(KeyboardInterrupt):
        stages.run("s", {"value": 3}, [output], fail)
    assert stage(2) == {"n": 5}, "an interrupted stage may have touched its files"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_example_configurations_are_valid(path: Path) -> None:
    config = load_config(path, DistillConfig)
    assert config.output.startswith("runs/demo")
