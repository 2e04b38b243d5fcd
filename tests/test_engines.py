"""One exported file, the same numbers everywhere.

Energies and forces of ASE (both backends), OpenMM (all backends that are there) and LAMMPS (the
real ``lmp``) against autograd through the Python student in float64. Prints the agreement table.
"""

import numpy as np
import pytest
from engine_systems import (
    direct,
    ethanol,
    make_student,
    openmm_context,
    openmm_results,
    openmm_system,
    silicon,
    topology_of,
    water_box,
)
from lammps_runner import Run, System, evaluate

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.export import export_student
from mlff_distiller.lammps import plugin_path
from mlff_distiller.potential import native_is_built

SYSTEMS = {"triclinic silicon": silicon, "water box": water_box, "ethanol": ethanol}
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


def engines():
    found = {"ASE portable": with_ase("portable")}
    if native_is_built():
        found["ASE native"] = with_ase("native")
    try:
        from mlff_distiller.openmm.native import plugin_is_built
    except ImportError:
        pass
    else:
        for platform in ("Reference", "CPU"):
            found[f"OpenMM python {platform}"] = with_openmm("python", platform)
            if plugin_is_built():
                found[f"OpenMM native {platform}"] = with_openmm("native", platform)
    if plugin_path() is not None:
        found["LAMMPS"] = with_lammps
    return found


ENGINES = engines()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_engines_agree(student, model, system, precision, tmp_path, capsys):
    atoms = SYSTEMS[system]()
    if not atoms.pbc.any():
        atoms.center(vacuum=4.0)  # LAMMPS has a box in any case
    energy, forces, _ = direct(student, atoms)
    assert np.abs(forces).max() > 0.5  # eV/Å: agreement about nothing would prove nothing
    energy_tolerance, force_tolerance = TOLERANCES[precision]
    rows = []
    for name, run in ENGINES.items():
        got_energy, got_forces = run(atoms.copy(), model, precision, tmp_path)
        energy_error = abs(got_energy - energy) / len(atoms)
        force_error = np.abs(got_forces - forces).max()
        rows.append((name, energy_error, force_error))
    with capsys.disabled():
        print(f"\n{system}, {len(atoms)} atoms, {precision} precision, against float64 autograd")
        print(f"  {'engine':24s} {'|dE| eV/atom':>14s} {'max |dF| eV/Å':>14s}")
        for name, energy_error, force_error in rows:
            print(f"  {name:24s} {energy_error:14.1e} {force_error:14.1e}")
    for name, energy_error, force_error in rows:
        assert energy_error <= energy_tolerance, name
        assert force_error <= force_tolerance, name
