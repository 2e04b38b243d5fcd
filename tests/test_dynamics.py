"""Molecular dynamics in every engine against mechanics and statistics.

Two students whose physics is known: one that sees nothing (atoms farther apart than its cutoff fly
freely), and one of screened repulsion, whose crystal has a volume for each pressure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from scipy.optimize import brentq
from support.students import make_student

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import MDSettings, Trajectory, run_md
from mlff_distiller.dynamics.freedom import initial_velocities
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

GPA = units.GPa  # eV/Å³
BAR = 1e-4 * GPA


@pytest.fixture(scope="module")
def network() -> StudentForceField:
    """Silicon; the network has a tenth of the forces of its repulsion."""
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 2.6}
    return make_student([14], energies=[-5.0], scale=0.1, **size)


@pytest.fixture(scope="module")
def model(network: StudentForceField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dynamics") / "student.pt"
    export_student(network, path)
    return path


def gas(per_side: int = 5) -> Structure:
    """Atoms beyond each other's sight, in a box that LAMMPS and OpenMM have to rotate."""
    sites = np.indices((per_side,) * 3).reshape(3, -1).T
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    cell = 60.0 * np.array([[1, 0, 0], [0.2, 1, 0], [0.1, -0.3, 1]]) @ turn
    return Structure(np.full(len(sites), 14), (sites + 0.5) / per_side @ cell, cell, [True] * 3)


# -- free flight ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timestep", [0.5, 2.0])
def test_free_atoms_fly_by_their_velocity_times_the_time(engine, model, timestep) -> None:
    """No drift of units: Å/fs of the first velocities, and fs of the time of the records."""
    start = gas(3)
    settings = MDSettings("nve", 30, interval=10, timestep=timestep, temperature=700, seed=5)
    run = run_md(engine, model, start, settings)
    np.testing.assert_allclose(run.time, timestep * np.array([0, 10, 20, 30]))
    velocities = initial_velocities(start, 700, seed=5)
    for frame, time in zip(run.frames, run.time, strict=True):
        moved = frame.positions - start.positions
        moved -= np.round(moved @ np.linalg.inv(start.cell)) @ start.cell
        np.testing.assert_allclose(moved, velocities * time, atol=2e-4)
    np.testing.assert_allclose(run.temperature, 700, rtol=1e-4)
    kinetic = run.total_energy - run.potential_energy
    np.testing.assert_allclose(kinetic, 1.5 * 26 * units.kB * 700, rtol=1e-4)


# -- thermostat ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_recorded_forces_are_the_student_s_alone(engine, model, ensemble) -> None:
    """Free atoms feel nothing, whatever the noise of the thermostat pushes them with."""
    settings = MDSettings(ensemble, 20, interval=10, temperature=700, seed=5)
    run = run_md(engine, model, gas(3), settings)
    for frame in run.frames:
        np.testing.assert_allclose(frame.forces, 0.0, atol=1e-6)


@pytest.mark.parametrize("temperature", [300.0, 900.0])
def test_the_thermostat_holds_the_temperature_within_its_sampling_error(
    engine, model, temperature
) -> None:
    """125 atoms for 4 ps; the kinetic energy of free atoms forgets itself in 50 fs."""
    settings = MDSettings("nvt", 800, interval=10, timestep=5.0, temperature=temperature)
    run = run_md(engine, model, gas(), settings)
    later = run.temperature[20:]  # ten relaxation times after the start
    independent = 3000 / (2 * 50)
    error = temperature * np.sqrt(2 / 375 / independent)  # 1.3 %
    assert abs(later.mean() - temperature) < 4 * error
    # Canonical: single records scatter by sqrt(2 / degrees of freedom), and are not rescaled.
    assert later.std() == pytest.approx(temperature * np.sqrt(2 / 375), rel=0.4)


def test_seeds_change_the_noise_and_repeat_it(engine, model) -> None:
    """3 ps after the start, velocities are made of the noise alone."""
    ends = []
    for seed in (1, 1, 2):
        settings = MDSettings("nvt", 610, interval=610, timestep=5.0, seed=seed, dtype="float64")
        frames = run_md(engine, model, gas(3), settings).frames
        ends.append((frames[-1].positions - frames[0].positions).ravel())
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    assert abs(np.corrcoef(ends[0], ends[2])[0, 1]) < 0.45  # 81 numbers: 4 standard deviations
    starts = [initial_velocities(gas(3), 300.0, seed).ravel() for seed in (1, 2)]
    assert abs(np.corrcoef(starts)[0, 1]) < 0.45


# -- a crystal of repulsion ----------------------------------------------------------------------


def crystal(length: float, repeat: int = 2) -> Structure:
    return Structure.from_atoms(bulk("Si", "fcc", a=length, cubic=True) * ((repeat,) * 3))


def energy_of(student: StudentForceField, length: float) -> float:
    """eV per cubic cell of four atoms, by the Python network."""
    s = crystal(length, 1)
    z, x = torch.tensor(s.atomic_numbers), torch.tensor(s.positions)
    return student(z, x, torch.tensor(s.cell), torch.tensor(s.pbc)).item()


def pressure_of(student: StudentForceField, length: float) -> float:
    """-dE/dV of the crystal at rest, bar, by central differences of the energy."""
    step = 1e-4
    energies = [energy_of(student, length + sign * step) for sign in (1, -1)]
    return -(energies[0] - energies[1]) / (2 * step) / (3 * length**2) / BAR


