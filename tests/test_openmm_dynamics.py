"""Dynamics with painn_force: cases 31-33."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")
pytest.importorskip("psutil")

from openmm import app, unit  # noqa: E402
from support.arbiter import direct  # noqa: E402
from support.backends import OPENMM_BACKENDS, PLATFORMS  # noqa: E402
from support.openmm import EV, openmm_context, openmm_results, openmm_system, topology_of  # noqa: E402
from support.processes import clean_environment  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import bonds_of, ethanol, silicon  # noqa: E402

from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import painn_force  # noqa: E402
from mlff_distiller.potential import native_is_built  # noqa: E402


def less(backend):
    """Where TorchScript does the work, a hundred times slower: the same, only less of it."""
    return 1 if native_is_built() and backend != "torch" else 10


pytestmark = [
    pytest.mark.parametrize("backend", OPENMM_BACKENDS),
    pytest.mark.parametrize("platform", PLATFORMS),
]


@pytest.fixture(scope="module")
def student():
    # Weak forces and ZBL: random weights that dynamics survives.
    return make_student([1, 6, 8, 14], scale=0.2)


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


def total_energy(context):
    state = context.getState(energy=True)
    return (state.getPotentialEnergy() + state.getKineticEnergy())._value


def test_case_31_energy_is_conserved(model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend, precision="single")
    integrator = openmm.VerletIntegrator(0.0005)
    system = openmm_system(topology, force)
    context = openmm_context(system, atoms.positions, platform, integrator)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)
    context.setVelocitiesToTemperature(300, 2)
    integrator.step(50)
    times, energies = [], []
    for _ in range(20):
        integrator.step(50 // less(backend))
        times.append(context.getTime()._value)
        energies.append(total_energy(context) / EV / len(atoms))
    drift = np.polyfit(times, energies, 1)[0]  # eV/atom/ps over 0.5 ps
    spread = np.std(energies)
    assert abs(drift) < 1e-3, f"drift {drift:.1e} eV/atom/ps"
    assert spread < 1e-3
    kinetic = context.getState(energy=True).getKineticEnergy()._value / EV / len(atoms)
    assert kinetic > 3 * spread  # the atoms do move


MEMORY = """
import gc, sys
import psutil
from support.openmm import openmm_context, openmm_system, topology_of
from support.systems import ethanol
import openmm
from mlff_distiller.openmm import painn_force
model, backend, platform, steps = sys.argv[1:]
atoms = ethanol()
topology = topology_of(atoms)
system = openmm_system(topology, painn_force(topology, model, backend=backend))
integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.0005)
context = openmm_context(system, atoms.positions, platform, integrator)
openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)
for _ in range(3):
    integrator.step(int(steps))
    gc.collect()
    print(psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
def test_case_31b_memory_stays_level(model, backend, platform):
    """In a process of its own, where nothing else takes or gives back memory."""
    steps = 5000 // less(backend) ** 2
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), backend, platform, str(steps)],
        capture_output=True, text=True, env=clean_environment(), cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, before, after = map(int, done.stdout.split())
    assert after - before < 64 * 1024 + 100 * steps  # bytes; pages come in lumps


def test_case_32_two_contexts_in_two_threads(student, model, backend, platform):
    atoms = silicon()
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend, precision="double")
    system = openmm_system(topology, force)
    frames = []
    for seed in range(2):
        frame = atoms.copy()
        frame.rattle(0.05, seed=10 + seed)
        frames.append(frame)
    expected = [direct(student, frame)[0] for frame in frames]
    contexts = [openmm_context(system, frame.positions, platform) for frame in frames]
    results = [[], []]

    def work(index):
        for _ in range(20):
            contexts[index].setPositions(frames[index].positions / 10)
            results[index].append(openmm_results(contexts[index])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert len(results[index]) == 20
        np.testing.assert_allclose(results[index], expected[index], rtol=1e-9)


@pytest.mark.parametrize("system", [ethanol, silicon])
def test_case_33b_minimizer_with_a_reporter(model, backend, platform, system):
    """OpenMM keeps Python's lock then, as it does where it computes a pressure (case 14)."""
    atoms = system()
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend, precision="double")
    context = openmm_context(openmm_system(topology, force), atoms.positions, platform)
    seen = []

    class Reporter(openmm.MinimizationReporter):
        def report(self, iteration, x, grad, args):
            seen.append(args["system energy"])
            return False

    start = openmm_results(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=10, reporter=Reporter())
    assert len(seen) > 2
    assert seen[-1] / EV < start


def test_case_33_minimizer_constraints_and_restart(model, backend, platform, tmp_path):
    atoms = ethanol()
    bonds = bonds_of(atoms)
    topology = topology_of(atoms, bonds)
    potential_args = {"backend": backend, "precision": "double"}
    system = openmm_system(topology, painn_force(topology, model, **potential_args))
    # Hydrogen-mass repartitioning and constrained X-H bonds, as for steps of 2 fs.
    hydrogens = set()
    for i, j in bonds:
        light, heavy = (i, j) if atoms.numbers[i] == 1 else (j, i)
        if atoms.numbers[light] == 1:
            hydrogens.add(light)
            system.addConstraint(light, heavy, 0.109)
            extra = 3.024 - system.getParticleMass(light)._value
            system.setParticleMass(light, 3.024)
            system.setParticleMass(heavy, system.getParticleMass(heavy)._value - extra)
    assert len(hydrogens) == 6

    def simulation():
        integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
        integrator.setRandomNumberSeed(4)
        return app.Simulation(topology, system, integrator, openmm.Platform.getPlatform(platform))

    first = simulation()
    first.context.setPositions(atoms.positions / 10)
    first.context.applyConstraints(1e-6)
    start = openmm_results(first.context)[0]
    first.minimizeEnergy(maxIterations=30)
    assert openmm_results(first.context)[0] < start
    first.context.setVelocitiesToTemperature(300, 3)
    report = io.StringIO()
    first.reporters.append(
        app.StateDataReporter(report, 5, step=True, potentialEnergy=True, temperature=True)
    )
    first.step(10)
    first.saveCheckpoint(str(tmp_path / "state.chk"))
    first.step(20)
    expected = first.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert len(report.getvalue().splitlines()) == 7
    for light, heavy, length in (system.getConstraintParameters(k) for k in range(6)):
        distance = np.linalg.norm(expected[light] - expected[heavy])
        assert distance == pytest.approx(length.value_in_unit(unit.nanometer), rel=1e-4)

    second = simulation()
    second.loadCheckpoint(str(tmp_path / "state.chk"))
    second.step(20)
    got = second.context.getState(positions=True).getPositions(asNumpy=True)._value
    # Neighbour lists of other ages sum in another order.
    np.testing.assert_allclose(got, expected, atol=1e-6)
