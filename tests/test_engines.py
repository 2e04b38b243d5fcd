"""One exported file, the same numbers everywhere.

Energies and forces of ASE (both backends), OpenMM (both backends on two platforms) and LAMMPS (the
real ``lmp``) against autograd through the Python student in float64. Prints the agreement table.
"""

import numpy as np
import pytest
from support.arbiter import direct
from support.backends import needs_engine, needs_lammps, needs_openmm, needs_openmm_plugin
from support.lammps import Run, evaluate
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
from support.students import make_student
from support.systems import System, ethanol, silicon, water

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.export import export_student

SYSTEMS = {"triclinic silicon": silicon, "water box": water, "ethanol": ethanol}
ELEMENTS = (1, 6, 8, 14)
#: precision -> eV/atom, eV/Å
TOLERANCES = {"single": (1e-6, 1e-4), "double": (1e-9, 1e-8)}


@pytest.fixture(scope="module")
def student():
    return make_student(list(ELEMENTS), num_interactions=3)


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


def with_ase(backend):
    def run(atoms, model, precision, folder):
        atoms.calc = StudentCalculator(model, dtype=precision, backend=backend)
        return atoms.get_potential_energy(), atoms.get_forces()

    return run


def with_openmm(backend, platform):
    def run(atoms, model, precision, folder):
        from mlff_distiller.openmm import painn_force

        topology = topology_of(atoms)
        force = painn_force(topology, model, backend=backend, precision=precision)
        return openmm_results(
            openmm_context(openmm_system(topology, force), atoms.positions, platform)
        )

    return run


def with_lammps(atoms, model, precision, folder):
    system = System(
        atoms.numbers, atoms.positions, atoms.cell.array, tuple(bool(p) for p in atoms.pbc)
    )
    style = f"precision {precision}"
    run = Run("engines", system, model, types=ELEMENTS, style=style)
    values = evaluate([run], folder)["engines"]
    return values.energy, values.forces


ENGINES = {
    "ASE portable": (with_ase("portable"), []),
    "ASE native": (with_ase("native"), [needs_engine]),
    "OpenMM python Reference": (with_openmm("python", "Reference"), [needs_openmm]),
    "OpenMM python CPU": (with_openmm("python", "CPU"), [needs_openmm]),
    "OpenMM native Reference": (with_openmm("native", "Reference"), [needs_openmm_plugin]),
    "OpenMM native CPU": (with_openmm("native", "CPU"), [needs_openmm_plugin]),
    "LAMMPS": (with_lammps, [needs_lammps]),
}


@pytest.fixture(scope="module")
def table(request):
    """Rows of the agreement table, printed when all are there."""
    rows = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{'against float64 autograd':44s} {'|dE| eV/atom':>14s} {'max |dF| eV/Å':>14s}")
        for name, energy_error, force_error in rows:
            print(f"{name:44s} {energy_error:14.1e} {force_error:14.1e}")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=marks) for name, (_, marks) in ENGINES.items()]
)
def test_engines_agree(student, model, engine, system, precision, tmp_path, table):
    atoms = SYSTEMS[system]()
    if not atoms.pbc.any():
        atoms.center(vacuum=4.0)  # LAMMPS has a box in any case
    energy, forces, _ = direct(student, atoms)
    assert np.abs(forces).max() > 0.5  # eV/Å: agreement about nothing would prove nothing
    evaluate_with, _ = ENGINES[engine]
    got_energy, got_forces = evaluate_with(atoms.copy(), model, precision, tmp_path)
    energy_error = abs(got_energy - energy) / len(atoms)
    force_error = np.abs(got_forces - forces).max()
    table.append((f"{engine}, {system}, {precision}", energy_error, force_error))
    energy_tolerance, force_tolerance = TOLERANCES[precision]
    assert energy_error <= energy_tolerance
    assert force_error <= force_tolerance
