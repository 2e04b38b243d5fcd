"""Options reach what they are for: of commands, of the configuration, of the engines.

Each test gives values that are no default. What is at the other end has tests of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import read, write
from support.commands import run
from support.labelled import TINY, emt_crystals
from support.labelled import write as write_labelled

from mlff_distiller import dynamics, training
from mlff_distiller.config import (
    DistillConfig,
    EnginesConfig,
    TeacherConfig,
    from_dict,
    load_config,
)
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.dynamics import MDSettings, Trajectory, lammps_engine
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation import engines as engines_module
from mlff_distiller.evaluation import speed
from mlff_distiller.evaluation.engines import headline, run_engines
from mlff_distiller.evaluation.targets import measured
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

COPPER = Structure.from_atoms(bulk("Cu", cubic=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "cu.pt"
    export_student(StudentForceField(TINY, [29], [-1.0]), path)
    return path


def trajectory(settings: MDSettings, engine: str = "ase") -> Trajectory:
    time = np.arange(8) * settings.timestep
    flat = np.full(8, 300.0)
    frame = dataclasses.replace(COPPER, energy=0.0, forces=np.zeros((4, 3)))
    return Trajectory(engine, settings.ensemble, 4, time, flat, flat, flat, flat, 1e-3, [frame])


class Asked:
    """Stands in for ``run_md`` and remembers what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        self.calls: list[tuple[str, MDSettings]] = []
        for module in modules:
            monkeypatch.setattr(module, "run_md", self)

    def __call__(
        self, engine: str, model: Any, structure: Any, settings: MDSettings, **_: Any
    ) -> Trajectory:
        self.calls.append((engine, settings))
        return trajectory(settings, engine)


# -- md and bench --------------------------------------------------------------------------------


def test_md_passes_every_option_on(model: Path, tmp_path: Path, monkeypatch) -> None:
    asked = Asked(monkeypatch, dynamics)
    monkeypatch.setattr("mlff_distiller.cli.simulate.check_device", str)  # there is no GPU
    wanted = MDSettings(
        ensemble="npt", steps=77, temperature=123.0, pressure=456.0, timestep=0.7, interval=11,
        warmup_steps=13, dtype="float64", threads=2, seed=9, new_velocities=True,
        on_extrapolation="stop", ranks=2, uncertainty_limit=0.25, correct_with="emt", every=11,
        teacher_device="cuda", keep_labels="labels.h5", hydrogen_mass=2.5,
    )  # fmt: skip
    defaults = MDSettings()
    for f in dataclasses.fields(MDSettings):
        assert getattr(wanted, f.name) != getattr(defaults, f.name), f"{f.name} would show nothing"
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    run(
        "md", model, tmp_path / "cu.xyz", "--engine", "openmm", "--ensemble", "npt",
        "--steps", 77, "--temperature", 123, "--pressure", 456, "--timestep", 0.7,
        "--interval", 11, "--warmup", 13, "--dtype", "float64", "--threads", 2, "--seed", 9,
        "--new-velocities", "--on-extrapolation", "stop", "--ranks", 2,
        "--uncertainty-limit", 0.25, "--correct-with", "emt", "--every", 11, "--device", "cuda",
        "--keep-labels", "labels.h5", "--hydrogen-mass", 2.5, "-o", tmp_path / "t.extxyz",
    )  # fmt: skip
    assert asked.calls == [("openmm", wanted)]


def test_md_without_options_is_the_default_of_the_library(model, tmp_path, monkeypatch) -> None:
    asked = Asked(monkeypatch, dynamics)
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    run("md", model, tmp_path / "cu.xyz", "-o", tmp_path / "t.extxyz")
    assert asked.calls == [("ase", MDSettings())]


def test_bench_times_all_with_the_same_threads(model, tmp_path, monkeypatch) -> None:
    asked = Asked(monkeypatch, dynamics)
    timed: list[dict[str, Any]] = []
    monkeypatch.setattr(
        speed, "time_teacher", lambda name, s, **k: timed.append({"name": name, **k}) or 1.0
    )
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    run(
        "bench", model, tmp_path / "cu.xyz", "--engine", "ase", "--engine", "openmm",
        "--steps", 20, "--dtype", "float64", "--threads", 3, "--teacher", "emt",
    )  # fmt: skip
    settings = MDSettings("nve", 20, interval=20, warmup_steps=4, dtype="float64", threads=3)
    assert asked.calls == [("ase", settings), ("openmm", settings)]
    assert timed == [{"name": "emt", "threads": 3}]


