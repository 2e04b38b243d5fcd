"""The command line on real files: what it writes, and what it says about bad input."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.io import read, write
from support.commands import COMMAND, environment, launch, run
from support.processes import default_signals

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import HDF5Dataset, read_structures
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

COMMANDS = [
    "sample", "label", "train", "distill", "evaluate", "validate", "export", "md", "correct-server", "reweight", "bench", "info", "convert",
]  # fmt: skip
SLOW_TEACHER = '''
import time
from pathlib import Path
from ase.calculators.emt import EMT


class Slow(EMT):
    """Comes to a stand in the middle while the test says so: no race however busy the machine."""

    calls = 0

    def calculate(self, *args, **kwargs):
        Slow.calls += 1
        deadline = time.monotonic() + 30
        while Slow.calls > 10 and Path("hold").exists() and time.monotonic() < deadline:
            Path("standing").touch()
            time.sleep(0.05)
        super().calculate(*args, **kwargs)
'''


def refuse(*arguments: Any, say: list[str]) -> None:
    """The command must fail with one line on stderr that holds all of ``say``."""
    process = run(*arguments, code=2)
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr
    for text in say:
        assert text in lines[0], lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copper frames, their labels, a short training run and its export, made by the CLI."""
    path = tmp_path_factory.mktemp("cli")
    write(path / "cu.extxyz", bulk("Cu", cubic=True))
    run("sample", "cu.extxyz", "-o", "frames.extxyz", "--rattle", 20, "--seed", 3, cwd=path)
    run("label", "frames.extxyz", "--teacher", "emt", "-o", "data.h5", cwd=path)
    config = {
        "model": {"hidden_dim": 16, "num_interactions": 1, "num_rbf": 8, "cutoff": 3.5},
        "training": {"max_epochs": 3, "tensorboard": False, "threads": 1},
    }
    (path / "train.yaml").write_text(yaml.safe_dump(config))
    run("train", "--data", "data.h5", "-o", "run", "train.yaml", cwd=path)
    run("export", "run", "-o", "student.pt", cwd=path)
    return path


@pytest.fixture(scope="module")
def silicon_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "si.pt"
    config = ModelConfig(hidden_dim=8, num_interactions=1, num_rbf=4, cutoff=3.0)
    export_student(StudentForceField(config, [14], [-5.0]), path, {"teacher": "nobody"})
    return path


# --- help ----------------------------------------------------------------------------------------


def test_help_lists_all_commands_in_the_order_of_the_work() -> None:
    text = run("--help").stdout
    places = [text.index(f"│ {command} ") for command in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str) -> None:
    text = run(command, "--help").stdout
    assert "Example" in text
    assert f"mlff-distiller {command} " in text
    assert "--json" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlff_distiller.cli\n"
        "print([m for m in ('torch', 'ase', 'numpy', 'h5py', 'matplotlib') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert process.stdout.strip() == "[]"


def test_version_of_the_installed_command() -> None:
    from mlff_distiller import __version__

    assert launch("--version").stdout.strip() == f"mlff-distiller {__version__}"


# --- data ----------------------------------------------------------------------------------------


def test_sample_and_label_and_convert(folder: Path, tmp_path: Path) -> None:
    frames = read(folder / "frames.extxyz", ":")
    assert len(frames) == 20
    data = HDF5Dataset(folder / "data.h5")
    assert len(data) == 20
    assert data.teacher == "emt"
    np.testing.assert_allclose(data[7].positions, frames[7].positions, atol=1e-7)

    result = json.loads(
        run("convert", folder / "data.h5", tmp_path / "back.extxyz", "--json").stdout
    )
    assert result["num_structures"] == result["num_labelled"] == 20
    back = read(tmp_path / "back.extxyz", 7)
    np.testing.assert_allclose(back.get_forces(), data[7].forces, atol=1e-6)
    run("convert", tmp_path / "back.extxyz", tmp_path / "again.h5")
    np.testing.assert_allclose(
        HDF5Dataset(tmp_path / "again.h5")[7].forces, data[7].forces, atol=1e-6
    )


def test_label_says_what_it_wrote_and_resumes(folder: Path, tmp_path: Path) -> None:
    arguments = ("label", folder / "frames.extxyz", "--teacher", "emt", "-o", tmp_path / "d.h5")
    first = json.loads(run(*arguments, "--json").stdout)
    assert first["num_structures"] == 20
    assert first["num_resumed"] == 0
    second = json.loads(run(*arguments, "--json").stdout)
    assert second["num_structures"] == 20
    assert second["num_resumed"] == 20


