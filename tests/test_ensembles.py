"""Every ensemble of every engine against the numbers of statistical mechanics.

Mixed masses and few atoms are where shortcuts show: 3 atoms have 6 degrees of freedom once the
centre of mass rests, and an error of one degree is one of 17 %. Kinetic energy of f degrees at T
has the mean f kT / 2 and the variance f (kT)^2 / 2, whatever the potential. The standard errors of
both allow for correlation by blocks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from support.students import make_student

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import MDSettings, Trajectory, run_md
from mlff_distiller.dynamics.freedom import degrees_of_freedom, temperature_of
from mlff_distiller.elements import pair_name
from mlff_distiller.export import export_student

TEMPERATURE = 100.0
KT = units.kB * TEMPERATURE
#: H, O and Au: masses from 1 to 197.
ELEMENTS = [1, 8, 79]


def exported(path: Path, scale: float) -> Path:
    size = {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 4, "cutoff": 3.0}
    student = make_student(ELEMENTS, energies=[-1.0] * 3, scale=scale, zbl=False, **size)
    names = [pair_name(a, b) for a in ELEMENTS for b in ELEMENTS]
    export_student(student, path, {"coverage": {"closest_pairs": dict.fromkeys(names, 1e-3)}})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft and weak: atoms scatter and pass, so that long steps are exact and collisions many."""
    return exported(tmp_path_factory.mktemp("ensembles") / "soft.pt", 0.02)