# -- sample, label, train, evaluate ----------------------------------------------------------------


def test_sample_and_label_pass_their_options_on(tmp_path: Path) -> None:
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))

    def sampled(*options: Any) -> list[Any]:
        target = tmp_path / "frames.extxyz"
        run("sample", tmp_path / "cu.xyz", "-o", target, "--rattle", 8, "--overwrite", *options)
        return read(target, ":")

    first, again, other = sampled("--seed", 4), sampled("--seed", 4), sampled("--seed", 5)
    np.testing.assert_array_equal(first[0].positions, again[0].positions)
    assert np.abs(first[0].positions - other[0].positions).max() > 1e-3
    (tmp_path / "s.yaml").write_text("rattle_stdev: [0.0]\nmax_strain: 0.0\n")
    still = sampled("--config", tmp_path / "s.yaml")
    np.testing.assert_allclose(still[0].positions, bulk("Cu", cubic=True).positions, atol=1e-6)

    frames = sampled("--seed", 4)
    forces = [np.linalg.norm(_emt_forces(a), axis=1).max() for a in frames]
    limit = float(np.sort(forces)[4])
    arguments = ("label", tmp_path / "frames.extxyz", "--teacher", "emt", "-o", tmp_path / "d.h5")
    result = json.loads(run(*arguments, "--max-force", limit * 1.0001, "--json").stdout)
    assert result["num_structures"] == 5
    # What was left out comes back when labelling starts anew.
    result = json.loads(run(*arguments, "--no-resume", "--max-force", 1e6, "--json").stdout)
    assert (result["num_structures"], result["num_resumed"]) == (8, 0)
    # And starting anew keeps nothing: without it the other structures would be added.
    few = tmp_path / "few.extxyz"
    write(few, frames[:2])
    result = json.loads(run("label", few, *arguments[2:], "--no-resume", "--json").stdout)
    assert result["num_structures"] == 2
    lj = ("label", tmp_path / "frames.extxyz", "-o", tmp_path / "lj.h5")
    run(*lj, "--teacher", "ase.calculators.lj:LennardJones", "-O", "sigma=2.2", "-O", "rc=5.0")
    expected = frames[0].copy()
    expected.calc = LennardJones(sigma=2.2, rc=5.0)
    found = HDF5Dataset(tmp_path / "lj.h5")[0].energy
    assert found == pytest.approx(expected.get_potential_energy(), rel=1e-5)


def _emt_forces(atoms: Any) -> np.ndarray:
    from ase.calculators.emt import EMT

    atoms = atoms.copy()
    atoms.calc = EMT()
    return atoms.get_forces()


def test_train_passes_its_options_on(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[Any, Path, Any]] = []

    def fit(config: Any, output: Path, *, resume: Any, **others: Any) -> dict[str, Any]:
        seen.append((config, output, resume))
        return {
            "stopped": "max_epochs", "epochs": 1, "best_epoch": 1, "validation": {},
            "num_parameters": 1,
        }  # fmt: skip

    monkeypatch.setattr(training, "train", fit)
    monkeypatch.setattr("mlff_distiller.cli.models.accuracy_text", lambda metrics: "")
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump({"model": {"cutoff": 3.25}, "training": {"batch_size": 3, "seed": 1}})
    )
    run(
        "train", tmp_path / "train.yaml", "--data", "d.h5", "--preset", "small",
        "--max-minutes", 2.5, "--max-epochs", 17, "--device", "cpu", "--seed", 6,
        "-o", tmp_path / "run", "--resume",
    )  # fmt: skip
    ((config, output, resume),) = seen
    assert config.data.path == "d.h5"
    assert (config.model.cutoff, config.model.hidden_dim) == (3.25, 64)
    t = config.training
    assert (t.batch_size, t.max_minutes, t.max_epochs, t.device, t.seed) == (3, 2.5, 17, "cpu", 6)
    assert output == tmp_path / "run"
    assert resume is True


def test_evaluate_takes_the_split_that_was_asked_for(model: Path, tmp_path: Path) -> None:
    frames = [s for s in emt_crystals(24) if set(s.atomic_numbers) == {29}]
    path = write_labelled(tmp_path / "cu.h5", frames)
    for split, count in (("train", 9), ("valid", 3), ("all", 12)):
        arguments = ("evaluate", model, "--data", path, "--split", split, "--json")
        result = json.loads(run(*arguments).stdout)
        assert (result["split"], result["num_frames"]) == (split, count)


