"""PainnForce on OpenMM's CUDA platform, by its own kernel: nothing passes through the host.

Here on an emulated platform (tests/cuda_engine/openmm), which puts the particles into other slots and
images in every evaluation; on a card with MLFF_TEST_GPU=1 on OpenMM's own.
"""

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")

from ase import Atoms  # noqa: E402
from openmm import unit  # noqa: E402
from support.backends import needs_openmm_plugin  # noqa: E402
from support.cuda_module import on_the_card, openmm_cuda_platform  # noqa: E402
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import ethanol, silicon, water  # noqa: E402

from mlff_distiller.errors import InputError  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import painn_force  # noqa: E402

pytestmark = needs_openmm_plugin
PRECISIONS = ["single", "mixed", "double"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(make_student([1, 6, 8, 14]), path)
    return path


@pytest.fixture(scope="module")
def platform():
    return openmm_cuda_platform()


def make_force(atoms, model, chosen=None, **keywords):
    keywords = {"backend": "native", "precision": "double", **keywords}
    return painn_force(topology_of(atoms), model, chosen, **keywords)


def context_on(platform, atoms, *forces, precision="double", integrator=None):
    system = openmm_system(topology_of(atoms), *forces)
    integrator = integrator or openmm.VerletIntegrator(0.0005)
    named = openmm.Platform.getPlatform(platform)
    properties = {"Precision": precision} if platform == "CUDA" else {}
    context = openmm.Context(system, integrator, named, properties)
    context.setPositions(atoms.positions / 10)
    return context


def on_the_host(atoms, *forces):
    return openmm_results(
        openmm_context(openmm_system(topology_of(atoms), *forces), atoms.positions)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("system", [ethanol, silicon, water, lambda: Atoms("O")])
def test_equals_the_host_path(model, platform, system, precision):
    atoms = system()
    energy, forces = on_the_host(atoms, make_force(atoms, model))
    context = context_on(
        platform, atoms, make_force(atoms, model, device="cuda"), precision=precision
    )
    for _ in range(3):
        got, got_forces = openmm_results(context)
        if precision == "single":  # positions in nm have 24 bits
            assert got == pytest.approx(energy, rel=1e-6)
            np.testing.assert_allclose(got_forces, forces, atol=1e-4)
        else:
            assert got == pytest.approx(energy, rel=1e-9)
            np.testing.assert_allclose(got_forces, forces, atol=1e-6)


@pytest.mark.parametrize("precision", ["single", "double"])
def test_of_the_network(model, platform, precision):
    atoms = silicon()
    energy, forces = on_the_host(atoms, make_force(atoms, model, precision=precision))
    force = make_force(atoms, model, precision=precision, device="cuda")
    got, got_forces = openmm_results(context_on(platform, atoms, force))
    # In double precision the CPU does without the tables of filters that a GPU always has.
    assert got == pytest.approx(energy, rel=1e-6 if precision == "single" else 1e-9)
    np.testing.assert_allclose(got_forces, forces, atol=1e-4 if precision == "single" else 1e-7)


def springs(atoms):
    force = openmm.HarmonicBondForce()
    for i in range(len(atoms) - 1):
        force.addBond(i, i + 1, 0.125, 1024.0)  # CUDA has these numbers in float32
    force.setForceGroup(1)
    return force


def test_beside_other_forces_of_other_groups(model, platform):
    atoms, chosen = water(), [5, 0, 4, 3, 11]
    whole = on_the_host(atoms, make_force(atoms, model, chosen), springs(atoms))
    force = make_force(atoms, model, chosen, device="cuda")
    context = context_on(platform, atoms, force, springs(atoms))
    parts = [openmm_results(context, groups={group}) for group in (0, 1)]
    for got in (openmm_results(context), [a + b for a, b in zip(*parts, strict=True)]):
        assert got[0] == pytest.approx(whole[0], rel=1e-10)
        np.testing.assert_allclose(got[1], whole[1], atol=1e-8)
    others = np.setdiff1d(np.arange(len(atoms)), chosen)
    assert not parts[0][1][others].any()


def test_two_models_in_one_context(model, platform):
    atoms = ethanol()
    forces = [make_force(atoms, model, part) for part in (None, [0, 1, 2])]
    whole = on_the_host(atoms, *forces)
    forces = [make_force(atoms, model, part, device="cuda") for part in (None, [0, 1, 2])]
    got = openmm_results(context_on(platform, atoms, *forces))
    assert got[0] == pytest.approx(whole[0], rel=1e-10)
    np.testing.assert_allclose(got[1], whole[1], atol=1e-8)


def test_dynamics_follow_the_same_path(model, platform):
    ends = []
    for name, device in (("Reference", "cpu"), (platform, "cuda")):
        atoms = silicon()
        integrator = openmm.VerletIntegrator(0.001)
        force = make_force(atoms, model, device=device)
        context = context_on(name, atoms, force, integrator=integrator)
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(30)
        state = context.getState(positions=True, energy=True)
        ends.append((state.getPositions(asNumpy=True)._value, state.getPotentialEnergy()._value))
    np.testing.assert_allclose(ends[1][0], ends[0][0], atol=1e-8)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-9)


def test_boxes_and_barostats(model, platform):
    atoms = water()
    context = context_on(platform, atoms, make_force(atoms, model, device="cuda"))
    for stretch in (1.02, 0.97):
        cell = atoms.cell.array * stretch
        context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in cell / 10))
        context.setPositions(atoms.positions * stretch / 10)
        scaled = atoms.copy()
        scaled.set_cell(cell, scale_atoms=True)
        want = on_the_host(scaled, make_force(scaled, model))
        got = openmm_results(context)
        assert got[0] == pytest.approx(want[0], rel=1e-9)
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300, 1)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    force = make_force(atoms, model, device="cuda")
    context = context_on(platform, atoms, force, barostat, integrator=integrator)
    integrator.step(10)  # energies without forces, then the box goes back
    state = context.getState(positions=True, energy=True)
    moved = atoms.copy()
    moved.set_cell(state.getPeriodicBoxVectors(asNumpy=True)._value * 10)
    moved.positions = state.getPositions(asNumpy=True)._value * 10
    energy = on_the_host(moved, make_force(moved, model))[0]
    assert openmm_results(context)[0] == pytest.approx(energy, rel=1e-9)