@pytest.fixture(scope="module")
def ideal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No forces at all: an ideal gas, whose volume is known for each pressure."""
    return exported(tmp_path_factory.mktemp("ensembles") / "ideal.pt", 0.0)


def crystal(number: int) -> Structure:
    """3 (bcc-like row), 9 or 64 atoms of all three elements, held together by their cell."""
    if number == 3:
        atoms = Atoms(numbers=ELEMENTS, cell=[[2.6, 0, 0], [0.3, 2.6, 0], [0, 0.2, 7.5]], pbc=True)
        atoms.set_scaled_positions([[0, 0, 0], [0.5, 0.5, 1 / 3], [0, 0.5, 2 / 3]])
        return Structure.from_atoms(atoms)
    if number == 9:
        return Structure.from_atoms(crystal(3).to_atoms() * (3, 1, 1))
    atoms = bulk("Au", "fcc", a=4.0, cubic=True) * (4, 2, 2)
    atoms.numbers[:] = np.resize([1, 79, 8, 79], len(atoms))
    return Structure.from_atoms(atoms)


def block_error(values: np.ndarray, blocks: int = 20) -> float:
    """Standard error of the mean of correlated values."""
    means = [block.mean() for block in np.array_split(values, blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(blocks))


def check_canonical(run: Trajectory, degrees: int, skip: int) -> None:
    """Mean and variance of the kinetic energy within five standard errors, none too wide."""
    kinetic = 0.5 * degrees * units.kB * run.temperature[skip:] / KT
    mean, variance = 0.5 * degrees, 0.5 * degrees
    error = block_error(kinetic)
    assert error < 0.07 * mean
    assert abs(kinetic.mean() - mean) < 4.5 * error + 0.005 * mean
    squares = (kinetic - mean) ** 2
    error = block_error(squares)
    assert error < 0.3 * variance
    assert abs(squares.mean() - variance) < 4.5 * error + 0.01 * variance


STEPS = {3: 12000, 9: 8000, 64: 3000}


def check_momenta(run: Trajectory, skip: int) -> None:
    """The centre of mass rests, and every element has its share of the heat: what a rule that is
    wrong in the masses gets wrong."""
    frames = run.frames[skip:]
    numbers = frames[0].atomic_numbers
    momenta = np.array([frame.momenta for frame in frames])
    assert np.abs(momenta.sum(axis=1)).max() < 1e-4 * np.abs(momenta).max()
    masses = frames[0].to_atoms(labels=False).get_masses()
    shares = (momenta**2).sum(axis=2) / (2 * masses) / KT
    for z in np.unique(numbers):
        some = numbers == z
        expected = 1.5 * (some.sum() - masses[some].sum() / masses.sum())
        found = shares[:, some].sum(axis=1)
        assert abs(found.mean() - expected) < 4.5 * block_error(found) + 0.01 * expected


@pytest.mark.parametrize("number", STEPS)
def test_nvt_is_canonical(engine, model, number) -> None:
    start = crystal(number)
    degrees = 3 * number - 3
    assert degrees_of_freedom(start) == degrees
    settings = MDSettings(
        "nvt", STEPS[number], interval=10, timestep=4.0, temperature=TEMPERATURE, threads=1
    )
    run = run_md(engine, model, start, settings)
    check_canonical(run, degrees, skip=50)
    check_momenta(run, skip=50)
    masses = start.to_atoms(labels=False).get_masses()
    moved = run.frames[-1].positions - run.frames[0].positions
    assert np.abs(masses @ moved / masses.sum()).max() < 0.1  # Å; it would wander by more than 1


@pytest.mark.parametrize("number", STEPS)
def test_npt_is_canonical_and_an_ideal_gas_has_its_volume(engine, ideal, number) -> None:
    start = crystal(number)
    box = (60.0 * number) ** (1 / 3) * np.eye(3)
    start = replace(start, positions=start.positions @ np.linalg.solve(start.cell, box), cell=box)
    pressure = KT / 60.0 / (1e5 * units.Pascal)
    settings = MDSettings(
        "npt", STEPS[number] // (2 if engine == "ase" else 1), interval=10, timestep=4.0, temperature=TEMPERATURE,
        pressure=pressure, threads=1,
    )  # fmt: skip
    run = run_md(engine, ideal, start, settings)
    check_canonical(run, 3 * number - 3, skip=50)
    check_momenta(run, skip=50)
    if number == 64:  # of few atoms it fluctuates as much as it is
        volume = run.volume[50:] / number / 60.0
        # (N + 1) kT / p, or N with the centre of mass at rest.
        assert abs(volume.mean() - 1.0) < 0.02 + 4.5 * block_error(volume, 5)
        assert run.volume.std() > 0
        assert run.pressure is not None
        error = block_error(run.pressure[50:] / pressure, 5)
        assert abs(run.pressure[50:].mean() / pressure - 1) < 4.5 * error + 0.02


@pytest.mark.parametrize("number", [3, 9])
def test_nve_with_given_momenta_shows_their_temperature(engine, model, number) -> None:
    start = crystal(number)
    atoms = start.to_atoms()
    rng = np.random.default_rng(3)
    atoms.set_momenta(rng.normal(size=atoms.positions.shape))
    start = Structure.from_atoms(atoms)
    run = run_md(engine, model, start, MDSettings("nve", 4, interval=2, timestep=0.2, threads=1))
    np.testing.assert_allclose(run.frames[0].momenta, atoms.get_momenta(), rtol=1e-6, atol=1e-9)
    assert run.temperature[0] == pytest.approx(temperature_of(atoms.get_momenta(), start))
    total = atoms.get_momenta().sum(axis=0)
    np.testing.assert_allclose(run.frames[-1].momenta.sum(axis=0), total, atol=1e-3)


def test_held_atoms_stay_and_are_not_counted(engine, model) -> None:
    start = crystal(9)
    fixed = np.zeros((9, 3), dtype=bool)
    fixed[[0, 4]] = True
    if engine == "ase":
        fixed[7, 2] = True
    atoms = start.to_atoms()
    start = replace(start, fixed=fixed)
    degrees = int((~fixed).sum())
    assert degrees_of_freedom(start) == degrees
    settings = MDSettings(
        "nvt", 6000, interval=10, timestep=4.0, temperature=TEMPERATURE, threads=1
    )
    run = run_md(engine, model, start, settings)
    for frame in run.frames[::50]:
        assert np.abs(frame.positions - atoms.positions)[fixed].max() < 1e-9
        assert np.abs(frame.momenta[fixed]).max() == 0
        assert np.abs(frame.forces[fixed]).max() > 0  # forces are the student's, as for labels
    check_canonical(run, degrees, skip=50)


def test_one_atom_has_three_degrees_of_freedom(engine, model) -> None:
    start = Structure([8], [[0, 0, 0]], 6.0 * np.eye(3), [True] * 3)
    settings = MDSettings(
        "nvt", 8000, interval=10, timestep=5.0, temperature=TEMPERATURE, threads=1
    )
    check_canonical(run_md(engine, model, start, settings), 3, skip=20)
