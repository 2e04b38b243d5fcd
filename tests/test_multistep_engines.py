"""Corrected runs of LAMMPS and OpenMM: the teacher's dynamics with the student in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from scipy.optimize import minimize_scalar
from support.multistep import (
    LENGTH,
    FailsAt,
    Springs,
    by_ase,
    corrected,
    crystal,
    lennard_jones,
    small_molecule,
    write_model,
)

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import RunStoppedError, Trajectory, run_md
from mlff_distiller.errors import InputError

BAR = 1e5 * units.Pascal
# Constants of nature in their units differ from ASE's by parts in 10^8, and so do accelerations.
UNITS = {"lammps": 1.0, "openmm": 0.15}


@pytest.fixture(params=["lammps", "openmm"])
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("multistep") / "si.pt")


@pytest.fixture(scope="module")
def organic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("multistep") / "cho.pt", (1, 6, 8))


def moved(run: Trajectory) -> np.ndarray:
    """(k, n, 3): positions less those of the start, whatever cell they were put into."""
    start = run.frames[0]
    found = []
    for frame in run.frames:
        difference = frame.positions - start.positions
        if start.pbc.all():
            difference -= np.round(difference @ np.linalg.inv(frame.cell)) @ frame.cell
        found.append(difference)
    return np.array(found)


# -- the same trajectory as ... --------------------------------------------------------------------


def test_crystal_as_in_ase(engine, model) -> None:
    settings = corrected(steps=200, every=4)
    ours = run_md(engine, model, crystal(), settings)
    ase = run_md("ase", model, crystal(), settings)
    np.testing.assert_allclose(moved(ours), moved(ase), atol=1e-7 * UNITS[engine])
    np.testing.assert_allclose(ours.total_energy, ase.total_energy, atol=1e-7 * UNITS[engine])
    for one, other in zip(ours.frames, ase.frames, strict=True):
        np.testing.assert_allclose(one.momenta, other.momenta, atol=3e-6)
        np.testing.assert_allclose(one.forces, other.forces, atol=3e-6)
        np.testing.assert_allclose(one.stress, other.stress, atol=3e-8)


def test_molecule_as_in_ase(engine, organic) -> None:
    settings = corrected(steps=100, every=2, timestep=0.25, correct_with="emt")
    ours = run_md(engine, organic, small_molecule(), settings)
    ase = run_md("ase", organic, small_molecule(), settings)
    np.testing.assert_allclose(moved(ours), moved(ase), atol=1e-7 * UNITS[engine])
    np.testing.assert_allclose(ours.total_energy, ase.total_energy, atol=1e-7 * UNITS[engine])
    assert ours.frames[-1].stress is None


def test_correcting_every_step_is_the_teacher_s_dynamics(engine, model) -> None:
    run = run_md(engine, model, crystal(), corrected(steps=50, every=1))
    teacher = by_ase(crystal(), lennard_jones(), 50, 1.0)
    np.testing.assert_allclose(moved(run), teacher - teacher[0], atol=1e-7 * UNITS[engine])


# -- energy ----------------------------------------------------------------------------------------


def test_the_teacher_s_energy_is_conserved(engine, model) -> None:
    """Second order in the outer step, as velocity Verlet is: no drift, and four times less noise
    for half the step. The student alone would lose or gain its difference from the teacher."""
    noise = {}
    for every in (2, 4):
        run = run_md(engine, model, crystal(), corrected(steps=480, every=every))
        noise[every] = run.total_energy[5:].std() / 8
        assert abs(run.drift()) < 0.5  # meV/atom/ps
    assert noise[4] < 1e-3  # eV/atom
    assert 2.5 < noise[4] / noise[2] < 6.5
    assert np.ptp(run.potential_energy) / 8 > 5 * noise[4]


def test_records_are_the_teacher_s_at_one_call_an_outer_step(engine, model) -> None:
    settings = corrected(steps=40, every=4, interval=8)
    run = run_md(engine, model, crystal(), settings)
    assert len(run.frames) == 6
    assert run.correction is not None
    assert run.correction.calls == 11
    for frame in run.frames:
        atoms = frame.to_atoms(labels=False)
        atoms.calc = lennard_jones()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-9)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-10)
        assert frame.info["student_ev"] == pytest.approx(-40.0, abs=5.0)
        assert abs(frame.info["student_ev"] - frame.energy) > 1.0


# -- ensembles -------------------------------------------------------------------------------------


def block_error(values: np.ndarray, blocks: int = 20) -> float:
    means = [block.mean() for block in np.array_split(values, blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(blocks))


def cold(length: float = 1.02 * LENGTH) -> Structure:
    """32 atoms of an fcc crystal at rest."""
    atoms = bulk("Si", "fcc", a=np.sqrt(2) * length, cubic=True) * (2, 2, 2)
    return Structure.from_atoms(atoms, labels=False)


def test_nvt_has_the_teacher_s_heat(engine, model) -> None:
    """Equipartition of springs: half of f kT in the positions, and half in the motion. The student
    has other minima and knows no temperature."""
    start, temperature = cold(LENGTH), 40.0
    settings = corrected("nvt", 4500, 3, interval=6, timestep=2.0, temperature=temperature, seed=3)
    run = run_md(engine, model, start, settings, teacher=Springs(start))
    half = 0.5 * 93 * units.kB * temperature
    potential = run.potential_energy[100:] / half
    kinetic = (run.total_energy - run.potential_energy)[100:] / half
    for found in (potential, kinetic):
        error = block_error(found)
        assert error < 0.04
        assert abs(found.mean() - 1.0) < 4 * error + 0.01


def test_npt_has_the_teacher_s_volume(engine, model) -> None:
    """Springs at 10 kbar and 20 K; the student alone would blow the crystal up."""
    teacher, pressure = Springs(cold()), 10000.0

    def enthalpy(length: float) -> float:
        atoms = cold(length).to_atoms()
        atoms.calc = teacher
        return float(atoms.get_potential_energy() + pressure * BAR * atoms.get_volume())

    rest = minimize_scalar(enthalpy, bounds=(0.9 * LENGTH, LENGTH), method="bounded").x
    expected = rest**3 / np.sqrt(2)  # Å^3 per atom
    assert 0.005 < 1 - (rest / LENGTH) ** 3 < 0.05
    settings = corrected(
        "npt", 3000, 3, interval=6, timestep=2.0, temperature=20.0, pressure=pressure
    )
    run = run_md(engine, model, cold(), settings, teacher=teacher)
    volume = run.volume[200:] / 32
    assert volume.mean() == pytest.approx(expected, rel=0.001)
    assert run.pressure is not None
    error = block_error(run.pressure[200:])
    assert run.pressure[200:].mean() == pytest.approx(pressure, abs=4 * error + 50)


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_teacher_that_fails_ends_the_run_with_what_was_recorded(engine, model) -> None:
    with pytest.raises(RunStoppedError, match="no convergence after 250") as stopped:
        run_md(engine, model, crystal(), corrected(steps=40), teacher=FailsAt(6))
    text = str(stopped.value)
    assert "\n" not in text
    assert "step 20" in text
    assert "LAMMPS" not in text  # nor a line of its source
    assert "OpenMM" not in text
    trajectory = stopped.value.trajectory
    assert [f.info["step"] for f in trajectory.frames] == [0, 4, 8, 12, 16]
    assert trajectory.state.step == 16


def test_a_teacher_that_fails_at_once(engine, model) -> None:
    with pytest.raises(InputError, match="no convergence after 250"):
        run_md(engine, model, crystal(), corrected(steps=40), teacher=FailsAt(1))


def test_ctrl_c_in_the_teacher_keeps_the_records(engine, organic) -> None:
    from mlff_distiller.dynamics import RunInterrupted

    class Interrupted(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            super().calculate(*args, **kwargs)

    settings = corrected(steps=40, every=2, timestep=0.25)
    with pytest.raises(RunInterrupted) as stopped:
        run_md(engine, organic, small_molecule(), settings, teacher=Interrupted())
    assert len(stopped.value.trajectory.frames) >= 2


def test_elements_that_the_teacher_lacks(engine, model) -> None:
    with pytest.raises(InputError, match="emt does not know Si"):
        run_md(engine, model, crystal(), corrected(correct_with="emt"))


# -- going on --------------------------------------------------------------------------------------


def test_going_on_is_one_trajectory(engine, model) -> None:
    whole = run_md(engine, model, crystal(), corrected(steps=80))
    first = run_md(engine, model, crystal(), corrected(steps=40))
    second = run_md(engine, model, crystal(), corrected(steps=40), resume=first.state)
    assert [f.info["step"] for f in second.frames][::5] == [40, 60, 80]
    np.testing.assert_allclose(second.total_energy, whole.total_energy[10:], atol=1e-8)
    np.testing.assert_allclose(second.frames[-1].momenta, whole.frames[-1].momenta, atol=1e-7)


def test_held_atoms_stay(engine, model) -> None:
    start = crystal()
    fixed = np.zeros((8, 3), dtype=bool)
    fixed[[0, 5]] = True
    start = replace(start, fixed=fixed)
    run = run_md(engine, model, start, corrected(steps=40))
    assert np.abs(moved(run)[:, fixed.all(axis=1)]).max() < 1e-9
    assert np.abs(run.frames[-1].forces[0]).max() > 1e-3