def test_convert_passes_its_options_on(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def convert(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        return {
            "elements": [1], "num_parameters": 1, "dtype": "float64",
            "imported_from": {"program": "SchNetPack"},
        }  # fmt: skip

    monkeypatch.setattr("mlff_distiller.importers.convert_model", convert)
    (tmp_path / "m").write_bytes(b"")
    run(
        "convert", tmp_path / "m", tmp_path / "s.pt", "--energy-unit", "kcal/mol",
        "--length-unit", "Bohr", "--elements", "H,C", "--dtype", "float64",
    )  # fmt: skip
    expected = (tmp_path / "m", tmp_path / "s.pt", "kcal/mol", "Bohr", "H,C", "float64")
    assert seen == [expected]


# -- engines -------------------------------------------------------------------------------------


def test_settings_of_the_engines_reach_their_runs(model: Path, monkeypatch) -> None:
    asked = Asked(monkeypatch, engines_module)
    points: list[tuple[str, int]] = []

    def single_point(engine: str, path: Any, structure: Structure, dtype: str = "") -> Structure:
        points.append((engine, len(structure)))
        return structure.with_labels(-1.0, np.zeros((len(structure), 3)))

    timed: list[dict[str, Any]] = []
    monkeypatch.setattr(engines_module, "single_point", single_point)
    monkeypatch.setattr(
        engines_module, "time_teacher", lambda name, s, **k: timed.append({"name": name, **k}) or 1
    )
    config = EnginesConfig(
        openmm=False, temperature=450.0, timestep=2.5, nve_steps=400, npt_steps=300
    )
    teacher = TeacherConfig(name="emt", device="cuda", options={"a": 1})
    other = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 1, 1))
    run_engines(model, COPPER, config, teacher, agreement_frame=other, threads=3)
    base = {"temperature": 450.0, "timestep": 2.5, "threads": 3, "warmup_steps": 100}
    nve = MDSettings("nve", 400, interval=2, **base)
    npt = MDSettings("npt", 300, interval=3, **base)
    assert asked.calls == [("lammps", nve), ("ase", nve), ("lammps", npt)]
    assert timed == [{"name": "emt", "device": "cuda", "options": {"a": 1}, "threads": 3}]
    assert {engine for engine, size in points if size == 8} == {"lammps", "ase", "torchscript"}
    asked.calls.clear()
    run_engines(model, COPPER, EnginesConfig(lammps=False, ase=False), threads=1)
    assert {engine for engine, _ in asked.calls} == {"openmm"}


def test_the_stage_of_the_engines_hands_its_settings_on(tmp_path: Path, monkeypatch) -> None:
    from mlff_distiller.pipeline import engines as stage
    from mlff_distiller.pipeline.stage import Hashed

    calm = dataclasses.replace(COPPER, energy=0.0, forces=np.zeros((4, 3)))
    rough = calm.with_labels(1.0, 3.0 * np.ones((4, 3)), None)
    write_labelled(tmp_path / "d.h5", [calm, rough, calm])
    given: dict[str, Any] = {}

    def fake(model: Any, start: Any, config: Any, teacher: Any, **keywords: Any) -> Any:
        given.update(keywords, start=start, config=config, teacher=teacher)
        return {"seconds_per_step": {"ase": 1.0}, "teacher_seconds": 2.0}, [
            trajectory(MDSettings())
        ]

    monkeypatch.setattr(stage, "run_engines", fake)
    config = EnginesConfig(threads=3)
    data = Hashed(tmp_path / "d.h5", "")
    inputs = stage.Inputs(
        Hashed(tmp_path, ""), data, Hashed(calm, ""), config, "emt", {"a": 1}, "cpu"
    )
    stage.work(inputs, tmp_path, print)
    assert given["threads"] == 3
    assert np.abs(given["agreement_frame"].forces).max() == 3.0, "where it is most off equilibrium"
    assert (given["config"], given["teacher"].options) == (config, {"a": 1})


