"""Multiple time steps in ASE, against systems whose averages are known and other integrators."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.md.verlet import VelocityVerlet
from support.calculators import Bulk, Sites

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.ase_engine import CentreOfMassAtRest, langevin_barostat
from mlff_distiller.errors import InputError
from mlff_distiller.multistep import Correction, MultipleTimeStep
from mlff_distiller.multistep.interval import choose_every, fastest_period, resonance_warning
from mlff_distiller.teachers import CalculatorTeacher

FS = units.fs
RNG = np.random.default_rng


def chain(number: int = 6, seed: int = 0, temperature: float = 300.0) -> Atoms:
    sites = np.arange(3.0 * number).reshape(number, 3)
    atoms = Atoms(numbers=[29] * number, positions=sites)
    noise = RNG(seed).standard_normal((2, number, 3))
    atoms.positions += 0.15 * noise[0]
    atoms.set_momenta(noise[1] * np.sqrt(atoms.get_masses()[:, None] * units.kB * temperature))
    return atoms


def pair(atoms: Atoms, student: float = 0.7) -> tuple[Sites, Sites]:
    """Teacher and a student that is too soft by a third, and harmonic."""
    sites = np.arange(3.0 * len(atoms)).reshape(-1, 3)
    return Sites(sites, 1.0, q=2.0, c=0.5), Sites(sites, student, c=0.4)


def energies(every: int, timestep: float, steps: int) -> np.ndarray:
    """Total energy of the teacher at outer steps."""
    atoms = chain()
    teacher, atoms.calc = pair(atoms)
    dynamics = MultipleTimeStep(atoms, timestep * FS, teacher, every)
    found: list[float] = []
    dynamics.attach(
        lambda: found.append(dynamics.get_teacher_energy() + atoms.get_kinetic_energy())
    )
    dynamics.run(steps // every)
    return np.array(found)


def test_the_error_of_the_teachers_energy_is_of_second_order() -> None:
    spread = [np.std(energies(every, 0.5, 3200)) for every in (8, 16, 32)]
    assert spread[1] / spread[0] == pytest.approx(4.0, rel=0.1)
    assert spread[2] / spread[1] == pytest.approx(4.0, rel=0.1)
    # It neither drifts nor is it large: kT is 26 meV, and 18 coordinates share the energy.
    assert spread[0] < 1e-3
    longer = energies(32, 0.5, 6400)
    assert abs(longer[:100].mean() - longer[-100:].mean()) < 0.3 * longer.std()


def test_one_inner_step_is_velocity_verlet_of_the_teacher() -> None:
    one, other = chain(), chain()
    teacher, one.calc = pair(one)
    other.calc = pair(other)[0]
    MultipleTimeStep(one, 2.0 * FS, teacher, every=1).run(200)
    VelocityVerlet(other, 2.0 * FS).run(200)
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-12)
    np.testing.assert_allclose(one.get_momenta(), other.get_momenta(), atol=1e-11)


def test_a_perfect_student_needs_no_impulse() -> None:
    one, other = chain(), chain()
    one.calc, other.calc = pair(one)[0], pair(other)[0]
    MultipleTimeStep(one, FS, pair(one)[0], every=10).run(20)
    VelocityVerlet(other, FS).run(200)
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-11)


def test_negated_momenta_lead_back() -> None:
    atoms = chain()
    start = atoms.positions.copy()
    teacher, atoms.calc = pair(atoms)
    dynamics = MultipleTimeStep(atoms, FS, teacher, every=12)
    dynamics.run(60)
    assert np.abs(atoms.positions - start).max() > 0.05
    atoms.set_momenta(-atoms.get_momenta())
    dynamics.run(60)
    np.testing.assert_allclose(atoms.positions, start, atol=1e-9)


def test_calls_of_the_teacher() -> None:
    atoms = chain()
    teacher, atoms.calc = pair(atoms)
    dynamics = MultipleTimeStep(atoms, FS, teacher, every=5)
    dynamics.attach(dynamics.get_teacher_energy)
    dynamics.run(10)
    dynamics.run(10)
    assert teacher.calls == dynamics.correction.calls == 21
    assert atoms.calc.calls == 101
    assert dynamics.get_time() == pytest.approx(100 * FS)
    atoms.positions += 0.01  # moved by hand: what was known of the old place does not count
    dynamics.run(1)
    assert teacher.calls == 23


@pytest.mark.parametrize("student", [0.6, 1.7])
def test_positions_are_distributed_as_the_teacher_says(student: float) -> None:
    """<u²> is kT/k in a harmonic well; the student's own would be 67 % too large, 41 % too small."""
    atoms = chain(40)
    sites = np.arange(120.0).reshape(40, 3)
    teacher, atoms.calc = Sites(sites, 1.0), Sites(sites, student)
    dynamics = MultipleTimeStep(
        atoms, 4.0 * FS, teacher, 4, temperature_K=400.0, friction=0.02 / FS, rng=RNG(3)
    )
    squares, heat = [], []

    def record() -> None:
        squares.append(((atoms.positions - sites) ** 2).mean())
        heat.append(atoms.get_temperature())

    dynamics.run(60)
    dynamics.attach(record)
    dynamics.run(1600)
    expected = units.kB * 400.0
    blocks = np.array(squares[:1600]).reshape(20, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(20)
    assert error < 0.02 * expected
    assert abs(blocks.mean() - expected) < 4.0 * error
    assert abs(blocks.mean() - expected / student) > 10.0 * error
    assert np.mean(heat) == pytest.approx(400.0, rel=0.02)


def test_volumes_are_distributed_as_the_teacher_says() -> None:
    """N atoms without forces: P(V) = V^N exp(-(E(V) + PV) / kT), of which all moments are known."""
    number, temperature, k = 16, 600.0, 4e-4
    atoms = Atoms("Cu16", positions=RNG(0).random((16, 3)) * 6.0, cell=[6, 6, 6], pbc=True)
    atoms.set_momenta(chain(number, temperature=temperature).get_momenta())
    atoms.calc = Bulk(190.0, 1.5 * k)
    barostat = langevin_barostat(
        atoms, 4.0 * FS, temperature=temperature, pressure=0.0, period=1000.0 * FS, rng=RNG(1)
    )
    dynamics = MultipleTimeStep(atoms, 4.0 * FS, Bulk(220.0, k), 3, barostat=barostat)
    volumes: list[float] = []
    dynamics.run(100)
    dynamics.attach(lambda: volumes.append(atoms.get_volume()))
    dynamics.run(2500)
    blocks = np.array(volumes[:2500]).reshape(20, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(20)

    def mean_volume(volume: float, stiffness: float) -> float:
        v = np.linspace(100.0, 400.0, 20001)
        log = number * np.log(v) - 0.5 * stiffness * (v - volume) ** 2 / (units.kB * temperature)
        weights = np.exp(log - log.max())
        return float((weights * v).sum() / weights.sum())

    assert abs(blocks.mean() - mean_volume(220.0, k)) < 4.0 * error
    assert abs(blocks.mean() - mean_volume(190.0, 1.5 * k)) > 10.0 * error


def test_held_atoms_and_the_centre_of_mass() -> None:
    atoms = chain()
    teacher, atoms.calc = pair(atoms)
    start = atoms.positions.copy()
    atoms.set_constraint([FixAtoms([1]), FixCartesian(3, [True, False, False])])
    MultipleTimeStep(atoms, FS, teacher, 4, temperature_K=300.0, rng=RNG(0)).run(50)
    moved = np.abs(atoms.positions - start) > 1e-3
    assert not moved[1].any()
    assert moved[3].tolist() == [False, True, True]
    assert moved[[0, 2, 4, 5]].all()

    atoms = chain()
    teacher, atoms.calc = pair(atoms)
    atoms.set_constraint(CentreOfMassAtRest(np.array([True, True, False])))
    start = atoms.get_center_of_mass()
    MultipleTimeStep(atoms, FS, teacher, 4, temperature_K=300.0, rng=RNG(0)).run(50)
    moved = np.abs(atoms.get_center_of_mass() - start)
    assert moved[:2].max() < 1e-12
    assert moved[2] > 1e-3


def test_what_is_refused() -> None:
    atoms = chain()
    teacher, student = pair(atoms)
    with pytest.raises(InputError, match=r"got atoms without one; set atoms\.calc"):
        MultipleTimeStep(atoms, FS, teacher)
    atoms.calc = student
    for every in (0, 2.5, -1):
        with pytest.raises(InputError, match="every must be a positive integer, got"):
            MultipleTimeStep(atoms, FS, teacher, every)
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="got FixBondLengths; remove"):
        MultipleTimeStep(atoms, FS, teacher)
    gas = Atoms("Cu2", [[0, 0, 0], [2, 2, 2]], cell=[5, 5, 5], pbc=True, calculator=Bulk(125, 1e-3))
    barostat = langevin_barostat(gas, FS, temperature=300, pressure=0, period=100 * FS, rng=RNG(0))
    with pytest.raises(InputError, match="barostat's time step"):
        MultipleTimeStep(gas, 2 * FS, Bulk(125, 1e-3), barostat=barostat)
    no_stress = Sites(gas.positions, 1.0)
    with pytest.raises(InputError, match="constant pressure needs a stress, Sites gives none"):
        MultipleTimeStep(gas, FS, no_stress, barostat=barostat).run(1)


def test_a_failing_teacher_is_named_with_its_step() -> None:
    atoms = chain()
    teacher, atoms.calc = pair(atoms)
    teacher.fail_at = 4
    dynamics = MultipleTimeStep(atoms, FS, teacher, every=5, first_step=100)
    with pytest.raises(InputError, match=r"the teacher failed at step 115: Sites .* does not conv"):
        dynamics.run(10)
    assert dynamics.nsteps == 2


# -- how often -------------------------------------------------------------------------------------


def test_the_fastest_period_is_that_of_the_whole_hessian() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.numbers[3] = 13  # aluminium: a light atom vibrates fastest
    atoms.rattle(0.03, seed=1)
    atoms.calc = EMT()
    hessian = np.zeros((48, 48))
    for i in range(48):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.flat[i] += sign * 1e-3
            moved.calc = EMT()
            ends.append(moved.get_forces().ravel())
        hessian[i] = (ends[1] - ends[0]) / 2e-3
    roots = np.repeat(np.sqrt(atoms.get_masses()), 3)
    largest = np.linalg.eigvalsh(hessian / roots / roots[:, None])[-1]
    expected = 2 * np.pi / np.sqrt(largest) / FS
    structure = Structure.from_atoms(atoms, labels=False)
    found = fastest_period(CalculatorTeacher("emt", EMT()), structure)
    assert found == pytest.approx(expected, rel=0.01)


def test_atoms_that_feel_nothing_have_no_fastest_period() -> None:
    structure = Structure([29, 29], [[0, 0, 0], [20, 0, 0]])
    calculator = Sites(structure.positions, 0.0)
    assert fastest_period(CalculatorTeacher("none", calculator), structure) == float("inf")
    held = Structure([29, 29], [[0, 0, 0], [20, 0, 0]], fixed=np.array([[True] * 3, [False] * 3]))
    calculator = Sites(held.positions, 1.0, c=10.0)
    period = 2 * np.pi * np.sqrt(held.to_atoms().get_masses()[0] / 11.0) / FS
    found = fastest_period(CalculatorTeacher("held", calculator), held)
    assert found == pytest.approx(period, rel=1e-6)


def chosen(student: float, timestep: float, **options):  # type: ignore[no-untyped-def]
    atoms = chain(20)
    sites = np.arange(60.0).reshape(20, 3)
    teacher = CalculatorTeacher("springs", Sites(sites, 1.0, q=0.5, c=0.5))
    atoms.calc = Sites(sites, student, q=0.5, c=0.5)
    correction = Correction(teacher, CalculatorTeacher("student", atoms.calc))
    period = fastest_period(correction.student, Structure.from_atoms(atoms, labels=False))
    keywords = {"temperature": 300.0, "period": period, "rng": RNG(0), **options}
    return choose_every(atoms, correction, timestep, **keywords), period


def test_good_students_are_corrected_seldom() -> None:
    good, _ = chosen(0.99, 2.0)
    assert good.every == 16
    assert "the most that auto takes" in good.text
    assert good.calls <= 40
    fair, _ = chosen(0.8, 4.0)
    bad, _ = chosen(0.2, 8.0)
    assert bad.every < fair.every <= 16
    assert "limited by energy" in bad.text
    # What is expected of the energy is what a run shows.
    for choice in (good, fair, bad):
        assert choice.found is not None
        assert 0.33 < choice.found / choice.error < 3.0


def test_resonance_bounds_even_a_perfect_student() -> None:
    found, period = chosen(1.0, 8.0)
    assert found.every == int(period / 4 / 8.0)
    assert "limited by resonance" in found.text
    found, _ = chosen(1.0, 8.0, allowed=[1, 2, 5, 10])
    assert found.every in (2, 5, 10)
    assert found.every <= period / 4 / 8.0


def test_the_line_about_resonance() -> None:
    assert resonance_warning(3, 1.0, 10.0, hydrogen=True) is None
    line = resonance_warning(4, 1.0, 10.0, hydrogen=True)
    assert line is not None
    assert "4 fs" in line
    assert "limit 3.3 fs" in line
    assert "use --every 3 or --hydrogen-mass 3" in line
    line = resonance_warning(2, 4.0, 10.0, hydrogen=False)
    assert line is not None
    assert line.endswith("use a --timestep below 3.3")
