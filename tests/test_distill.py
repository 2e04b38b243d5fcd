"""A whole distillation in miniature: EMT copper, stage by stage, and what is skipped when."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from support.commands import Outcome, run

from mlff_distiller.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    SamplingConfig,
    TrainingConfig,
    from_dict,
    load_config,
    save_yaml,
)
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure
from mlff_distiller.distill import run_distillation
from mlff_distiller.export import read_metadata
from mlff_distiller.pipeline import engines, fit, label
from mlff_distiller.pipeline import sample as sampling_station
from mlff_distiller.pipeline.distill import put_aside
from mlff_distiller.pipeline.stage import EXECUTION, Hashed, Stages, Station, identity
from mlff_distiller.sampling import sample

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
STAGES = ["sample", "label", "join", "train", "export", "evaluate", "engines"]


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
        "loop": {"rounds": 0},  # of which tests/test_rounds.py knows
        "acceptance": {"measure": False},
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
    """A finished run. Tests that change something take a copy of it."""
    return distill(folder)


@pytest.fixture
def copied(finished: Outcome, folder: Path, tmp_path: Path) -> Path:
    """The finished run in a folder of the test's own; its structures stay where they were."""
    shutil.copytree(folder / "run", tmp_path / "run")
    content = {**settings(folder), "output": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


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
    held_out = sum(len(s) for s in data.subset("valid"))
    assert card["uncertainty"]["held_out_atoms"] == held_out
    assert load_config(run / "config.yaml", DistillConfig).structures[0].endswith("cu.extxyz")


def test_second_run_skips_every_stage(copied: Path) -> None:
    before = (copied / "run" / "student.pt").stat().st_mtime_ns
    again = distill(copied, "--json")
    for stage in STAGES:
        assert f"[{stage}] done before" in again.stderr
    assert (copied / "run" / "student.pt").stat().st_mtime_ns == before
    assert json.loads(again.stdout) == json.loads((copied / "run" / "metrics.json").read_text())


def test_lost_file_is_made_again(copied: Path) -> None:
    (copied / "run" / "parity.png").unlink()
    again = distill(copied)
    assert "[evaluate]\n" in again.stderr
    assert "[train] done before" in again.stderr
    assert (copied / "run" / "parity.png").exists()


@pytest.mark.parametrize(
    ("name", "again"),
    [("training/best.ckpt", "train"), ("student.pt", "export")],
)
def test_a_damaged_file_is_refused_and_made_again_where_it_is_deleted(
    copied: Path, name: str, again: str
) -> None:
    damaged = copied / "run" / name
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    error = run("distill", copied / "config.yaml", code=2).stderr
    assert f"{name} " in " ".join(error.split())
    assert "or delete it: this command then makes it again" in error
    damaged.unlink()
    assert f"[{again}]\n" in distill(copied).stderr


def test_changed_settings_redo_what_depends_on_them(copied: Path) -> None:
    config = load_config(copied / "config.yaml", DistillConfig)
    shorter = dataclasses.replace(
        config, engines=dataclasses.replace(config.engines, nve_steps=40, npt_steps=0)
    )
    student = (copied / "run" / "student.pt").read_bytes()
    metrics = run_distillation(shorter, quiet=True)
    assert (copied / "run" / "student.pt").read_bytes() == student
    assert {r["ensemble"] for r in metrics["engines"]["runs"]} == {"nve"}


def test_how_a_stage_works_is_no_reason_to_do_it_again(
    finished: Outcome, folder: Path, tmp_path: Path
) -> None:
    """Nor is another place of the run directory."""
    run = shutil.copytree(folder / "run", tmp_path / "moved")
    content = settings(folder) | {"output": str(run)}
    content["teacher"] = {"name": "emt", "batch_size": 3}
    content["training"] |= {"tensorboard": True, "threads": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    again = distill(tmp_path)
    # The engines ran with other settings in a test above.
    assert [s for s in STAGES if f"[{s}] done before" not in again.stderr] in ([], ["engines"])


def test_more_epochs_go_on_where_the_training_ended(
    finished: Outcome, folder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "moved")
    content = settings(folder) | {"output": str(run)}
    content["training"] |= {"max_epochs": 62}
    content["engines"] = {"lammps": False, "openmm": False, "nve_steps": 4, "npt_steps": 0}
    metrics = run_distillation(from_dict(DistillConfig, content), quiet=True)
    assert metrics["training"]["epochs"] == 62
    assert not (run / "training" / "best.ckpt.old").exists()
    history = (run / "training" / "history.csv").read_text().splitlines()
    before = (folder / "run" / "training" / "history.csv").read_text().splitlines()
    assert history[: len(before)] == before
    assert len(history) == len(before) + 2


def test_a_lower_max_force_leaves_out_what_is_above_it(tmp_path: Path) -> None:
    start = [Structure.from_atoms(bulk("Cu", cubic=True))]
    sampling = SamplingConfig(num_rattle=12, num_md=0, rattle_stdev=[0.05, 0.2], max_force=30.0)

    def labelled(max_force: float) -> float:
        stages = Stages(tmp_path, lambda text: None)
        config = dataclasses.replace(sampling, max_force=max_force)
        frames = stages.run(
            sampling_station.STATION,
            sampling_station.Inputs(Hashed(start, "copper"), config, "emt", {}),
        )
        result = stages.run(
            label.STATION,
            label.Inputs(
                frames=Hashed(tmp_path / sampling_station.FRAMES, frames.frames_hash),
                teacher="emt",
                options={},
                max_force=max_force,
                splits=DataConfig(valid_fraction=0.0, test_fraction=0.0),
                seed=0,
            ),
        )
        data = HDF5Dataset(tmp_path / label.LABELS)
        assert sum(result.num_frames.values()) == len(data) < 12 + (max_force == 30.0)
        return max(float(np.linalg.norm(s.forces, axis=1).max()) for s in data)

    assert labelled(30.0) > 3.0
    assert labelled(3.0) <= 3.0


def test_changed_splits_are_drawn_anew(tmp_path: Path) -> None:
    with HDF5Writer(tmp_path / "frames.h5") as writer:
        writer.append(rattled_copper(16))

    def splits(folder: str, **options: Any) -> dict[str, list[int]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        inputs = label.Inputs(
            frames=Hashed(tmp_path / "frames.h5", ""),
            teacher="emt",
            options={},
            max_force=100.0,
            splits=DataConfig(valid_fraction=0.25, test_fraction=0.25, **options),
            seed=0,
        )
        result = label.work(inputs, tmp_path / folder, lambda text: None)
        stored = HDF5Dataset(tmp_path / folder / label.LABELS).splits
        assert result.num_frames == {k: len(v) for k, v in stored.items()}
        return {k: v.tolist() for k, v in stored.items()}

    first = splits("one")
    before = (tmp_path / "one" / label.LABELS).read_bytes()
    assert splits("one") == first
    assert (tmp_path / "one" / label.LABELS).read_bytes() == before
    assert splits("one", split_seed=1) == splits("two", split_seed=1) != first


def rattled_copper(number: int) -> list[Structure]:
    copper = Structure.from_atoms(bulk("Cu", cubic=True))
    frames = sample([copper], SamplingConfig(num_rattle=number, num_md=0, rattle_stdev=[0.05]))
    return [dataclasses.replace(s, info={"group": f"{i}"}) for i, s in enumerate(frames)]


@dataclasses.dataclass(frozen=True)
class Inputs:
    value: int
    threads: int = dataclasses.field(default=1, metadata=EXECUTION)


@dataclasses.dataclass(frozen=True)
class Result:
    n: int


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = tmp_path / "run"
    error = run("distill", folder / "config.yaml", "--device", "cuda", "-o", output, code=2).stderr
    assert "this torch finds no CUDA device; set training.device to cpu" in error
    assert "[sample]" not in error
    assert not output.exists()


def test_results_of_another_system_are_put_aside(folder: Path, tmp_path: Path) -> None:
    first = from_dict(DistillConfig, {**settings(folder), "output": str(tmp_path)})
    said: list[str] = []
    put_aside(first, tmp_path, said.append)
    save_yaml(first, tmp_path / "config.yaml")
    names = {"student.pt", "report.html", "metrics.json"}
    for name in names:
        (tmp_path / name).write_text("of copper")
    put_aside(replace(first, sampling=replace(first.sampling, num_md=3)), tmp_path, said.append)
    assert not said
    other = replace(first, structures=["ni.xyz"])
    put_aside(other, tmp_path, said.append)
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", *(f"{n}.old" for n in names)}
    assert len(said) == 1
    assert "cu.extxyz" in said[0]
    assert "student.pt, report.html, metrics.json of it now end in .old" in said[0]
    (tmp_path / "student.pt").write_text("by lj")
    put_aside(replace(first, teacher=replace(first.teacher, name="lj")), tmp_path, said.append)
    assert (tmp_path / "student.pt.old").read_text() == "by lj"


def test_stages_run_once_per_input(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(inputs: Inputs, folder: Path, say: Any) -> Result:
        calls.append("work")
        (folder / "out").write_text("done")
        return Result(len(calls))

    def stage(value: int, fresh: bool = False, threads: int = 1) -> Result:
        stages = Stages(tmp_path, lambda text: None, fresh)
        return stages.run(Station("s", work, Result, ["out"]), Inputs(value, threads))

    assert stage(1) == stage(1) == stage(1, threads=2) == Result(1)
    assert stage(2) == Result(2)
    (tmp_path / "out").unlink()
    assert stage(2) == Result(3)
    assert stage(2, fresh=True) == Result(4)

    def fail(inputs: Inputs, folder: Path, say: Any) -> Result:
        raise KeyboardInterrupt

    stages = Stages(tmp_path, lambda text: None)
    with pytest.raises(KeyboardInterrupt):
        stages.run(Station("s", fail, Result, ["out"]), Inputs(3))
    assert stage(2) == Result(5), "an interrupted stage may have touched its files"


def test_every_setting_that_a_station_sees_counts_unless_it_says_how() -> None:
    """By hand: what may change without doing a station again."""
    hashed = Hashed(Path("file"), "hash")
    assert identity(hashed) == "hash"
    how = {
        station.__name__.rpartition(".")[2]: {
            f.name for f in dataclasses.fields(station.Inputs) if not f.metadata.get("hashed", True)
        }
        for station in (sampling_station, label, engines)
    }
    assert how == {
        "sample": {"device"},
        "label": {"device", "batch_size", "workers"},
        "engines": set(),
    }
    inputs = fit.Inputs(hashed, ModelConfig(), TrainingConfig())
    ignored = {
        name
        for name, value in {
            "threads": 7, "tensorboard": False, "devices": 3, "device": "cuda",
            "max_epochs": 7, "seed": 7, "batch_size": 7, "gradient_clip": 7.0,
        }.items()
        if identity(fit.Inputs(hashed, ModelConfig(), TrainingConfig(**{name: value})))
        == identity(inputs)
    }  # fmt: skip
    assert ignored == {"threads", "tensorboard", "devices", "device"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_example_configurations_are_valid(path: Path) -> None:
    config = load_config(path, DistillConfig)
    assert config.output.startswith("runs/demo")
