"""Relaxations by the student in a round: what is relaxed, what is kept, what the teacher is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.io import write
from support.commands import run

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.config import DistillConfig, LoopConfig, from_dict
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.pipeline import choose, relax
from mlff_distiller.pipeline.rounds import plan_runs
from mlff_distiller.pipeline.stage import Hashed, hashed_file
from mlff_distiller.purpose import PurposeConfig


def settings(folder: Path) -> dict[str, Any]:
    return {
        "structures": str(folder / "cu.extxyz"),
        "output": str(folder / "run"),
        "purpose": {
            "temperature": [300, 600],
            "timestep": 4.0,
            "defects": ["vacancy", "surface", "stacking"],
        },
        "teacher": {"name": "emt"},
        "sampling": {
            "num_rattle": 16,
            "rattle_stdev": [0.03, 0.1],
            "num_md": 0,
            "defects": {"number": 4, "kinds": ["vacancy", "surface"], "max_atoms": 40},
        },
        "model": {"hidden_dim": 16, "num_interactions": 1, "num_rbf": 8, "cutoff": 4.0},
        "training": {
            "batch_size": 4,
            "optimizer": "adamw",
            "learning_rate": 5e-3,
            "threads": 1,
            "tensorboard": False,
        },
        "loop": {
            "rounds": 1,
            "runs": 2,
            "picoseconds": 0.2,
            "frames": 9,
            "visited": 3,
            "epochs": 10,
            "relaxations": 2,
        },
        "acceptance": {
            "gates": ["held_out"],
            "force_mae": 1e4,
            "energy_mae": 1e4,
            "stress_mae": 1e4,
            "element_force_mae": 1e4,
        },
        "engines": {"lammps": False, "openmm": False, "nve_steps": 20, "npt_steps": 0},
    }


def config_for(folder: Path, **loop: Any) -> DistillConfig:
    config = from_dict(DistillConfig, settings(folder))
    return replace(config, loop=replace(config.loop, **loop))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("relaxations")
    write(path / "cu.extxyz", bulk("Cu", cubic=True) * (2, 2, 2))
    content = settings(path)
    content["training"]["max_epochs"] = 20
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    outcome = run("distill", path / "config.yaml", "--json")
    (path / "out.json").write_text(outcome.stdout)
    return path


def copper() -> Structure:
    return Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))


def inputs(folder: Path, starts: list[Structure], max_force: float = 30.0) -> relax.Inputs:
    student = hashed_file(folder / "run" / "rounds" / "00" / "student.pt")
    return relax.Inputs(student, Hashed(starts, ""), 0.6, max_force, workers=1)


def test_a_round_labels_where_relaxations_of_the_student_led(folder: Path) -> None:
    data = HDF5Dataset(folder / "run" / "data.h5")
    frames = [f for f in data if f.info["source"] == relax.SOURCE]
    assert 2 <= len(frames) <= 4
    assert {f.info["kind"] for f in frames} == {"vacancy", "surface"}
    assert all(f.info["why"] == choose.RELAXED and f.forces is not None for f in frames)
    # They are among the frames of the round, and none of them measures or tests the student.
    assert sum(f.info.get("round") == 1 for f in data) == 9
    train = {int(i) for i in data.splits["train"]}
    assert all(i in train for i, f in enumerate(data) if f.info["source"] == relax.SOURCE)
    rounds = json.loads((folder / "out.json").read_text())["rounds"]
    assert rounds[1]["chosen"]["relaxed"] == len(frames)


def test_a_relaxation_goes_downhill_to_small_forces(folder: Path) -> None:
    [start] = relax.starts_of(config_for(folder, relaxations=1), [copper()], [], 1)
    frames, sane = relax.relax_one((inputs(folder, [start]), 0))
    assert sane
    assert len(frames) == 2
    calculator = StudentCalculator(str(folder / "run" / "rounds" / "00" / "student.pt"))
    energies, forces = [], []
    for frame in (start, *frames):
        atoms = frame.to_atoms(labels=False)
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(float(np.linalg.norm(atoms.get_forces(), axis=1).max()))
    assert energies[0] > energies[1] > energies[2]
    # Eighty steps need not be enough for a student of twenty epochs.
    assert forces[2] < 0.3 * forces[0]
    assert frames[-1].energy is None  # the teacher will say
    moved = [np.linalg.norm(f.positions - start.positions) for f in frames]
    assert 0.2 * moved[1] < moved[0] < 0.8 * moved[1]


def test_rounds_relax_other_defects(folder: Path) -> None:
    config = config_for(folder, relaxations=4)
    first, again, second = (relax.starts_of(config, [copper()], [], k) for k in (1, 1, 2))
    # A stacking fault has nothing to relax into that its own sampling does not hold.
    assert [f.info["kind"] for f in first] == ["vacancy", "surface"] * 2
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.positions, b.positions)
    assert any(
        len(a) != len(b) or not np.array_equal(a.positions, b.positions)
        for a, b in zip(first, second, strict=True)
    )
    assert all(f.pbc.all() and len(f) <= 40 for f in first)


def test_molecules_relax_conformers_and_crystals_without_defects_nothing(folder: Path) -> None:
    config = config_for(folder, relaxations=2)
    plain = replace(config, purpose=PurposeConfig())
    assert relax.starts_of(plain, [copper()], [[copper()]], 1) == []
    ethanol = Structure.from_atoms(molecule("CH3CH2OH"))
    kinds = [[replace(ethanol, info={"source": "molecule", "kind": "torsion"})] * 3, [ethanol]]
    found = relax.starts_of(plain, [ethanol], kinds, 1)
    assert [f.info["kind"] for f in found] == ["torsion", "torsion"]
    none = replace(config, loop=LoopConfig(relaxations=0))
    assert relax.starts_of(none, [copper()], kinds, 1) == []


def test_a_relaxation_that_leaves_all_bounds_keeps_what_came_before(folder: Path) -> None:
    [start] = relax.starts_of(config_for(folder, relaxations=1), [copper()], [], 1)
    assert relax.relax_one((inputs(folder, [start], max_force=1e-4), 0)) == ([], False)
    told: list[str] = []
    result = relax.work(inputs(folder, [start], max_force=1e-4), folder, told.append)
    assert (result.num_frames, result.unfinished) == (0, 1)
    assert told == ["1 relaxations, 1 left all bounds; 0 frames"]


@pytest.mark.parametrize(("number", "relaxed", "others"), [(9, 4, 5), (4, 1, 3), (3, 0, 3)])
def test_relaxed_frames_count(folder: Path, tmp_path: Path, number, relaxed, others) -> None:
    """Frames drawn at random come first: they measure the student."""
    round_ = folder / "run" / "rounds" / "01"
    starts = relax.starts_of(config_for(folder), [copper()], [], 1)
    relax.work(inputs(folder, starts), tmp_path, lambda text: None)
    result = choose.work(
        choose.Inputs(
            candidates=hashed_file(round_ / "candidates.h5"),
            data=hashed_file(folder / "run" / "rounds" / "00" / "data.h5"),
            student=hashed_file(folder / "run" / "rounds" / "00" / "student.pt"),
            round=1,
            visited=3,
            number=number,
            seed=0,
            relaxed=hashed_file(tmp_path / relax.RELAXED),
        ),
        tmp_path,
        lambda text: None,
    )
    assert result.reasons.get("relaxed", 0) == relaxed
    assert sum(result.reasons.values()) == relaxed + others == number


def test_no_run_starts_at_a_relaxed_frame_alone(folder: Path) -> None:
    """They are one kind of training frames among the others that dynamics may start from."""
    known = [replace(copper(), info={"source": relax.SOURCE, "kind": "vacancy"})]
    starts, runs = plan_runs(config_for(folder, runs=4), [copper()], known, 1)
    assert len(starts) == len(runs) == 4
    assert any(s.info.get("source") == relax.SOURCE for s in starts)