@pytest.fixture(scope="module")
def squeezed(network: StudentForceField) -> tuple[float, float]:
    """A lattice constant and its pressure in bar, where 3000 bar change the volume by 0.3 %."""
    length = 3.1
    pressure = pressure_of(network, length)
    assert 1e4 < pressure < 1e5
    softer = brentq(lambda a: pressure_of(network, a) - pressure - 3000, 0.9 * length, length)
    assert 0.002 < 1 - (softer / length) ** 3 < 0.004
    return length, pressure


def test_npt_keeps_a_crystal_at_the_volume_of_its_pressure(engine, model, squeezed, network):
    """V(p) is known from the energy alone; at 1 K nothing else pushes."""
    length, pressure = squeezed
    start = crystal(length)
    target = brentq(lambda a: pressure_of(network, a) - pressure - 3000, 0.9 * length, length)
    change = (target / length) ** 3 - 1  # -0.3 % by 3000 bar
    steps = 6000 if engine == "openmm" else 2000  # Monte Carlo has to find its step first
    # A volume scatters by sqrt(kT / (bulk modulus * volume)) = 0.08 %.
    for more, expected in ((0.0, 0.0), (3000.0, change)):
        settings = MDSettings(
            "npt", steps, interval=25, temperature=1.0, pressure=pressure + more, dtype="float64"
        )
        volume = run_md(engine, model, start, settings).volume
        assert volume[0] == pytest.approx(8 * length**3)
        found = volume[len(volume) // 3 :].mean() / volume[0] - 1
        assert found == pytest.approx(expected, abs=0.3 * abs(change))


def test_npt_runs_at_its_temperature(engine, model, squeezed) -> None:
    """The thermostat of NPT is another one than that of NVT."""
    length, pressure = squeezed
    settings = MDSettings(
        "npt",
        4000,
        interval=20,
        temperature=100.0,
        pressure=pressure,
        warmup_steps=300,
        timestep=2.0,
    )
    run = run_md(engine, model, crystal(length, 3), settings)
    assert run.temperature[50:].mean() == pytest.approx(100.0, rel=0.05)


def test_warm_up_fills_the_springs(engine, model, squeezed) -> None:
    """A crystal at rest takes half of the kinetic energy; a thermostat gives it back beforehand."""
    start = crystal(squeezed[0], 3)
    settings = {"interval": 10, "temperature": 100.0, "timestep": 2.0}
    cold = run_md(engine, model, start, MDSettings("nve", 600, **settings))
    np.testing.assert_allclose(cold.frames[0].positions, start.positions, atol=1e-6)
    assert cold.temperature[0] == pytest.approx(100.0, rel=1e-4)
    assert cold.temperature[20:].mean() == pytest.approx(50.0, abs=8.0)
    warm = run_md(engine, model, start, MDSettings("nve", 600, warmup_steps=300, **settings))
    # 108 atoms: the energy of a canonical start scatters by 6 %.
    assert warm.temperature[20:].mean() == pytest.approx(100.0, abs=20.0)
    assert np.abs(warm.frames[0].positions - start.positions).max() > 0.02
    assert warm.time[0] == 0
    assert np.ptp(warm.total_energy) < 0.1 * np.ptp(warm.potential_energy)


# -- precision and other settings ----------------------------------------------------------------


def test_dtype_is_the_arithmetic_of_the_network(engine, model, network, squeezed) -> None:
    """Against the energy of the Python network in float64."""
    atoms = crystal(squeezed[0]).to_atoms()
    atoms.rattle(0.05, seed=1)
    start = Structure.from_atoms(atoms)
    z, x = torch.tensor(start.atomic_numbers), torch.tensor(start.positions)
    exact = network(z, x, torch.tensor(start.cell), torch.tensor(start.pbc)).item()
    errors = {}
    for dtype in ("float64", "float32"):
        settings = MDSettings("nve", 4, interval=4, temperature=300, dtype=dtype)
        run = run_md(engine, model, start, settings)
        errors[dtype] = abs(run.potential_energy[0] - exact)
    assert errors["float64"] < 1e-10
    assert 2e-9 < errors["float32"] < 1e-3


def test_means_are_over_the_second_half() -> None:
    values = np.array([0.0, 0.0, 0.0, 6.0, 12.0, 18.0])
    time = np.arange(6) * 2.0
    run = Trajectory("ase", "nvt", 3, time, values, values, values, values, 1e-3)
    found = run.summary()
    assert found["mean_temperature_k"] == 12.0
    assert found["mean_volume_ang3_per_atom"] == 4.0
    assert found["picoseconds"] == 0.01
    assert found["microseconds_per_atom_step"] == pytest.approx(1e3 / 3)


def test_a_run_that_blew_up_is_an_error_with_its_time(model, monkeypatch) -> None:
    from mlff_distiller.dynamics import ase_engine

    values = np.array([1.0, 2.0, np.nan, np.nan])

    def exploded(path, structure, settings, begin):
        return Trajectory("ase", "nve", 1, np.arange(4) * 5.0, values, values, values, values, 1.0)

    monkeypatch.setattr(ase_engine, "run_md", exploded)
    with pytest.raises(InputError, match="blew up at 10 fs"):
        run_md("ase", model, crystal(3.1, 1), MDSettings("nve", 3))


def test_seed_zero_is_a_seed(engine, model) -> None:
    """OpenMM takes 0 for a wish to draw another one in each run."""
    settings = MDSettings("nvt", 200, interval=200, timestep=5.0, seed=0, dtype="float64")
    ends = [run_md(engine, model, gas(2), settings).frames[-1].positions for _ in range(2)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
