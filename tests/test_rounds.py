"""The on-policy loop: what the student's own dynamics asks the teacher, and what comes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.io import write
from support.commands import run

from mlff_distiller.config import DistillConfig, LoopConfig, from_dict
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates.runs import in_box
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig
from mlff_distiller.evaluation.gates.stability import planned
from mlff_distiller.pipeline import choose, explore, join
from mlff_distiller.pipeline.distill import begins_anew
from mlff_distiller.pipeline.measure import errors_by_temperature
from mlff_distiller.pipeline.plan import plan
from mlff_distiller.pipeline.rounds import Budget, Outcome, holds, limited, plan_runs
from mlff_distiller.pipeline.stage import Hashed, hashed_file
from mlff_distiller.purpose import PurposeConfig, ensembles, phase_of, phases
from mlff_distiller.sampling import builtin
from mlff_distiller.training.history import read_history


def settings(folder: Path) -> dict[str, Any]:
    return {
        "structures": str(folder / "cu.extxyz"),
        "output": str(folder / "run"),
        "purpose": {"temperature": [300, 800], "timestep": 4.0},
        "teacher": {"name": "emt"},
        "sampling": {"num_rattle": 20, "rattle_stdev": [0.03, 0.1], "num_md": 0},
        "model": {"hidden_dim": 16, "num_interactions": 1, "num_rbf": 8, "cutoff": 4.0},
        "training": {
            "max_epochs": 20,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "threads": 1,
            "tensorboard": False,
        },
        "loop": {
            "rounds": 2,
            "runs": 3,
            "picoseconds": 0.4,
            "frames": 8,
            "growth": 1.5,
            "visited": 4,
            "epochs": 10,
        },
        "acceptance": {
            "gates": ["held_out", "lattice", "visited"],
            "force_mae": 1e4,
            "energy_mae": 1e4,
            "stress_mae": 1e4,
            "element_force_mae": 1e4,
            "visited_force_mae": 1e4,
            "lattice": 90,
            "bulk_modulus": 1000,
            "phonon_mae": 1000,
        },
        "engines": {"lammps": False, "openmm": False, "nve_steps": 20, "npt_steps": 0},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounds")
    write(path / "cu.extxyz", bulk("Cu", cubic=True) * (2, 2, 2))
    (path / "config.yaml").write_text(yaml.safe_dump(settings(path)))
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Any]:
    outcome = run("distill", folder / "config.yaml", "--json")
    return json.loads(outcome.stdout)


def contents(run_dir: Path) -> dict[str, Any]:
    """What a run produced, without times."""
    data = HDF5Dataset(run_dir / "data.h5")
    return {
        "data": data.hash(),
        "splits": {k: v.tolist() for k, v in data.splits.items()},
        "weights": (run_dir / "student.pt").read_bytes(),
    }


def test_rounds_add_frames_that_the_student_visited(finished, folder: Path) -> None:
    rows = finished["rounds"]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert finished["teacher_calls"] == 20 + rows[1]["labelled"] + rows[2]["labelled"]
    data = HDF5Dataset(folder / "run" / "data.h5")
    assert len(data) == finished["teacher_calls"]
    sources = [str(s.info["source"]) for s in data]
    assert rows[1]["nearly"], "limits are wide here, so that rounds grow"
    assert [row["labelled"] for row in rows[1:]] == [8, 12]
    assert sources.count(explore.SOURCE) == 20
    for row in rows[1:]:
        assert row["visited"], "nothing was measured"
        assert sum(r["frames"] for r in row["visited"]) <= 4 * 1.5 ** (row["round"] - 1)
        assert len(row["runs"]) == 3
    # Frames of one run never lie on both sides unless they were drawn for validation.
    assert set(data.splits["valid"].tolist()).isdisjoint(data.splits["train"].tolist())
    assert sum(len(v) for v in data.splits.values()) == len(data)


def test_visited_frames_are_measured_before_they_are_learnt(finished, folder: Path) -> None:
    """The numbers are those of the student that ran, on its own frames."""
    from mlff_distiller.evaluation import predict
    from mlff_distiller.students import StudentForceField

    student = StudentForceField.load(folder / "run" / "rounds" / "00" / "student.pt")
    frames = [
        f
        for f in HDF5Dataset(folder / "run" / "rounds" / "01" / "labels.h5")
        if f.info["why"] == choose.VISITED
    ]
    errors = [
        np.abs(p.forces - f.forces) for p, f in zip(predict(student, frames), frames, strict=True)
    ]
    found = finished["rounds"][1]["visited"]
    weights = [r["frames"] for r in found]
    mean = np.average([r["force_mae_mev_per_ang"] for r in found], weights=weights)
    assert mean == pytest.approx(1e3 * np.mean(errors), rel=1e-5)


def test_a_second_call_does_nothing_again(finished, folder: Path) -> None:
    before = contents(folder / "run")
    outcome = run("distill", folder / "config.yaml")
    assert "[explore] done before" in outcome.stderr
    assert "\n[train]\n" not in outcome.stderr
    assert contents(folder / "run") == before


@pytest.mark.parametrize("stage", ["rounds/00/student.pt", "rounds/01/chosen.h5"])
def test_killed_and_gone_on_with_gives_the_same(
    finished, folder: Path, tmp_path: Path, stage: str
) -> None:
    content = {**settings(folder), "output": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "mlff_distiller.cli", "distill", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 300
        while not (tmp_path / "run" / stage).exists() and process.poll() is None:
            assert time.monotonic() < end, "hangs"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    run("distill", tmp_path / "config.yaml")
    here, there = contents(tmp_path / "run"), contents(folder / "run")
    assert here["data"] == there["data"]
    assert here["splits"] == there["splits"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["force_mae_mev_per_ang"] == finished["force_mae_mev_per_ang"]


def test_a_gate_that_fails_is_told_by_the_exit_status(
    finished, folder: Path, tmp_path: Path
) -> None:
    """The student is there all the same, and nothing is trained again for it."""
    shutil.copytree(folder / "run", tmp_path / "run")
    content = {**settings(folder), "output": str(tmp_path / "run")}
    # The limit of visited frames steers the rounds: another one would be another run.
    content["acceptance"] = {
        "gates": ["held_out", "lattice"],
        "force_mae": 1e-3,
        "visited_force_mae": 1e4,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    outcome = run("distill", tmp_path / "config.yaml", code=1)
    assert "✗ force error, held-out frames" in " ".join(outcome.stdout.split())
    assert "NOT to be used for Cu" in outcome.stdout
    assert "the student fails gates" in outcome.stderr
    assert "\n[train]\n" not in outcome.stderr
    assert (tmp_path / "run" / "student.pt").exists()


def test_the_number_of_teacher_calls_is_kept(folder: Path, tmp_path: Path) -> None:
    content = {**settings(folder), "output": str(tmp_path / "run")}
    content["loop"] = {**content["loop"], "teacher_calls": 25}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    run("distill", tmp_path / "config.yaml")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher_calls"] == 25
    assert metrics["rounds_stopped"] == "25 teacher calls"


# -- exploring ---------------------------------------------------------------------------------------


def copper() -> Structure:
    return Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))


def config_for(**loop: Any) -> DistillConfig:
    return from_dict(
        DistillConfig,
        {
            "structures": "builtin:silicon",
            "purpose": {"temperature": [300, 900], "pressure": [0, 10]},
            "loop": loop,
        },
    )


def test_runs_cover_the_conditions_and_go_beyond_them() -> None:
    known = [replace(copper(), info={"k": k}) for k in range(5)]
    starts, runs = plan_runs(config_for(runs=6, overshoot=1.5), [copper()], known, 1)
    assert [r.start for r in runs] == list(range(6))
    assert len(starts) == 6
    temperatures = [r.temperature for r in runs[:-1]]
    assert max(temperatures) == 900
    assert min(temperatures) == 300
    assert runs[-1].final_temperature == pytest.approx(1350)
    assert {r.ensemble for r in runs} == {"npt", "nvt"}
    assert {r.pressure for r in runs if r.ensemble == "npt"} <= {0, 5, 10}
    assert any(s.info.get("k") is not None for s in starts)
    again = plan_runs(config_for(runs=6, overshoot=1.5), [copper()], known, 1)[1]
    other = plan_runs(config_for(runs=6, overshoot=1.5), [copper()], known, 2)[1]
    assert again == runs
    assert other != runs


def test_molecules_are_not_put_under_pressure() -> None:
    water = Structure.from_atoms(molecule("H2O"))
    _, runs = plan_runs(config_for(runs=4), [water], [], 1)
    assert {r.ensemble for r in runs} == {"nvt"}


def test_small_frames_such_as_dimers_do_not_start_runs() -> None:
    dimer = Structure([29, 29], [[0, 0, 0], [0, 0, 2.2]], np.eye(3) * 20, [True] * 3)
    starts, _ = plan_runs(config_for(runs=8), [copper()], [dimer], 1)
    assert all(len(s) == 32 for s in starts)


def test_each_kind_of_training_frame_starts_runs_in_turn() -> None:
    kinds = ["strain", "defect", "student-md"]
    known = [replace(copper(), info={"source": kinds[i % 3], "n": i}) for i in range(30)]
    known.append(replace(copper(), info={"source": "dimer"}))
    known.append(replace(copper(), info={"source": "molecule", "kind": "bond"}))  # flies apart
    slab = replace(copper(), pbc=[True, True, False], info={"source": "slab"})
    seen = set()
    for k in range(1, 4):
        starts, runs = plan_runs(config_for(runs=6), [copper()], [*known, slab], k)
        seen |= {s.info.get("source") for s in starts}
        for run_ in runs:
            open_ = not starts[run_.start].pbc.all()
            assert not (open_ and run_.ensemble == "npt"), "a slab has no pressure"
    assert seen == {None, "strain", "defect", "student-md", "slab"}


# -- choosing ----------------------------------------------------------------------------------------


def test_uncertain_frames_are_those_far_from_what_is_known() -> None:
    rng = np.random.default_rng(0)
    known = [rng.normal(size=(20, 4)) * [1, 1, 0.01, 0.01] for _ in range(5)]
    near = [rng.normal(size=(20, 4)) * [1, 1, 0.01, 0.01] for _ in range(6)]
    far = near[2].copy()
    far[3] += [0, 0, 1.0, 0]
    twin = far + 1e-3
    other = near[1].copy()
    other[5] += [0, 0, 0, 0.8]
    features = [*near, far, twin, other]
    # One of the twins and the other direction: the second twin has nothing new to tell.
    assert set(choose.most_uncertain(features, known, 2)) in ({6, 8}, {7, 8})
    assert choose.most_uncertain(features, known, 2, given=[6])[0] == 8
    assert len(choose.most_uncertain(features, known, 99)) == len(features)


def test_no_run_is_asked_about_more_often_than_the_limit() -> None:
    rng = np.random.default_rng(1)
    features = [rng.normal(size=(3, 4)) * (10 if i < 5 else 1) for i in range(10)]
    runs = [0] * 5 + [1] * 5
    found = choose.most_uncertain(features, features[5:], 4, runs=runs, limit=2)
    assert sorted(runs[i] for i in found) == [0, 0, 1, 1]


def test_frames_of_dead_runs_end_at_the_last_sane_one(tmp_path: Path) -> None:
    start = copper()
    frames = [
        replace(start, positions=start.positions + 0.01 * k, forces=np.zeros((32, 3)))
        for k in range(6)
    ]
    wild = replace(frames[3], forces=np.full((32, 3), 1e4))
    frames[3] = wild
    inputs = explore.Inputs(
        student=None, starts=None, runs=[], engine="ase", timestep=1.0, interval=10.0,
        min_distance=0.6, max_force=30.0,
    )  # fmt: skip
    assert explore._sane(frames, inputs) == frames[:3]
    close = start.positions.copy()
    close[1] = close[0] + [0.5, 0, 0]
    frames[1] = replace(frames[1], positions=close)
    assert explore._sane(frames, inputs) == frames[:1]


def test_visited_frames_come_from_living_runs_and_late() -> None:
    candidates = [
        replace(copper(), info={"run": run, "exploded": run == 1, "time_fs": t})
        for run in range(3)
        for t in range(10)
    ]
    found = choose._visited(candidates, 6, np.random.default_rng(0))
    assert len(set(found)) == 6
    assert {candidates[i].info["run"] for i in found} == {0, 2}
    assert all(candidates[i].info["time_fs"] >= 5 for i in found)
    assert [candidates[i].info["time_fs"] for i in choose._last_words(candidates)] == [9, 6, 0]


# -- the budget and the stop rule ----------------------------------------------------------------------


def budget(
    spent: list[float],
    training: dict[str, Any] | None = None,
    dynamics: float = 0.0,
    **loop: Any,
) -> Budget:
    config = config_for(**loop)
    if training:
        config = replace(config, training=replace(config.training, **training))
    return Budget(config, lambda: spent[0], dynamics)


def test_minutes_are_shared_and_kept_for_the_end() -> None:
    spent = [60.0]
    b = budget(spent, minutes=20, rounds=4, final_share=0.5)
    total = 20 * 60 - 300  # a quarter is for gates and engines
    final = 0.5 * (total - 60)
    others = 20.0
    for k in range(5):
        assert not b.is_spent(others)
        minutes = b.of_round(k, others)
        spent[0] += 60 * minutes + others
    assert b.is_spent(others)
    assert 60 * b.of_final(0) == pytest.approx(final, rel=0.1)


def test_explosions_may_take_half_of_the_last_training() -> None:
    spent = [0.0]
    b = budget(spent, minutes=20, rounds=9, final_share=0.5)
    usable = 20 * 60 - 300
    spent[0] = 0.5 * usable - 10.0
    assert b.is_spent(20.0)
    assert not b.is_spent(20.0, exploded=True)
    spent[0] = 0.75 * usable - 10.0
    assert b.is_spent(20.0, exploded=True)


def test_time_for_the_gates_follows_the_pace_of_the_student() -> None:
    spent, said = [0.0], []
    b = budget(spent, minutes=20, rounds=9, final_share=0.5, dynamics=64 * 500.0)
    b.paced(0.001, said.append)  # 32 s: less than what is kept anyway
    assert 60 * b.of_final(0) == pytest.approx(900, abs=0.1)
    b.paced(0.01, said.append)  # 320 s, and 75 for other gates
    assert 60 * b.of_final(0) == pytest.approx(1200 - 395, abs=0.1)
    spent[0] = 1200 - 395 - 0.5 * 900 - 30.0
    assert b.is_spent(20.0), "the last training keeps its share of all"
    b.paced(0.005, said.append)
    assert 60 * b.of_final(0) == pytest.approx(1200 - 395 - spent[0], abs=0.1)
    assert not said
    for _ in range(2):
        b.paced(0.1, said.append)
    assert 60 * b.of_final(0) == pytest.approx(0.5 * 900, abs=0.1), "not less than its share"
    assert len(said) == 1
    assert "54.6 minutes, and 7.1 of 20 are kept" in said[0]
    early = budget([100.0], minutes=20, rounds=9, final_share=0.2, dynamics=64 * 500.0)
    early.paced(0.1, said.append)
    assert 60 * early.of_final(0) == pytest.approx(0.6 * 1200 - 100, abs=0.1), "two fifths"


def test_a_last_training_without_time_goes_on_from_the_rounds() -> None:
    config, said = config_for(minutes=3), []
    outcome = Outcome([], rounds=[{"minutes": 0.5}, {"minutes": None}, {"minutes": 1.0}])
    assert begins_anew(config, 1.0, outcome, said.append)
    assert begins_anew(config, None, outcome, said.append)
    assert begins_anew(config, 0.1, Outcome([]), said.append)
    assert not said
    assert not begins_anew(config, 0.1, outcome, said.append)
    assert said == [
        "6 s are left for it, less than a round had (60 s): it goes on from the weights of the rounds"
    ]
    assert not begins_anew(config_for(final_anew=False), 9.0, outcome, said.append)


def test_what_the_gates_of_stability_run() -> None:
    limits, purpose = AcceptanceConfig(stability_seeds=4, stability_time=3.0), PurposeConfig()
    cell = builtin("silicon")[0]
    assert planned(limits, purpose, [cell]) == len(in_box(cell)) * 4 * 3.0
    for without in ({"measure": False}, {"skip": ["stability"]}, {"gates": ["lattice"]}):
        assert planned(replace(limits, **without), purpose, [cell]) == 0.0


def test_learning_is_never_shorter_than_asking() -> None:
    b = budget([0.0], minutes=4, rounds=20)
    assert 60 * b.of_round(1, 30.0) >= 30.0


def test_training_minutes_are_shared_where_the_loop_has_none() -> None:
    b = budget([0.0], {"max_minutes": 10.0}, rounds=4, final_share=0.6)
    assert b.of_round(2, 99.0) == pytest.approx(4.0 / 5, abs=1e-3)
    assert b.of_final(240.0) == pytest.approx(6.0)
    assert budget([0.0], rounds=3).of_round(1, 1.0) is None


def test_minutes_of_the_run_alone_end_a_training() -> None:
    free = limited(config_for(minutes=10), 2.0)
    assert (free.max_minutes, free.max_epochs) == (2.0, 10**9)
    assert free.early_stop_patience == 10**9
    given = limited(config_for(), 2.0)
    assert (given.max_minutes, given.max_epochs) == (2.0, config_for().training.max_epochs)
    assert limited(config_for(), None, epochs=7).max_epochs == 7
    assert limited(config_for(), None) == config_for().training


def test_a_round_holds_within_the_limits_of_the_gates() -> None:
    limits = AcceptanceConfig(visited_force_mae=30.0, visited_force_fraction=0.1)
    cold = {
        "temperature": 300.0,
        "force_mae_mev_per_ang": 29.0,
        "mean_component_mev_per_ang": 300.0,
    }
    hot = {"temperature": 900.0, "force_mae_mev_per_ang": 70.0, "mean_component_mev_per_ang": 800.0}
    assert holds([cold, hot], limits)
    assert not holds([cold, {**hot, "mean_component_mev_per_ang": 600.0}], limits)
    # A share of the forces is allowed where it is hot, and nowhere else.
    assert not holds([{**cold, "force_mae_mev_per_ang": 31.0}, hot], limits)
    # Forces as large as those of a wreck allow four times the limit, and not more.
    assert not holds(
        [cold, {**hot, "mean_component_mev_per_ang": 1e5, "force_mae_mev_per_ang": 121.0}], limits
    )
    assert not holds([], limits), "without a measurement nothing holds"
    # Rounds grow once a student is nearly right.
    poor = {**hot, "force_mae_mev_per_ang": 210.0}
    assert holds([cold, poor], limits, 3.0)
    assert not holds([cold, {**poor, "force_mae_mev_per_ang": 250.0}], limits, 3.0)


def test_errors_are_told_by_temperature() -> None:
    frames = [
        replace(copper(), forces=np.full((32, 3), f), info={"temperature": t})
        for f, t in ((1.0, 300), (1.0, 310), (2.0, 900))
    ]
    errors = [np.full((32, 3), e) for e in (0.01, 0.03, 0.05)]
    cold, hot = errors_by_temperature(frames, errors)
    assert (cold["frames"], hot["frames"]) == (2, 1)
    assert cold["temperature"] == pytest.approx(305)
    assert cold["force_mae_mev_per_ang"] == pytest.approx(20)
    assert hot["mean_force_ev_per_ang"] == pytest.approx(2 * 3**0.5)
    assert errors_by_temperature([], []) == []


def test_splits_of_a_round() -> None:
    whys = [choose.VISITED] * 6 + [choose.UNCERTAIN] * 3
    frames = [replace(copper(), info={"why": why}) for why in whys]
    assert join.splits_of_round(frames) == {
        "train": [1, 3, 4, 6, 7, 8],
        "valid": [2, 5],
        "test": [0],
    }


# -- from a purpose to a configuration -------------------------------------------------------------------


def test_phases() -> None:
    from ase.build import fcc111

    from mlff_distiller.sampling import builtin

    assert phase_of(copper()) == "crystal"
    assert phase_of(builtin("water")[0]) == "liquid"
    assert phase_of(Structure.from_atoms(molecule("H2O"))) == "molecule"
    assert phase_of(Structure.from_atoms(fcc111("Cu", (2, 2, 3), vacuum=8.0))) == "slab"
    assert phase_of(Structure.from_atoms(bulk("Cu").repeat(2), labels=False)) == "crystal"
    cluster = replace(copper(), pbc=np.zeros(3, dtype=bool), cell=np.zeros((3, 3)))
    assert phase_of(cluster) == "cluster"
    assert phases(config_for().purpose, [cluster, copper()]) == ["cluster", "crystal"]
    assert ensembles(config_for().purpose, copper()) == ["npt", "nvt"]
    assert ensembles(config_for().purpose, cluster) == ["nvt"]


def test_a_plan_states_every_choice() -> None:
    crystal = Structure.from_atoms(bulk("Si"))
    config = plan(
        ["si.cif"], [crystal], purpose={"temperature": [300.0, 1800.0]},
        given={"loop": {"minutes": 30.0}, "teacher": {"name": "emt"}},
    )  # fmt: skip
    assert config.purpose.phases == ["crystal"]
    assert config.purpose.defects == ["vacancy", "surface"]
    assert config.purpose.timestep == 2.0
    assert config.model.hidden_dim == 64
    assert config.model.zbl
    assert config.loop.minutes == 30.0
    assert config.model.num_interactions == 3
    assert (config.loop.picoseconds, config.loop.interval) == (10.0, 100.0)
    assert config.loop.growth > 1.0
    assert config.loop.rounds > LoopConfig().rounds  # the clock ends them
    water = plan(["w.xyz"], [Structure.from_atoms(molecule("H2O"))], purpose={}, given={})
    assert water.purpose.phases == ["molecule"]
    assert water.purpose.timestep == 0.5
    assert water.model.hidden_dim == 128
    assert (water.loop.growth, water.loop.rounds) == (1.0, LoopConfig().rounds)
    assert water.loop.final_share == LoopConfig().final_share


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "900:300"], "temperature must be the lowest and the highest"),
        (["--temperature", "hot"], "--temperature must be LOW:HIGH or one number, got 'hot'"),
        (["--temperature", "0:300"], "temperature[0] must be > 0 K"),
        (["--pressure", "1:2:3"], "--pressure must be LOW:HIGH"),
        (["--phase", "plasma"], "phases[0] must be one of crystal"),
        (["--ensemble", "nvx"], "ensembles[0] must be one of nve"),
        (["--minutes", "0"], "minutes must be > 0"),
        (["--preset", "huge"], "unknown preset 'huge'"),
    ],
)
def test_purposes_that_make_no_sense(folder: Path, arguments: list[str], words: str) -> None:
    outcome = run("distill", folder / "cu.extxyz", "--teacher", "emt", *arguments, code=2)
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_yaml_and_structures_exclude_each_other(folder: Path) -> None:
    outcome = run("distill", folder / "config.yaml", folder / "cu.extxyz", code=2)
    assert "one YAML or structures" in outcome.stderr


def test_no_sane_frame_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "student_run", lambda job: ([], 0.0, "atoms have fused"))
    run_ = explore.Run(0, "nvt", 300.0, 300.0, 0.0, 1.0, 1)
    inputs = explore.Inputs(
        student=None, starts=None, runs=[run_], engine="ase", timestep=1.0, interval=10.0,
        min_distance=0.6, max_force=30.0, workers=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="no run of the student left a single sane frame"):
        explore.work(inputs, tmp_path, lambda text: None)


def test_the_way_into_a_hole_is_recorded_step_by_step(finished, folder: Path) -> None:
    """A student that has seen no hot crystal, far above what it knows."""
    student = folder / "run" / "rounds" / "00" / "student.pt"
    inputs = explore.Inputs(
        student=hashed_file(student),
        starts=Hashed([copper()], ""),
        runs=[explore.Run(0, "nvt", 12000.0, 12000.0, 0.0, 4.0, 3)],
        engine="ase",
        timestep=4.0,
        interval=20.0,
        min_distance=0.6,
        max_force=15.0,
        workers=1,
    )
    frames, _, verdict = explore.student_run((inputs, 0))
    assert verdict
    times = np.array([f.info["time_fs"] for f in frames])
    steps = np.diff(times)
    assert set(steps.tolist()) == {20.0, 4.0}
    assert (np.diff(steps) <= 0).all(), "the fine records come last"
    # Not one that no teacher should be asked about.
    assert len(
        explore._sane([replace(f, forces=np.zeros((32, 3))) for f in frames], inputs)
    ) == len(frames)


def test_a_journal_of_a_killed_stage_is_not_added(finished, folder: Path, tmp_path: Path) -> None:
    """Frames were in the file twice."""
    run_dir = tmp_path / "run"
    shutil.copytree(folder / "run", run_dir)
    chosen = run_dir / "rounds" / "01" / choose.CHOSEN
    frames = list(HDF5Dataset(chosen, require_labels=False))
    writer = HDF5Writer(tmp_path / "open.h5")
    writer.append(frames)  # what is left is a journal: nothing was closed
    shutil.copy(tmp_path / "open.h5.journal", chosen.with_name(f"{choose.CHOSEN}.journal"))
    writer.close()
    (run_dir / "rounds" / "01" / "stages" / "choose.json").unlink()
    content = {**settings(folder), "output": str(run_dir)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    run("distill", tmp_path / "config.yaml")
    assert len(HDF5Dataset(chosen, require_labels=False)) == len(frames)
    assert contents(run_dir) == contents(folder / "run")


def test_copies_are_independent(finished, folder: Path, tmp_path: Path) -> None:
    """A finished run that is moved is not done again: records name no absolute path."""
    shutil.copytree(folder / "run", tmp_path / "moved")
    outcome = run("distill", folder / "config.yaml", "-o", tmp_path / "moved")
    assert "\n[explore]\n" not in outcome.stderr


def test_the_last_training_begins_anew_or_goes_on(finished, folder: Path, tmp_path: Path) -> None:
    """What the first epoch is wrong by tells new weights from trained ones."""

    def first_error(run_dir: Path) -> float:
        return float(read_history(run_dir / "training" / "history.csv")["train_force_rmse"][0])

    shutil.copytree(folder / "run", tmp_path / "moved")
    going_on = settings(folder)
    going_on["loop"]["final_anew"] = False
    (tmp_path / "on.yaml").write_text(yaml.safe_dump(going_on))
    outcome = run("distill", tmp_path / "on.yaml", "-o", tmp_path / "moved")
    assert "\n[explore]\n" not in outcome.stderr, "rounds are the same"
    assert first_error(tmp_path / "moved") < 0.5 * first_error(folder / "run")
