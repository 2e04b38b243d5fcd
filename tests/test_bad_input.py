"""Bad input of every command: one line on stderr, exit status 2, nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.io import read, write
from support.commands import run

from mlff_distiller.config import EnginesConfig, ModelConfig, SamplingConfig, TrainingConfig
from mlff_distiller.data import HDF5Dataset
from mlff_distiller.dynamics import lammps_engine, openmm_engine
from mlff_distiller.dynamics.lammps_files import Records
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.files import atomic_path
from mlff_distiller.models import StudentForceField
from mlff_distiller.teachers import label_dataset
from mlff_distiller.training.history import History

ENGINES = ["ase", "lammps", "openmm"]


def refuse(*arguments: Any, say: list[str], cwd: Path) -> None:
    """The command must fail with one line on stderr that holds all of ``say``."""
    stderr = run(*arguments, code=2, cwd=cwd).stderr
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    for text in say:
        assert text in lines[0], lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copper, its labels, a run of one epoch and a student with random weights."""
    path = tmp_path_factory.mktemp("bad")
    write(path / "cu.extxyz", bulk("Cu", cubic=True))
    far = bulk("Cu", cubic=True)
    far.positions[0, 0] += 1e12
    write(path / "far.extxyz", far)
    run("sample", "cu.extxyz", "-o", "frames.extxyz", "--rattle", 12, "--seed", 3, cwd=path)
    run("label", "frames.extxyz", "--teacher", "emt", "-o", "data.h5", cwd=path)
    model = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.0}
    training = {"max_epochs": 1, "tensorboard": False, "threads": 1}
    (path / "train.yaml").write_text(yaml.safe_dump({"model": model, "training": training}))
    run("train", "--data", "data.h5", "-o", "run", "train.yaml", cwd=path)
    torch.manual_seed(0)
    student = StudentForceField(ModelConfig(**model), [29], [-3.0])  # type: ignore[arg-type]
    export_student(student, path / "student.pt", {"teacher": "nobody"})
    return path


def test_data_of_a_newer_version(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "data.h5", tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5", "a") as file:
        file.attrs["format"] = "mlff-distiller 9"
    say = ["new.h5", "mlff-distiller 9", "newer", "upgrade"]
    refuse("info", "new.h5", say=say, cwd=tmp_path)
    refuse("train", "--data", "new.h5", "-o", "r", say=say, cwd=tmp_path)
    refuse("convert", "new.h5", "x.extxyz", say=say, cwd=tmp_path)
    label = ["label", folder / "frames.extxyz", "--teacher", "emt", "-o", "new.h5"]
    refuse(*label, say=say, cwd=tmp_path)
    assert not (tmp_path / "new.h5.journal").exists()


def test_energies_stored_as_text(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "data.h5", tmp_path / "text.h5")
    with h5py.File(tmp_path / "text.h5", "a") as file:
        count = len(file["labels/energy"])
        del file["labels/energy"]
        file["labels/energy"] = np.array([b"low"] * count)
    say = ["text.h5", "labels/energy", "numbers"]
    refuse("evaluate", folder / "student.pt", "--data", "text.h5", say=say, cwd=tmp_path)


def test_a_finished_run_is_not_replaced(folder: Path) -> None:
    train = ["train", "--data", "data.h5", "-o", "run", "train.yaml"]
    before = (folder / "run" / "best.ckpt").read_bytes()
    refuse(*train, say=["run", "--resume", "--overwrite"], cwd=folder)
    refuse(*train, "--resume", "--overwrite", say=["exclude"], cwd=folder)
    assert (folder / "run" / "best.ckpt").read_bytes() == before
    run(*train, "--resume", cwd=folder)
    run(*train, "--overwrite", cwd=folder)
    assert (folder / "run" / "best.ckpt.old").read_bytes() == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1), ("seed", 10**30), ("temperature", "nan"), ("temperature", -1),
        ("timestep", "nan"), ("timestep", 0), ("timestep", 25), ("pressure", "inf"),
        ("threads", 4096), ("steps", 0),
    ],
)  # fmt: skip
def test_md_settings(folder: Path, engine: str, option: str, value: Any) -> None:
    arguments = ["md", "student.pt", "cu.extxyz", "--engine", engine, f"--{option}", value]
    refuse(*arguments, say=[option, "must be"], cwd=folder)


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_md_takes_every_seed_that_it_allows(folder: Path, engine: str, seed: int) -> None:
    md = [
        "md",
        "student.pt",
        "cu.extxyz",
        "--engine",
        engine,
        "--seed",
        seed,
        "--steps",
        2,
        "--overwrite",
    ]
    run(*md, "--interval", 1, "--threads", 1, "-o", f"{engine}.extxyz", cwd=folder)


def test_lammps_refuses_far_coordinates(folder: Path) -> None:
    md = ["md", "student.pt", "far.extxyz", "--engine", "lammps", "--steps", 2, "--threads", 1]
    refuse(*md, say=["Å", "wrap"], cwd=folder)


def test_lammps_leaves_no_process_behind(tmp_path: Path, monkeypatch: Any) -> None:
    script = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo $$ > pid; exec sleep 60'])"

    def interrupted(_: float) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            sleep(0.01)
        raise KeyboardInterrupt

    sleep = time.sleep
    monkeypatch.setattr(lammps_engine.time, "sleep", interrupted)
    command = [sys.executable, "-c", script]
    with pytest.raises(KeyboardInterrupt):
        lammps_engine._follow(
            command, tmp_path, dict(os.environ), Records(tmp_path), lambda *record: None
        )
    monkeypatch.undo()
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while _alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_openmm_exceptions_are_one_line() -> None:
    openmm = pytest.importorskip("openmm")
    with pytest.raises(InputError, match="OpenMM stopped: no such"), openmm_engine._one_line():
        raise openmm.OpenMMException("no such\nthing")