def test_minimizer(model, platform):
    atoms = ethanol()
    context = context_on(platform, atoms, make_force(atoms, model, device="cuda"))
    before = openmm_results(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=5)
    assert openmm_results(context)[0] < before


def test_positions_that_are_not_finite(model, platform):
    atoms = ethanol()
    context = context_on(platform, atoms, make_force(atoms, model, device="cuda"))
    energy = openmm_results(context)[0]
    bad = atoms.positions / 10
    bad[3, 1] = np.nan
    context.setPositions(bad)
    with pytest.raises(openmm.OpenMMException, match="positions must be finite"):
        openmm_results(context)
    context.setPositions(atoms.positions / 10)
    assert openmm_results(context)[0] == pytest.approx(energy, rel=1e-12)


def test_what_runs_where(model, platform):
    """The host is the fallback of ``auto``; ``cuda`` says why it cannot be."""
    atoms = silicon()
    alone = make_force(atoms, model, periodic=False, device="cuda")
    periodic = openmm.CustomBondForce("0")
    periodic.setUsesPeriodicBoundaryConditions(True)
    with pytest.raises(openmm.OpenMMException, match="periodic images and the model sees none"):
        context_on(platform, atoms, alone, periodic)
    with pytest.raises(openmm.OpenMMException, match="platform Reference has no kernel for it"):
        context_on("Reference", atoms, make_force(atoms, model, device="cuda"))
    periodic = openmm.CustomBondForce("0")
    periodic.setUsesPeriodicBoundaryConditions(True)
    alone = make_force(atoms, model, periodic=False)
    energy, forces = on_the_host(atoms, make_force(atoms, model, periodic=False))
    got = openmm_results(context_on(platform, atoms, alone, periodic))
    assert got[0] == pytest.approx(energy, rel=1e-10)
    np.testing.assert_allclose(got[1], forces, atol=1e-8)
    if not on_the_card():
        named = openmm.Platform.getPlatform(platform)
        system = openmm_system(topology_of(atoms), make_force(atoms, model, device="cuda"))
        with pytest.raises(openmm.OpenMMException, match="the Context has several GPUs, 0,1"):
            openmm.Context(system, openmm.VerletIntegrator(0.001), named, {"DeviceIndex": "0,1"})


def test_the_device_is_saved(model, platform):
    atoms = ethanol()
    for device in ("auto", "cpu", "cuda"):
        text = openmm.XmlSerializer.serialize(make_force(atoms, model, device=device))
        assert f'device="{device}"' in text
        again = openmm.XmlSerializer.deserialize(text)
        assert openmm.XmlSerializer.serialize(again) == text
    old = text.replace(' device="cuda"', "")  # as files of before
    again = openmm.XmlSerializer.serialize(openmm.XmlSerializer.deserialize(old))
    assert 'device="auto"' in again
    with pytest.raises(openmm.OpenMMException, match="device must be auto, cpu or cuda, got 'gpu'"):
        openmm.XmlSerializer.deserialize(text.replace('"cuda"', '"gpu"'))


def test_without_the_kernel_the_gpu_is_refused(model, monkeypatch):
    from mlff_distiller.openmm import native

    monkeypatch.setattr(native, "cuda_kernel_is_there", lambda: False)
    with pytest.raises(
        InputError, match=r"only with OpenMM's CUDA platform .*use backend='python'"
    ):
        make_force(ethanol(), model, device="cuda")