def test_the_headline_is_the_worst_drift_and_the_ratio_to_the_teacher() -> None:
    block = {"max_energy_diff_ev_per_atom": 1e-9, "max_force_diff_ev_per_ang": 2e-9}
    runs = [
        {"engine": "lammps", "ensemble": "nve", "drift_mev_per_atom_per_ps": 0.1},
        {"engine": "ase", "ensemble": "nve", "drift_mev_per_atom_per_ps": -0.7},
        {"engine": "lammps", "ensemble": "npt"},
    ]
    engines = {
        "agreement": {"float32": block, "float64": {}}, "runs": runs, "teacher_seconds": 0.5,
        "seconds_per_step": {"lammps": 0.01, "ase": 0.25},
    }  # fmt: skip
    found = headline(engines)
    assert found["nve_drift_mev_per_atom_per_ps"] == -0.7
    assert found["speedup_vs_teacher"] == {"lammps": pytest.approx(50), "ase": pytest.approx(2)}
    assert found["speedup_vs_teacher_lammps"] == pytest.approx(50)
    assert found["engines_max_force_diff_ev_per_ang"] == 2e-9
    rows = {target.key: target.passed(value) for target, value in measured(found)}
    assert rows["speedup_vs_teacher_lammps"] is True
    assert rows["stress_mae_gpa"] is None
    slow = {
        target.key: target.passed(value)
        for target, value in measured({**found, "speedup_vs_teacher_lammps": 2.0})
    }
    assert slow["speedup_vs_teacher_lammps"] is False


def test_the_teacher_is_timed_with_its_threads_and_options(monkeypatch) -> None:
    jobs: list[tuple[list[str], dict[str, str]]] = []

    class Done:
        returncode, stdout, stderr = 0, "hello\nseconds a call: 0.25\nbye\n", ""

    def start(command: list[str], env: dict[str, str], **_: Any) -> Done:
        jobs.append((command, env))
        return Done()

    monkeypatch.setattr(speed.subprocess, "run", start)
    options = {"sigma": 2.0}
    found = speed.time_teacher("lj", COPPER, device="cuda", options=options, threads=3)
    assert found == 0.25
    ((command, env),) = jobs
    job = json.loads(command[-1])
    assert (job["teacher"], job["device"], job["options"]) == ("lj", "cuda", options)
    assert job["threads"] == 3
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"


def test_ase_gets_its_threads(model: Path, monkeypatch) -> None:
    import mlff_distiller.calculator as module

    made: list[dict[str, Any]] = []
    real = module.StudentCalculator

    def make(path: str, **keywords: Any) -> Any:
        made.append(keywords)
        return real(path, **keywords)

    monkeypatch.setattr(module, "StudentCalculator", make)
    dynamics.run_md("ase", model, COPPER, MDSettings("nve", 1, threads=2, dtype="float64"))
    assert made == [{"dtype": "float64", "threads": 2}]


def test_openmm_gets_its_threads(model: Path, monkeypatch) -> None:
    pytest.importorskip("openmm")
    import mlff_distiller.openmm as module

    made: list[dict[str, Any]] = []
    real = module.painn_force

    def make(topology: Any, path: str, **keywords: Any) -> Any:
        made.append(keywords)
        return real(topology, path, **keywords)

    monkeypatch.setattr(module, "painn_force", make)
    dynamics.run_md("openmm", model, COPPER, MDSettings("nve", 1, threads=2, dtype="float64"))
    assert made == [{"precision": "double", "periodic": True, "threads": 2}]


