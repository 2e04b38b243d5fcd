"""teacher_correction as a force of one's own System: integrators, subsets, barostats, files, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")

from ase import units  # noqa: E402
from ase.calculators.emt import EMT  # noqa: E402
from openmm import unit  # noqa: E402
from support.multistep import (  # noqa: E402
    TEACHER,
    FailsAt,
    lennard_jones,
    small_molecule,
    write_model,
)
from support.openmm import (  # noqa: E402
    EV,
    openmm_context,
    openmm_results,
    openmm_system,
    topology_of,
)
from support.systems import silicon  # noqa: E402

from mlff_distiller.errors import InputError  # noqa: E402
from mlff_distiller.openmm import painn_force, teacher_correction  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("openmm") / "student.pt", (1, 6, 8, 14))


def corrected_system(molecule, model, teacher, atoms=None, **keywords):
    """Student and correction in their groups; the System and the correction's force."""
    topology = topology_of(molecule)
    correction = teacher_correction(topology, model, teacher, atoms, precision="double", **keywords)
    student = painn_force(topology, model, atoms, precision="double")
    return openmm_system(topology, student, correction), correction


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("periodic", [True, False])
def test_all_groups_are_the_teacher(model, platform, periodic) -> None:
    atoms = silicon() if periodic else small_molecule().to_atoms(labels=False)
    atoms.calc = lennard_jones() if periodic else EMT()
    system, _ = corrected_system(atoms, model, TEACHER if periodic else "emt")
    context = openmm_context(system, atoms.positions, platform)
    energy, forces = openmm_results(context)
    scale = 1 if platform == "Reference" else 200  # its positions are single precision
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7 * scale)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7 * scale)
    student, _ = openmm_results(context, groups={0})
    difference, _ = openmm_results(context, groups={1})
    assert student + difference == pytest.approx(energy, abs=1e-9)
    assert abs(difference) > 0.1


@pytest.mark.parametrize("every", [1, 3])
def test_stock_integrators_conserve_the_teacher_s_energy(model, every) -> None:
    start = small_molecule()
    atoms = start.to_atoms(labels=False, dynamics=True)
    system, force = corrected_system(atoms, model, EMT())
    step = every * 0.1 * unit.femtoseconds
    integrator = openmm.MTSIntegrator(step, [(0, every), (1, 1)])
    context = openmm_context(system, atoms.positions, integrator=integrator)
    context.setVelocities(atoms.get_velocities() * units.fs * 100.0)
    totals = []
    for _ in range(40):
        integrator.step(6 // every)
        state = context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / EV)
    assert np.std(totals) < 2e-3 * every**2
    # One call an outer step and the first; energies after a step are known.
    assert force.correction.calls == 40 * 6 // every + 1


def test_langevin_integrator_and_barostat_ask_for_no_more_than_they_need(model) -> None:
    atoms = silicon()
    system, force = corrected_system(atoms, model, TEACHER)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 5))
    integrator = openmm.MTSLangevinIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds, [(0, 2), (1, 1)]
    )
    context = openmm_context(system, atoms.positions, integrator=integrator)
    integrator.step(40)
    assert 41 + 7 <= force.correction.calls <= 41 + 9  # 8 attempts
    energy, forces = openmm_results(context)
    state = context.getState(positions=True)
    atoms.positions = state.getPositions(asNumpy=True)._value * 10
    atoms.cell = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * 10
    atoms.calc = lennard_jones()
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7)


def test_some_atoms_of_a_system(model) -> None:
    """Two molecules; the student and the teacher see one of them, its atoms in another order."""
    one = small_molecule().to_atoms(labels=False)
    other = one.copy()
    other.positions += 2.0
    both = other + one
    chosen = list(range(9, 18))[::-1]
    system, _ = corrected_system(both, model, EMT(), atoms=chosen)
    context = openmm_context(system, both.positions)
    energy, forces = openmm_results(context)
    one.calc = EMT()
    assert energy == pytest.approx(one.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(forces[9:], one.get_forces(), atol=1e-7)
    np.testing.assert_allclose(forces[:9], 0.0, atol=1e-12)


def test_labels_of_all_calls_are_handed_on(model) -> None:
    kept = []
    atoms = small_molecule().to_atoms(labels=False)
    system, force = corrected_system(atoms, model, "emt", keep=kept.append)
    integrator = openmm.MTSIntegrator(0.4 * unit.femtoseconds, [(0, 2), (1, 1)])
    context = openmm_context(system, atoms.positions, integrator=integrator)
    context.getIntegrator().step(5)
    assert len(kept) == force.correction.calls == 6
    atoms.positions = kept[-1].positions
    atoms.calc = EMT()
    assert kept[-1].energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_a_saved_system_names_the_teacher(model) -> None:
    atoms = small_molecule().to_atoms(labels=False)
    system, _ = corrected_system(atoms, model, "emt")
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    expected = openmm_results(openmm_context(system, atoms.positions))
    got = openmm_results(openmm_context(again, atoms.positions))
    assert got[0] == pytest.approx(expected[0], abs=1e-9)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-9)


def test_a_failing_teacher_stops_the_step_with_its_line(model) -> None:
    atoms = silicon()
    system, _ = corrected_system(atoms, model, FailsAt(3))
    integrator = openmm.MTSIntegrator(2 * unit.femtoseconds, [(0, 2), (1, 1)])
    context = openmm_context(system, atoms.positions, integrator=integrator)
    with pytest.raises(openmm.OpenMMException, match="no convergence after 250 iterations"):
        context.getIntegrator().step(10)


def test_bad_arguments(model, monkeypatch, tmp_path) -> None:
    atoms = silicon()
    topology = topology_of(atoms)
    for arguments, keywords, message in (
        (("emt",), {}, "emt does not know Si"),
        (("sevenet-0",), {}, "did you mean 'sevennet-0'"),
        ((3,), {}, "teacher must be a name such as 'sevennet-0' or an ASE calculator, got int"),
        ((TEACHER,), {"precision": "half"}, "precision must be 'single' or 'double'"),
        ((TEACHER,), {"force_group": 32}, "force_group must be an integer 0..31"),
        ((TEACHER,), {"atoms": [99]}, "atoms must lie in"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            teacher_correction(topology, model, *arguments, **keywords)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such"):
        teacher_correction(topology, tmp_path / "none.pt", TEACHER)
    system, _ = corrected_system(atoms, model, lennard_jones())
    with pytest.raises(Exception, match="could not be pickled"):
        openmm.XmlSerializer.serialize(system)
    monkeypatch.delattr(openmm, "PythonForce")
    with pytest.raises(InputError, match=r"need OpenMM 8\.4 or later"):
        teacher_correction(topology, model, TEACHER)