def test_any_ase_calculator_is_a_teacher(folder: Path, tmp_path: Path) -> None:
    teacher = "ase.calculators.lj:LennardJones(sigma=2.3, epsilon=0.4)"
    run("label", folder / "cu.extxyz", "--teacher", teacher, "-o", tmp_path / "lj.h5")
    assert HDF5Dataset(tmp_path / "lj.h5").teacher == teacher


def test_dynamics_samples_with_a_student(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "md.h5"
    run(
        "sample", folder / "cu.extxyz", "-o", output, "--rattle", 0, "--md", 4,
        "--teacher", folder / "student.pt",
    )  # fmt: skip
    assert len(HDF5Dataset(output, require_labels=False)) == 4


# --- training ------------------------------------------------------------------------------------


def test_train_writes_its_run_directory(folder: Path) -> None:
    for name in ("best.ckpt", "last.ckpt", "config.yaml", "history.csv"):
        assert (folder / "run" / name).exists(), name


def test_train_takes_a_preset_and_a_time_limit(folder: Path, tmp_path: Path) -> None:
    output = run(
        "train", "--data", folder / "data.h5", "--preset", "small", "--max-minutes", 0.05,
        "-o", tmp_path / "small", "--json",
    ).stdout  # fmt: skip
    config = yaml.safe_load((tmp_path / "small" / "config.yaml").read_text())
    assert config["model"]["hidden_dim"] == 64
    # Not by a clock: what was stopped has epochs left.
    assert 1 <= json.loads(output)["epochs"] < config["training"]["max_epochs"]


def test_train_starts_from_a_student_and_its_network(folder: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", folder / "data.h5", "--from", folder / "student.pt"]
    more = [*arguments, "--max-epochs", 1, "--device", "cpu", "-o", tmp_path / "more", "--json"]
    result = json.loads(run(*more).stdout)
    assert result["epochs"] == 1
    config = yaml.safe_load((tmp_path / "more" / "config.yaml").read_text())
    assert config["model"]["hidden_dim"] == 16
    errors = [
        json.loads(run("evaluate", path, "--data", folder / "data.h5", "--json").stdout)
        for path in (folder / "run", tmp_path / "more")
    ]
    # One epoch of a new network would be far away from where three have led.
    assert errors[1]["energy_mae_mev_per_atom"] < 1.5 * errors[0]["energy_mae_mev_per_atom"] + 1.0

    other = tmp_path / "other"
    refuse(*arguments, "--preset", "small", "-o", other, say=["hidden_dim 16 instead of 64"])
    refuse(*arguments, "--resume", "-o", other, say=["--resume and --from"])
    refuse("train", "--data", "x.h5", "--from", tmp_path / "no.pt", "-o", other, say=["no.pt"])


def test_export_carries_the_card(folder: Path, tmp_path: Path) -> None:
    result = json.loads(
        run(
            "export", folder / "run", "-o", tmp_path / "s.pt", "--dtype", "float64", "--json"
        ).stdout
    )
    assert result["dtype"] == "float64"
    assert result["elements"] == [29]
    assert result["teacher"] == "emt"
    assert result["data_hash"]


def test_evaluate(folder: Path, tmp_path: Path) -> None:
    result = json.loads(
        run(
            "evaluate", folder / "student.pt", "--data", folder / "data.h5", "--split", "all",
            "-o", tmp_path, "--json",
        ).stdout
    )  # fmt: skip
    assert result["num_frames"] == 20
    assert result["force_mae_mev_per_ang"] > 0
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    from_checkpoint = json.loads(
        run(
            "evaluate", folder / "run", "--data", folder / "data.h5", "--split", "all", "--json"
        ).stdout
    )
    assert from_checkpoint["force_mae_mev_per_ang"] == pytest.approx(
        result["force_mae_mev_per_ang"], rel=1e-4
    )


# --- info ----------------------------------------------------------------------------------------


def test_info_on_every_kind(folder: Path) -> None:
    student = run("info", folder / "student.pt").stdout
    for text in ("Cu", "3.5 Å", "emt", "parameters", "float32", "MAE"):
        assert text in student, student
    kinds = {
        "student.pt": "student",
        "data.h5": "data",
        "run": "checkpoint",
        "run/best.ckpt": "checkpoint",
        "frames.extxyz": "structures",
    }
    for name, kind in kinds.items():
        assert json.loads(run("info", folder / name, "--json").stdout)["kind"] == kind, name


def test_info_shows_the_default_network_size(tmp_path: Path) -> None:
    student = StudentForceField(ModelConfig(), [14])
    export_student(student, tmp_path / "default.pt")
    assert f"{student.num_parameters:,}" in run("info", tmp_path / "default.pt").stdout


def test_info_lists_teachers() -> None:
    listed = json.loads(run("info", "--teachers", "--json").stdout)["teachers"]
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["emt"]["installed"] is True
    assert all(entry["install"].startswith("pip install") for entry in listed)
    text = run("info", "--teachers").stdout
    for entry in listed:
        assert entry["name"] in text
        assert entry["installed"] or entry["install"] in text


# --- dynamics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["ase", "lammps", "openmm"])
def test_md_runs_in_each_engine(engine: str, silicon_student: Path, tmp_path: Path) -> None:
    if engine != "ase":
        pytest.importorskip(engine)
    output = tmp_path / "t.extxyz"
    result = json.loads(
        run(
            "md", silicon_student, "builtin:silicon-8", "--engine", engine, "--ensemble", "nve",
            "--steps", 20, "--interval", 5, "--dtype", "float64", "-o", output, "--json",
        ).stdout
    )  # fmt: skip
    frames = read(output, ":")
    assert len(frames) == result["num_frames"] == 5
    assert result["engine"] == engine
    assert "drift_mev_per_atom_per_ps" in result
    # All engines start from the same positions and velocities, so they end at the same place.
    reference = tmp_path / "ase.extxyz"
    run(
        "md", silicon_student, "builtin:silicon-8", "--ensemble", "nve", "--steps", 20,
        "--interval", 5, "--dtype", "float64", "-o", reference,
    )  # fmt: skip
    difference = frames[-1].positions - read(reference, -1).positions
    assert np.abs(difference - np.round(difference / 5.43) * 5.43).max() < 1e-4


def test_bench_by_size(silicon_student: Path) -> None:
    result = json.loads(
        run(
            "bench", silicon_student, "builtin:silicon-8", "--engine", "ase", "--sizes", "8,60",
            "--steps", 3, "--json",
        ).stdout
    )  # fmt: skip
    assert [row["num_atoms"] for row in result["results"]] == [8, 64]
    assert all(row["microseconds_per_atom_step"] > 0 for row in result["results"])


def test_bench_against_a_teacher(folder: Path) -> None:
    text = run(
        "bench", folder / "student.pt", folder / "cu.extxyz", "--engine", "ase", "--teacher", "emt",
        "--steps", 3,
    ).stdout  # fmt: skip
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert float(rows["emt"][-1]) == 1.0
    assert float(rows["ase"][-1]) > 0


# --- bad input -----------------------------------------------------------------------------------


def test_unknown_element(silicon_student: Path) -> None:
    refuse("md", silicon_student, "builtin:ethanol", say=["Si", "H C O"])


def test_nan_positions(tmp_path: Path) -> None:
    (tmp_path / "nan.xyz").write_text("2\nbad\nCu 0 0 0\nCu nan 0 2\n")
    refuse(
        "label", tmp_path / "nan.xyz", "--teacher", "emt", "-o", tmp_path / "d.h5",
        say=["nan.xyz", "finite"],
    )  # fmt: skip
    assert not (tmp_path / "d.h5").exists()


def test_flat_cells_are_refused_and_left_handed_ones_turned_over(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.cell = np.diag([0.0, 4.0, 4.0])
    atoms.pbc = True
    write(tmp_path / "flat.extxyz", atoms)
    sample = ["sample", "-o", tmp_path / "out.extxyz", "--rattle", 2]
    refuse(*sample, tmp_path / "flat.extxyz", say=["zero"])
    atoms.cell = np.array([[0, 4.0, 0], [4.0, 0, 0], [0, 0, 4.0]])
    write(tmp_path / "left.extxyz", atoms)
    outcome = run(*sample, tmp_path / "left.extxyz")
    assert outcome.stderr.count("left-handed") == 1
    assert all(np.linalg.det(s.cell) > 0 for s in read_structures(tmp_path / "out.extxyz"))


def test_missing_and_truncated_files(folder: Path, tmp_path: Path) -> None:
    refuse("info", tmp_path / "none.pt", say=["no such file", "none.pt"])
    refuse("label", tmp_path / "none.xyz", "--teacher", "emt", "-o", "x.h5", say=["none.xyz"])
    refuse("train", "--data", tmp_path / "none.h5", "-o", tmp_path / "r", say=["none.h5"])
    for name in ("student.pt", "data.h5", "run/best.ckpt"):
        whole = (folder / name).read_bytes()
        broken = tmp_path / Path(name).name
        broken.write_bytes(whole[: len(whole) // 2])
        refuse("info", broken, say=[broken.name])


def test_hdf5_without_labels(folder: Path, tmp_path: Path) -> None:
    run("convert", folder / "frames.extxyz", tmp_path / "plain.h5")
    refuse(
        "train", "--data", tmp_path / "plain.h5", "-o", tmp_path / "r",
        say=["plain.h5", "labels", "mlff-distiller label"],
    )  # fmt: skip


def test_mismatched_lengths(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes((folder / "data.h5").read_bytes())
    with h5py.File(path, "a") as file:
        forces = file["labels/forces"][:-3]
        del file["labels/forces"]
        file["labels/forces"] = forces
    refuse("train", "--data", path, "-o", tmp_path / "r", say=["forces", "80", "77"])


def test_unknown_config_key(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model:\n  cuttof: 5.0\n")
    refuse(
        "train", "--data", folder / "data.h5", "-o", tmp_path / "r", tmp_path / "c.yaml",
        say=["unknown key 'cuttof' in model", "did you mean 'cutoff'?"],
    )  # fmt: skip
    (tmp_path / "d.yaml").write_text("structures: builtin:silicon\nsamplign: {}\n")
    refuse("distill", tmp_path / "d.yaml", say=["'samplign'", "did you mean 'sampling'?"])


def test_model_newer_than_the_code(silicon_student: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.pt"
    with zipfile.ZipFile(silicon_student) as old, zipfile.ZipFile(newer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("metadata.json"):
                content = json.dumps({**json.loads(content), "format_version": 99}).encode()
            new.writestr(entry, content)
    refuse("info", newer, say=["format version 99", "upgrade"])


def test_teacher_missing_or_misspelt(folder: Path, tmp_path: Path) -> None:
    frames, output = folder / "frames.extxyz", tmp_path / "d.h5"
    refuse(
        "label", frames, "--teacher", "sevenet-0", "-o", output, say=["did you mean", "sevennet-0"]
    )
    try:
        import mattersim  # noqa: F401
    except ImportError:
        refuse(
            "label", frames, "--teacher", "mattersim-1m", "-o", output,
            say=["not installed", "pip install mattersim"],
        )  # fmt: skip


def test_options_that_make_no_sense(folder: Path, silicon_student: Path, tmp_path: Path) -> None:
    refuse(
        "train", "--data", folder / "data.h5", "--preset", "huge", "-o", tmp_path,
        say=["tiny, small, base, large"],
    )  # fmt: skip
    refuse("train", say=["--data"])
    refuse("md", silicon_student, "builtin:silicon-8", "--engine", "gromacs", say=["lammps", "ase"])
    refuse("md", silicon_student, "builtin:silicon-8", "--ensemble", "nph", say=["nve, nvt, npt"])
    refuse("export", tmp_path, say=["best.ckpt"])
    refuse("info", say=["--teachers"])


def limit_file_size(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk_loses_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = ("label", folder / "frames.extxyz", "--teacher", "emt", "-o", tmp_path / "d.h5")
    arguments += ("--batch-size", "2")
    process = launch(*arguments, code=2, preexec_fn=limit_file_size(9000))
    assert "Traceback" not in process.stderr
    assert "cannot write" in process.stderr
    done = json.loads(run(*arguments, "--json").stdout)
    assert 0 < done["num_resumed"] < 20
    assert done["num_structures"] == 20
    expected = HDF5Dataset(folder / "data.h5").hash()
    assert HDF5Dataset(tmp_path / "d.h5").hash() == expected


def test_export_to_a_full_disk_is_one_line(folder: Path, tmp_path: Path) -> None:
    command = ("export", folder / "run", "-o", tmp_path / "out" / "student.pt")
    process = launch(*command, code=2, preexec_fn=limit_file_size(9000))
    assert process.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "student.pt" in process.stderr
    assert "terminate" not in process.stderr
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


# --- Ctrl-C --------------------------------------------------------------------------------------


def interrupt(
    arguments: list[Any], ready: Callable[[], bool], cwd: Path, number: int = signal.SIGINT
) -> str:
    """Start a command, send a signal when ``ready``, return stderr."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(PYTHONPATH=str(cwd)),
        preexec_fn=default_signals,
    )
    try:
        deadline = time.monotonic() + 600
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return errors


def test_interrupted_labelling_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    (tmp_path / "hold").touch()
    arguments = ["label", folder / "frames.extxyz", "--teacher", "slow_teacher:Slow", "-o", "d.h5"]
    arguments += ["--batch-size", 2]

    def some_batches() -> bool:
        try:
            return len(HDF5Dataset(tmp_path / "d.h5")) > 2  # the last may not be committed yet
        except InputError:  # not there yet, or nothing in it
            return False

    errors = interrupt(arguments, some_batches, tmp_path)
    assert "run the same command again" in errors
    (tmp_path / "hold").unlink()
    partial = len(HDF5Dataset(tmp_path / "d.h5"))
    assert 0 < partial < 20
    process = subprocess.run(
        [*COMMAND, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
    )
    assert json.loads(process.stdout)["num_resumed"] >= partial
    assert HDF5Dataset(tmp_path / "d.h5").hash() == HDF5Dataset(folder / "data.h5").hash()


def test_interrupted_sampling_resumes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    (tmp_path / "hold").touch()
    (tmp_path / "s.yaml").write_text("{md_temperatures: [300, 600], md_warmup: 0, md_interval: 1}")
    arguments = ["sample", folder / "frames.extxyz", "--teacher", "slow_teacher:Slow"]
    arguments += ["--config", "s.yaml", "--rattle", 1, "--md", 12, "-o"]
    unfinished = tmp_path / "f.h5.partial.h5"
    errors = interrupt([*arguments, "f.h5"], (tmp_path / "standing").exists, tmp_path)
    assert f"kept in {unfinished.name}; run the same command again" in errors
    (tmp_path / "hold").unlink()
    results = [
        subprocess.run(
            [*COMMAND, *map(str, arguments), name],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(tmp_path)),
        )
        for name in ("f.h5", "g.h5")
    ]
    assert "6 of 12 frames that take the teacher were done before" in results[0].stderr
    assert not unfinished.exists()
    there = [HDF5Dataset(tmp_path / name, require_labels=False) for name in ("f.h5", "g.h5")]
    assert there[0].hash() == there[1].hash()


def test_interrupted_training_resumes(folder: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((folder / "train.yaml").read_text())
    config["training"]["max_epochs"] = 100000
    config["training"]["early_stop_patience"] = 100000
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(config))
    arguments = ["train", "--data", folder / "data.h5", "-o", "run", "long.yaml"]
    checkpoint = tmp_path / "run" / "last.ckpt"
    # As batch systems do before they kill.
    errors = interrupt(arguments, checkpoint.exists, tmp_path, signal.SIGTERM)
    assert "--resume" in errors
    before = len((tmp_path / "run" / "history.csv").read_text().splitlines()) - 1
    result = json.loads(
        run(*arguments, "--resume", "--max-epochs", before + 2, "--json", cwd=tmp_path).stdout
    )
    assert result["epochs"] == before + 2
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) - 1 == before + 2


@pytest.mark.parametrize("engine", ["ase", "openmm", "lammps"])
def test_ctrl_c_keeps_the_frames_of_a_run(silicon_student, tmp_path, engine):
    """A run is stopped after the third record: those three are written."""
    from mlff_distiller.dynamics.record import Recorder

    output = tmp_path / "t.extxyz"
    original = Recorder.add

    def add(self, frame, **extra):
        original(self, frame, **extra)
        if len(self._frames) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "add", add)
        done = run(
            "md", silicon_student, "builtin:silicon-8", "--engine", engine, "--steps", 1000,
            "--interval", 5, "-o", output, code=130, cwd=tmp_path,
        )  # fmt: skip
    assert "3 frames of the first 0.01 ps" in " ".join(done.stderr.split())
    assert len(read(output, ":")) == 3


def test_results_are_not_replaced_unasked(silicon_student, tmp_path):
    """md and sample look before they work, and --overwrite says so."""
    kept = tmp_path / "kept.extxyz"
    kept.write_text("precious")
    for command in (
        ["md", silicon_student, "builtin:silicon-8", "--steps", 2, "-o", kept],
        ["sample", "builtin:silicon-8", "--rattle", 2, "-o", kept],
    ):
        refuse(*command, say=["exists already", "--overwrite"])
        assert kept.read_text() == "precious"
    run("sample", "builtin:silicon-8", "--rattle", 2, "-o", kept, "--overwrite", cwd=tmp_path)
    assert kept.read_text() != "precious"
    refuse("sample", "builtin:silicon-8", "--rattle", 2, "-o", tmp_path, say=["directory"])