def test_lammps_gets_its_threads(model: Path, tmp_path: Path, monkeypatch) -> None:
    """A program in place of ``lmp`` that keeps what it was given."""
    program = tmp_path / "lmp"
    program.write_text(
        f'#!/bin/sh\ncp in.lammps {tmp_path}\necho "$OMP_NUM_THREADS" > {tmp_path}/n\nexit 1\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(lammps_engine, "lammps_command", lambda ranks: [str(program)])
    with pytest.raises(InputError, match="LAMMPS stopped"):
        dynamics.run_md("lammps", model, COPPER, MDSettings("nve", 1, threads=2))
    assert "pair_style painn precision single threads 2\n" in (tmp_path / "in.lammps").read_text()
    assert (tmp_path / "n").read_text() == "2\n"


# -- distill ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a finished run without engines."""
    folder = tmp_path_factory.mktemp("distill")
    write(folder / "cu.xyz", bulk("Cu", cubic=True))
    settings = {
        "structures": str(folder / "cu.xyz"),
        "output": str(folder / "run"),
        "teacher": {
            "name": "ase.calculators.lj:LennardJones",
            "options": {"sigma": 2.2, "rc": 5.0},
        },
        "sampling": {"num_rattle": 20, "num_md": 0, "max_force": 30.0, "rattle_stdev": [0.05]},
        "model": {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.5},
        "training": {"max_epochs": 1, "batch_size": 20, "threads": 1, "tensorboard": False},
        "loop": {"rounds": 0},
        "acceptance": {"measure": False},
        "engines": {"lammps": False, "openmm": False, "ase": False},
    }
    _distill(settings)
    return settings


def _distill(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Metrics, and the stages that were done anew. The teacher's seconds are not measured."""
    path = Path(settings["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines_module, "time_teacher", lambda name, s, **keywords: 0.1)
        done = run("distill", path, "--json")
    lines = done.stderr.splitlines()
    stages = [x[1:-1] for x in lines if x.startswith("[") and x.endswith("]")]
    return json.loads(done.stdout), stages


def _copied(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same run in another folder, so that each test changes a copy of its own."""
    import shutil

    shutil.copytree(settings["output"], folder / "run")
    return {**settings, "output": str(folder / "run")}


def test_distill_labels_with_the_options_of_its_teacher(distilled: dict[str, Any]) -> None:
    data = HDF5Dataset(Path(distilled["output"]) / "data.h5")
    atoms = data[3].to_atoms(labels=False)
    atoms.calc = LennardJones(sigma=2.2, rc=5.0)
    assert data[3].energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    assert (
        load_config(Path(distilled["output"]) / "config.yaml", DistillConfig).engines.ase is False
    )


def test_distill_leaves_out_what_is_above_max_force(distilled, tmp_path) -> None:
    largest = [
        np.linalg.norm(s.forces, axis=1).max()
        for s in HDF5Dataset(Path(distilled["output"]) / "data.h5")
    ]
    limit = float(np.sort(largest)[14] * 1.0001)
    settings = {**distilled, "output": str(tmp_path / "run")}
    settings["sampling"] = {**distilled["sampling"], "max_force": limit}
    metrics, _ = _distill(settings)
    assert sum(metrics["num_frames"].values()) == 15
    assert sum(metrics["rejected"].values()) == 5


@pytest.mark.parametrize(
    ("section", "change", "anew"),
    [
        ("sampling", {"seed": 3}, {"sample", "label", "train", "export"}),
        ("model", {"cutoff": 3.25}, {"train", "export"}),
        ("training", {"learning_rate": 0.002}, {"train", "export"}),
    ],
)
def test_changed_settings_do_their_stages_again(distilled, tmp_path, section, change, anew) -> None:
    settings = _copied(distilled, tmp_path)
    before = (tmp_path / "run" / "student.pt").read_bytes()
    assert _distill(settings)[1] == []
    settings[section] = {**settings[section], **change}
    _, stages = _distill(settings)
    assert anew <= set(stages)
    assert (tmp_path / "run" / "student.pt").read_bytes() != before
    assert _distill(settings)[1] == []


def test_labels_of_another_teacher_are_never_taken_for_its_own(distilled, tmp_path) -> None:
    """They are made again, or the run is refused; they do not stay under the new name."""
    settings = _copied(distilled, tmp_path)
    settings["teacher"] = {**settings["teacher"], "options": {"sigma": 2.3, "rc": 5.0}}
    with contextlib.suppress(AssertionError):  # refused
        _distill(settings)
    data = HDF5Dataset(tmp_path / "run" / "data.h5")
    (sigma,) = re.findall(r"sigma=([0-9.]+)", str(data.teacher))
    atoms = data[3].to_atoms(labels=False)
    atoms.calc = LennardJones(sigma=float(sigma), rc=5.0)
    assert data[3].energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    if sigma == "2.2":
        assert not (tmp_path / "run" / "stages" / "label.json").exists()


def test_the_card_holds_the_errors_on_the_validation_split(distilled) -> None:
    from mlff_distiller.export import read_metadata

    card = read_metadata(Path(distilled["output"]) / "student.pt")
    assert card["accuracy"]["split"] == "valid"
    assert card["accuracy"]["force_mae_mev_per_ang"] > 0


def test_every_section_of_a_configuration_is_known() -> None:
    """A typo in a key must not be taken for a wish to keep the default."""
    for field in dataclasses.fields(DistillConfig):
        if field.name not in ("structures", "output"):
            with pytest.raises(InputError, match=f"nonsense.*{field.name}"):
                from_dict(DistillConfig, {"structures": "x", field.name: {"nonsense": 1}})
