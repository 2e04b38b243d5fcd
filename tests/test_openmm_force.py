"""painn_force over backend × platform: cases 1-15, energies, boxes and barostats."""

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")

from ase import Atoms  # noqa: E402
from openmm import unit  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402
from support.arbiter import direct  # noqa: E402
from support.backends import OPENMM_BACKENDS, PLATFORMS  # noqa: E402
from support.openmm import EV, openmm_context, openmm_results, openmm_system, topology_of  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import bonds_of, ethanol, silicon, water  # noqa: E402

from mlff_distiller.calculator import StudentCalculator  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import keep_molecules_whole, painn_force  # noqa: E402

pytestmark = [
    pytest.mark.parametrize("backend", OPENMM_BACKENDS),
    pytest.mark.parametrize("platform", PLATFORMS),
]


@pytest.fixture(scope="module")
def student():
    return make_student([1, 6, 8, 14])


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


def make_context(atoms, model, backend, platform, precision="double", **keywords):
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend, precision=precision, **keywords)
    return openmm_context(openmm_system(topology, force), atoms.positions, platform)


def evaluate(atoms, model, backend, platform, **keywords):
    return openmm_results(make_context(atoms, model, backend, platform, **keywords))


@pytest.mark.parametrize("system", [ethanol, silicon, water, lambda: Atoms("O")])
def test_case_01_equals_the_direct_model(student, model, backend, platform, system):
    atoms = system()
    energy, forces, _ = direct(student, atoms)
    for precision, tolerance in (("double", 1e-9), ("single", 1e-6)):
        got, got_forces = evaluate(atoms, model, backend, platform, precision=precision)
        assert got == pytest.approx(energy, rel=tolerance)
        atol = 1e-7 if precision == "double" else 1e-4
        np.testing.assert_allclose(got_forces, forces, atol=atol)


@pytest.mark.parametrize("system", [ethanol, silicon])
def test_case_02_forces_are_central_differences(model, backend, platform, system):
    atoms = system()
    context = make_context(atoms, model, backend, platform)
    _, forces = openmm_results(context)
    step = 2e-4
    for i, k in [(0, 0), (3, 1), (len(atoms) - 1, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.positions.copy()
            moved[i, k] += sign * step
            context.setPositions(moved / 10)
            energies.append(openmm_results(context)[0])
        slope = (energies[0] - energies[1]) / (2 * step)
        assert -slope == pytest.approx(forces[i, k], abs=1e-5 * np.abs(forces).max())


def test_case_03_translation(model, backend, platform):
    atoms = ethanol()
    energy, forces = evaluate(atoms, model, backend, platform)
    atoms.translate([3.3, -1.7, 12.1])
    moved_energy, moved_forces = evaluate(atoms, model, backend, platform)
    assert moved_energy == pytest.approx(energy, rel=1e-10)
    np.testing.assert_allclose(moved_forces, forces, atol=1e-7)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-7)


def test_case_04_rotation(model, backend, platform):
    atoms = ethanol()
    energy, forces = evaluate(atoms, model, backend, platform)
    rotation = Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix()
    for matrix in (rotation, rotation @ np.diag([1, 1, -1])):
        turned = atoms.copy()
        turned.positions = atoms.positions @ matrix.T
        turned_energy, turned_forces = evaluate(turned, model, backend, platform)
        assert turned_energy == pytest.approx(energy, rel=1e-10)
        np.testing.assert_allclose(turned_forces, forces @ matrix.T, atol=1e-7)


def test_case_05_permutation(model, backend, platform):
    atoms = ethanol()
    energy, forces = evaluate(atoms, model, backend, platform)
    order = np.random.default_rng(0).permutation(len(atoms))
    other_energy, other_forces = evaluate(atoms[order], model, backend, platform)
    assert other_energy == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(other_forces, forces[order], atol=1e-8)


def test_case_06_triclinic_box_equals_ase(model, backend, platform):
    atoms = silicon()
    energy, forces = evaluate(atoms, model, backend, platform)
    atoms.calc = StudentCalculator(model, dtype="float64", backend="portable")
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7)


def test_case_07_atoms_three_boxes_away(model, backend, platform):
    atoms = silicon()
    energy, forces = evaluate(atoms, model, backend, platform)
    shifts = np.random.default_rng(1).integers(-3, 4, (len(atoms), 3))
    atoms.positions += shifts @ atoms.cell.array
    moved_energy, moved_forces = evaluate(atoms, model, backend, platform)
    assert moved_energy == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(moved_forces, forces, atol=1e-6)


def test_case_08_box_below_twice_the_cutoff(student, model, backend, platform):
    cell = [[2.5, 0, 0], [0.3, 2.6, 0], [-0.2, 0.4, 2.4]]
    atoms = Atoms("SiC", [[0, 0, 0], [1.2, 1.1, 1.3]], cell=cell, pbc=True)
    energy, forces, _ = direct(student, atoms)
    isolated = direct(student, Atoms("SiC", atoms.positions))[0]
    assert abs(energy - isolated) > 0.1  # the images matter
    got, got_forces = evaluate(atoms, model, backend, platform)
    assert got == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(got_forces, forces, atol=1e-6)