def test_openmm_steps_in_short_calls() -> None:
    calls: list[int] = []

    class Integrator:
        def step(self, count: int) -> None:
            calls.append(count)

    openmm_engine._advance(Integrator(), 120)
    assert calls == [50, 50, 20]


@pytest.mark.parametrize("seed", [-1, 10**30])
def test_seeds_of_sample_and_train(folder: Path, seed: int) -> None:
    refuse(
        "sample", "cu.extxyz", "-o", "x.extxyz", "--rattle", 2, "--seed", seed,
        say=["seed"], cwd=folder,
    )  # fmt: skip
    refuse("train", "--data", "data.h5", "-o", "r", "--seed", seed, say=["seed"], cwd=folder)


@pytest.mark.parametrize("section", ["training", "model", "data"])
def test_sections_that_are_no_mappings(folder: Path, tmp_path: Path, section: str) -> None:
    (tmp_path / "c.yaml").write_text(f"{section}: [1]\n")
    train = ["train", "--data", folder / "data.h5", "-o", "r", "--preset", "small", "--seed", 1]
    refuse(*train, "c.yaml", say=[section, "mapping", "[1]"], cwd=tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 0), ("threads", 1025), ("devices", 0), ("devices", 10**6), ("seed", -1),
        ("energy_weight", -1.0), ("force_weight", float("nan")), ("stress_weight", float("inf")),
        ("warmup_steps", -1), ("weight_decay", -1.0), ("ema_decay", 1.0), ("gradient_clip", -1.0),
        ("early_stop_patience", 0), ("plateau_patience", -1), ("plateau_factor", 2.0),
        ("final_lr_fraction", -0.1), ("learning_rate", float("inf")),
    ],
)  # fmt: skip
def test_training_settings(folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    settings = {"training": {"device": "cpu", key: value}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    train = ["train", "--data", folder / "data.h5", "-o", "r", "c.yaml"]
    refuse(*train, say=[key, "must be" if key != "seed" else "-1"], cwd=tmp_path)


def test_settings_of_the_other_sections() -> None:
    with pytest.raises(InputError, match="not all 0"):
        TrainingConfig(energy_weight=0, force_weight=0, stress_weight=0)
    with pytest.raises(InputError, match="max_force"):
        SamplingConfig(max_force=float("nan"))
    for engines in ({"timestep": 25.0}, {"timestep": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(InputError, match=next(iter(engines))):
            EnginesConfig(**engines)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "nonsense", "meta"])
def test_evaluate_devices(folder: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    evaluate = ["evaluate", "student.pt", "--data", "data.h5", "--device", device]
    refuse(*evaluate, say=["--device", device, "cpu"], cwd=folder)


@pytest.mark.parametrize("sizes", ["inf", "nan", "0", "-5", "1e30", "64,0"])
def test_bench_sizes(folder: Path, sizes: str) -> None:
    bench = ["bench", "student.pt", "cu.extxyz", f"--sizes={sizes}"]
    refuse(*bench, say=["--sizes", sizes], cwd=folder)


@pytest.mark.parametrize("force", ["nan", "inf", "0", "-1"])
def test_label_max_force(folder: Path, tmp_path: Path, force: str) -> None:
    label = ["label", folder / "frames.extxyz", "--teacher", "emt", "-o", "x.h5"]
    refuse(*label, f"--max-force={force}", say=["max_force", "> 0"], cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_label_options(folder: Path, tmp_path: Path) -> None:
    label = ["label", folder / "frames.extxyz", "--teacher", "emt", "-o", "x.h5"]
    refuse(*label, "-O", "k=[1", say=["k=[1", "YAML"], cwd=tmp_path)


def test_failed_labelling_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.h5").write_bytes(b"not HDF5")
    label = ["label", folder / "frames.extxyz", "--teacher", "emt", "-o"]
    refuse(*label, "foreign.h5", say=["foreign.h5"], cwd=tmp_path)
    refuse(*label, "none.h5", "--max-force", 1e-9, say=["no structure"], cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.h5"]


def test_ctrl_c_before_the_first_batch_claims_nothing(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlff_distiller.teachers.label._label", stop)
    label = ["label", folder / "frames.extxyz", "--teacher", "emt", "-o", "x.h5"]
    said = run(*label, code=130, cwd=tmp_path).stderr
    assert "nothing was written" in said
    assert "kept" not in said
    assert not list(tmp_path.iterdir())


def test_label_keeps_a_file_that_was_there(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "data.h5", tmp_path / "data.h5")
    other = HDF5Dataset(tmp_path / "data.h5")[:2]
    from mlff_distiller.teachers import get_teacher

    with pytest.raises(InputError, match="same structures"):
        label_dataset(other, get_teacher("emt"), tmp_path / "data.h5", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]
    assert len(HDF5Dataset(tmp_path / "data.h5")) > 2


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x")
    if Path("/dev/full").exists():
        history = History(tmp_path, ["epoch"], 0, tensorboard=False)
        history.path = Path("/dev/full")
        with pytest.raises(InputError, match="/dev/full: No space left on device"):
            history.add({"epoch": 0})


def test_md_ends_where_its_trajectory_does(folder: Path, engine: str) -> None:
    md = ["md", "student.pt", "cu.extxyz", "--engine", engine, "--threads", 1]
    refuse(
        *md, "--steps", 15, say=["multiple of --interval (10), got 15", "--steps 20"], cwd=folder
    )
    output = f"short-{engine}.extxyz"
    run(*md, "--steps", 3, "-o", output, cwd=folder)
    assert [a.info["step"] for a in read(folder / output, ":")] == [0, 3]
