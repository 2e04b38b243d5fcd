"""Mixed ML/MM through OpenMM-ML: cases 16-20, over backend × platform."""

import copy
import inspect

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")
openmmml = pytest.importorskip("openmmml")

from openmm import app, unit  # noqa: E402
from support.arbiter import direct  # noqa: E402
from support.backends import OPENMM_BACKENDS, PLATFORMS  # noqa: E402
from support.openmm import EV, openmm_context, openmm_results, openmm_system, topology_of  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import ethanol, water  # noqa: E402

from mlff_distiller.errors import InputError  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import painn_force  # noqa: E402

pytestmark = [
    pytest.mark.parametrize("backend", OPENMM_BACKENDS),
    pytest.mark.parametrize("platform", PLATFORMS),
]

ML_MOLECULES = (2, 11)
ML_ATOMS = [3 * m + k for m in ML_MOLECULES for k in range(3)]


@pytest.fixture(scope="module")
def student():
    return make_student([1, 6, 8])


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


@pytest.fixture(scope="module")
def waters():
    """ASE atoms, topology and flexible-water force field of a small periodic box."""
    atoms = water(4)
    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(len(atoms) // 3):
        residue = topology.addResidue("HOH", chain)
        oxygen = topology.addAtom("O", app.element.oxygen, residue)
        for name in ("H1", "H2"):
            topology.addBond(oxygen, topology.addAtom(name, app.element.hydrogen, residue))
    topology.setPeriodicBoxVectors(atoms.cell.array / 10 * unit.nanometer)
    return atoms, topology


def mm_system(topology, rigid=True):
    return app.ForceField("amber14/tip3p.xml").createSystem(
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.6 * unit.nanometer,
        rigidWater=rigid,
        constraints=app.HBonds if rigid else None,
    )


def mixed(topology, system, model, backend, atoms=ML_ATOMS, **keywords):
    potential = openmmml.MLPotential("painn", modelPath=str(model), precision="double")
    return potential.createMixedSystem(topology, system, atoms, backend=backend, **keywords)


def energy_of(system, positions, platform):
    return openmm_results(openmm_context(system, positions, platform))[0]


def test_case_16_only_constraints_within_the_ml_region_go(waters, model, backend, platform):
    atoms, topology = waters
    system = mm_system(topology)
    before = openmm.XmlSerializer.serialize(system)
    result = mixed(topology, system, model, backend)
    assert openmm.XmlSerializer.serialize(system) == before
    kept = {
        tuple(sorted(result.getConstraintParameters(i)[:2]))
        for i in range(result.getNumConstraints())
    }
    all_pairs = {(3 * m + a, 3 * m + b) for m in range(64) for a, b in ((0, 1), (0, 2), (1, 2))}
    ml_pairs = {pair for pair in all_pairs if pair[0] // 3 in ML_MOLECULES}
    assert kept == all_pairs - ml_pairs
    context = openmm_context(result, atoms.positions, platform)
    assert len(context.getMolecules()) == 64


def test_case_16b_energy_is_ml_plus_the_rest(student, waters, model, backend, platform):
    atoms, topology = waters
    result = mixed(topology, mm_system(topology, rigid=False), model, backend, forceGroup=7)
    context = openmm_context(result, atoms.positions, platform)
    expected, forces, _ = direct(student, atoms[ML_ATOMS])
    got, got_forces = openmm_results(context, groups={7})
    assert got == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(got_forces[ML_ATOMS], forces, atol=1e-6)
    others = np.setdiff1d(np.arange(len(atoms)), ML_ATOMS)
    assert np.all(got_forces[others] == 0)


def test_case_17_interpolation(waters, model, backend, platform):
    atoms, topology = waters
    system = mm_system(topology, rigid=False)
    pure = energy_of(mixed(topology, system, model, backend), atoms.positions, platform)
    classical = energy_of(system, atoms.positions, platform)
    result = mixed(topology, system, model, backend, interpolate=True)
    context = openmm_context(result, atoms.positions, platform)
    energies = {}
    for value in (1.0, 0.5, 0.0):
        context.setParameter("lambda_interpolate", value)
        energies[value] = openmm_results(context)[0]
    assert energies[1.0] == pytest.approx(pure, abs=1e-4)
    assert energies[0.0] == pytest.approx(classical, abs=0.5 / EV)  # PME, see OpenMM-ML
    assert energies[0.5] == pytest.approx((energies[0.0] + energies[1.0]) / 2, abs=1e-4)
    assert abs(energies[1.0] - energies[0.0]) > 1.0


def test_case_18_a_generator_names_the_atoms(model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)
    chosen = [0, 3, 4, 5]
    energies = []
    for indices in (chosen, (i for i in chosen), np.array(chosen), range(0, 6, 1)):
        force = painn_force(topology, model, indices, backend=backend, precision="double")
        energies.append(energy_of(openmm_system(topology, force), atoms.positions, platform))
    assert energies[0] == energies[1] == energies[2]
    assert energies[3] != energies[0]


@pytest.mark.skipif(
    "returnInfo" not in inspect.signature(openmmml.MLPotential.createMixedSystem).parameters,
    reason="link atoms came with OpenMM-ML 1.8",
)
def test_case_19_link_atom(waters, model, backend, platform):
    # The cut goes through an O-H bond: O and one H are ML, the other H is MM.
    atoms, topology = waters
    system = mm_system(topology, rigid=False)
    info = mixed(topology, system, model, backend, atoms=[6, 7], returnInfo=True, forceGroup=5)
    context = openmm.Context(
        info["system"], openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform(platform)
    )
    assert info["system"].getNumParticles() == len(atoms) + 1

    def set_positions(positions):
        context.setPositions(np.vstack([positions, np.zeros(3)]) / 10)
        context.computeVirtualSites()

    set_positions(atoms.positions)
    _, forces = openmm_results(context, groups={5})
    assert np.abs(forces[8]).max() > 1e-3  # the boundary atom feels the model through the cap
    for k in range(3):
        energies = []
        for sign in (1, -1):
            moved = atoms.positions.copy()
            moved[8, k] += sign * 2e-4
            set_positions(moved)
            energies.append(openmm_results(context, groups={5})[0])
        slope = (energies[0] - energies[1]) / 4e-4
        assert forces[8, k] == pytest.approx(-slope, abs=1e-5 * np.abs(forces).max())


def test_case_20_unordered_subset(student, model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)
    chosen = [7, 2, 0, 5]
    force = painn_force(topology, model, chosen, backend=backend, precision="double")
    context = openmm_context(openmm_system(topology, force), atoms.positions, platform)
    energy, forces = openmm_results(context)
    expected, expected_forces, _ = direct(student, atoms[chosen])
    assert energy == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(forces[chosen], expected_forces, atol=1e-7)
    assert np.all(np.delete(forces, chosen, axis=0) == 0)


def test_pure_system_from_a_potential(student, model, backend, platform):
    atoms = ethanol()
    potential = openmmml.MLPotential("painn", modelPath=str(model))
    system = potential.createSystem(topology_of(atoms), backend=backend, precision="double")
    assert energy_of(system, atoms.positions, platform) == pytest.approx(
        direct(student, atoms)[0], rel=1e-9
    )


def test_mm_box_under_a_topology_without_one(student, waters, model, backend, platform):
    atoms, topology = waters
    system = mm_system(topology, rigid=False)
    boxless = copy.deepcopy(topology)
    boxless.setPeriodicBoxVectors(None)
    # One molecule across the boundary: only a periodic force sees it whole.
    positions = atoms.positions.copy()
    positions[7] += atoms.cell.array[0]
    result = mixed(boxless, system, model, backend, atoms=[6, 7, 8], forceGroup=3)
    context = openmm_context(result, positions, platform)
    assert openmm_results(context, groups={3})[0] == pytest.approx(
        direct(student, atoms[[6, 7, 8]])[0], rel=1e-8
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "needs a model"),
        ({"modelPath": "nowhere.pt"}, "no such model file: nowhere.pt"),
        ({"modelPath": "student.pt", "presision": "double"}, "did you mean 'precision'"),
    ],
)
def test_bad_potentials(model, monkeypatch, keywords, message, backend, platform):
    monkeypatch.chdir(model.parent)
    with pytest.raises(InputError, match=message):
        openmmml.MLPotential("painn", **keywords)