def test_case_09_supercell(model, backend, platform):
    atoms = silicon((1, 1, 1))
    energy, forces = evaluate(atoms, model, backend, platform)
    big_energy, big_forces = evaluate(atoms * (2, 2, 2), model, backend, platform)
    assert big_energy == pytest.approx(8 * energy, rel=1e-10)
    np.testing.assert_allclose(big_forces, np.tile(forces, (8, 1)), atol=1e-7)


def test_case_10_dimer_at_the_cutoff(model, backend, platform):
    apart = evaluate(Atoms("CO", [[0] * 3, [0, 0, 30.0]]), model, backend, platform)[0]
    beyond, forces = evaluate(Atoms("CO", [[0] * 3, [0, 0, 4.0001]]), model, backend, platform)
    assert beyond == pytest.approx(apart, rel=1e-12)
    assert np.all(forces == 0)
    inside = evaluate(Atoms("CO", [[0] * 3, [0, 0, 3.999]]), model, backend, platform)[0]
    assert abs(inside - apart) < 1e-4
    near = evaluate(Atoms("CO", [[0] * 3, [0, 0, 2.5]]), model, backend, platform)[0]
    assert abs(near - apart) > 1e-3


def test_case_11_new_box_vectors(student, model, backend, platform):
    atoms = silicon()
    context = make_context(atoms, model, backend, platform)
    before = openmm_results(context)[0]
    atoms.set_cell(atoms.cell.array @ np.diag([1.05, 0.97, 1.02]))
    context.setPeriodicBoxVectors(*(atoms.cell.array / 10))
    energy, forces, _ = direct(student, atoms)
    got, got_forces = openmm_results(context)
    assert abs(energy - before) > 1e-2
    assert got == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(got_forces, forces, atol=1e-6)


def water_system(model, backend, barostat=None, per_side=3):
    atoms = water(per_side)
    topology = topology_of(atoms, bonds_of(atoms))
    force = painn_force(topology, model, backend=backend, precision="double")
    system = openmm_system(topology, force)
    if backend != "native":
        system.addForce(keep_molecules_whole(topology, periodic=True))
    if barostat is not None:
        system.addForce(barostat)
    return atoms, system


def test_case_12_barostat_leaves_a_consistent_energy(student, model, backend, platform):
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(3)
    atoms, system = water_system(model, backend, barostat)
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.0002)
    integrator.setRandomNumberSeed(1)
    context = openmm_context(system, atoms.positions, platform, integrator)
    integrator.step(20)
    state = context.getState(energy=True, positions=True)
    assert state.getPeriodicBoxVolume()._value != pytest.approx(atoms.get_volume() / 1000, rel=1e-6)
    atoms.positions = state.getPositions(asNumpy=True)._value * 10
    atoms.set_cell(state.getPeriodicBoxVectors(asNumpy=True)._value * 10)
    assert state.getPotentialEnergy()._value / EV == pytest.approx(
        direct(student, atoms)[0], rel=1e-8
    )


def test_case_13_molecules_stay_whole(model, backend, platform):
    atoms, system = water_system(model, backend)
    context = openmm_context(system, atoms.positions, platform)
    molecules = context.getMolecules()
    assert len(molecules) == len(atoms) // 3
    assert sorted(molecules[0]) == [0, 1, 2]


def test_case_14_pressure(student, model, backend, platform):
    atoms = silicon()
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 10)
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend, precision="double")
    system = openmm_system(topology, force, barostat)
    context = openmm_context(system, atoms.positions, platform)
    context.setVelocitiesToTemperature(300, 5)
    pressure = barostat.computeCurrentPressure(context).value_in_unit(unit.bar)
    kinetic = context.getState(energy=True).getKineticEnergy()._value
    strain_gradient = direct(student, atoms)[2]
    # P = (2 K / 3 - tr(dE/dε) / 3) / V; without bonds each atom is a molecule.
    energy = 2 * kinetic / 3 - np.trace(strain_gradient) * EV / 3
    in_bar = 1e25 / 6.02214076e23  # kJ/mol/nm^3
    expected = energy / (atoms.get_volume() / 1000) * in_bar
    # OpenMM differentiates by a volume change of 0.1%.
    assert pressure == pytest.approx(expected, rel=1e-3)
    assert abs(np.trace(strain_gradient) * EV / 3) > 0.1 * kinetic


def test_case_15_barostat_without_a_box(model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend)
    assert not force.usesPeriodicBoundaryConditions()
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin)
    system = openmm_system(topology, force, barostat)
    with pytest.raises(openmm.OpenMMException, match="periodic"):
        openmm_context(system, atoms.positions, platform)
