"""One bad input, one verdict: what makes a cell flat and two atoms one, asked of every engine.

The numbers are in csrc/core/lattice.h, and for Python in mlff_distiller/lattice.py.
"""

import numpy as np
import pytest
import torch
from ase import Atoms
from support.backends import needs_lammps, needs_openmm, needs_openmm_plugin
from support.cuda_module import DEVICE, gpu_engine, operators, plugin
from support.lammps import Run, run_lmp, script_of
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
from support.students import make_student
from support.systems import System

from mlff_distiller import _native, lattice
from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.constants import (
    DEFAULT_SKIN,
    FRAME_UNCERTAINTY_MARGIN,
    MAX_THREADS,
    UNCERTAINTY_MARGIN,
)
from mlff_distiller.data.structure import check_cell
from mlff_distiller.elements import MAX_Z
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.ops import load_library, neighbor_list

PERIODIC, SLAB = np.array([True] * 3), np.array([True, True, False])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(make_student([8, 14]), path)
    return path


def test_python_and_cpp_have_the_same_numbers():
    assert _native.constants == {
        "flat_cell": lattice.FLAT_CELL,
        "same_point": lattice.SAME_POINT,
        "most_images": lattice.MOST_IMAGES,
        "num_elements": MAX_Z,
        "default_skin": DEFAULT_SKIN,
        "uncertainty_margin": UNCERTAINTY_MARGIN,
        "frame_uncertainty_margin": FRAME_UNCERTAINTY_MARGIN,
        "most_threads": MAX_THREADS,
    }


# --- atoms at one point ---------------------------------------------------------------------------

SHARE = {"apart": 1.02, "same": 0.98, "far below": 0.02}


def pair(distance):
    """Atoms 3 and 5 of six are as near as that, Å."""
    positions = np.array([[1, 1, 1], [6, 1, 1], [1, 6, 1], [1, 1, 6], [6, 6, 1], [6, 1, 6.0]])
    positions[5] = positions[3] + np.array([2.0, -1.0, 2.0]) / 3.0 * distance
    return Atoms("OSiOSiOSi", positions, cell=np.diag([10.0, 10.0, 10.0]), pbc=True)


def ase(backend):
    def run(atoms, model, folder):
        atoms.calc = StudentCalculator(model, backend=backend)
        atoms.get_forces()

    return run


def gpu(atoms, model, folder):
    numbers = atoms.numbers.astype(np.int64)
    gpu_engine().GpuPotential(str(model)).compute(
        numbers, atoms.positions, atoms.cell.array, np.asarray(atoms.pbc), True, False
    )


def with_openmm(backend):
    def run(atoms, model, folder):
        import openmm

        from mlff_distiller.openmm import painn_force

        topology = topology_of(atoms)
        force = painn_force(topology, model, backend=backend)
        try:
            openmm_results(openmm_context(openmm_system(topology, force), atoms.positions))
        except openmm.OpenMMException as error:
            raise InputError(str(error)) from None

    return run


def with_lammps(prefix, style=""):
    def run(atoms, model, folder):
        system = System(atoms.numbers, atoms.positions, atoms.cell.array)
        ids = tuple(100 + i for i in range(len(atoms)))
        run = Run("pair", system, model, style=style, ids=ids, centroid=False)
        done = run_lmp(folder, prefix() + script_of(run, folder))
        if done.returncode:
            raise InputError(done.error)

    return run


ENGINES = {
    "portable": ase("portable"),
    "native": ase("native"),
    "GPU": gpu,
    "OpenMM native": with_openmm("native"),
    "OpenMM python": with_openmm("python"),
    "LAMMPS": with_lammps(str),
    "LAMMPS GPU": with_lammps(
        lambda: f"plugin unload pair painn\nplugin load {plugin()}\n", "device gpu"
    ),
}


def needs(engine):
    """What has to be there for an engine, checked where conftest sees the skip."""
    if "LAMMPS" in engine:
        return needs_lammps
    if engine == "OpenMM native":
        return needs_openmm_plugin
    return needs_openmm if "OpenMM" in engine else ()


@pytest.mark.parametrize("share", SHARE)
@pytest.mark.parametrize("engine", [pytest.param(e, marks=needs(e)) for e in ENGINES])
def test_atoms_at_one_point(model, tmp_path, engine, share):
    atoms = pair(SHARE[share] * lattice.SAME_POINT)
    if share == "apart":
        ENGINES[engine](atoms, model, tmp_path)
        return
    with pytest.raises(InputError) as error:
        ENGINES[engine](atoms, model, tmp_path)
    first = 100 if "LAMMPS" in engine else 0  # users of LAMMPS know their atoms by tag
    names = [f"atoms {a + first} and {b + first} are " for a, b in ((3, 5), (5, 3))]
    assert any(name in str(error.value) for name in names), str(error.value)


# --- flat cells -----------------------------------------------------------------------------------


def skewed(share, pbc):
    """A cell with this share of the volume of a box with edges as long."""
    rows = np.diag([4.0, 4.3, 4.6])
    if pbc[2]:
        rows[2] = [4.0 / share, 0.0, 4.6]
        rows[2, 0] = np.sqrt((4.6 / share) ** 2 - 4.6**2)
    else:
        rows[1, 0] = np.sqrt((4.3 / share) ** 2 - 4.3**2)
    return rows


def check_of_data(cell, pbc, model):
    check_cell(cell, pbc)


def listed(backend):
    def run(cell, pbc, model):
        neighbor_list(
            torch.zeros(1, 3), torch.tensor(cell), torch.tensor(pbc), 3.0, backend=backend
        )

    return run


def operator(name):
    def run(cell, pbc, model):
        load_library()
        library, device = (torch.ops.mlff, "cpu") if name == "cpu" else (operators(), DEVICE)
        tensors = (torch.zeros(1, 3), torch.tensor(cell), torch.tensor(pbc))
        try:
            library.neighbor_list(*(x.to(device) for x in tensors), 3.0)
        except ValueError as error:
            raise InputError(str(error)) from None

    return run


def potential(engine):
    def run(cell, pbc, model):
        engine(Atoms("Si", cell=cell, pbc=pbc), model, None)

    return run


CELLS = {
    "data": check_of_data,
    "neighbor_list": listed("native"),
    "neighbor_list operator": operator("cpu"),
    "neighbor_list operator of a GPU": operator("gpu"),
    "portable": potential(ase("portable")),
    "native": potential(ase("native")),
    "GPU": potential(gpu),
}


@pytest.mark.parametrize("pbc", [PERIODIC, SLAB], ids=["crystal", "slab"])
@pytest.mark.parametrize("share", [2e-10, 3e-9, 0.9e-6, 1.1e-6, 1.4e-5, 1e-3])
@pytest.mark.parametrize("caller", CELLS)
def test_flat_cells(model, caller, share, pbc):
    cell = skewed(share, pbc)
    assert lattice.is_flat(cell[pbc].tolist()) == (share < lattice.FLAT_CELL)
    if share > lattice.FLAT_CELL:
        CELLS[caller](cell, pbc, model)
        return
    with pytest.raises(InputError, match=r"linearly|span a volume"):
        CELLS[caller](cell, pbc, model)


@pytest.mark.parametrize("caller", CELLS)
def test_rows_of_open_directions_do_not_count(model, caller):
    for row in ([0.0, 0, 0], [4.0, 4.3, 0], [0, 0, -5.0], [np.nan, 0, 0]):
        cell = np.diag([4.0, 4.3, 0.0])
        cell[2] = row
        if np.isnan(cell).any() and caller == "portable":
            continue  # structures must be finite as a whole
        CELLS[caller](cell, SLAB, model)


def test_skewed_cells_have_the_energy_of_their_lattice(model):
    """The portable back end lists images of the reduced cell, as the native engine does."""
    skew = skewed(1e-4, PERIODIC)
    compact = skew.copy()
    compact[2] -= np.round(compact[2, 0] / 4.0) * compact[0]
    energies = []
    for cell in (skew, compact):
        for backend in ("portable", "native"):
            atoms = Atoms("SiO", [[0, 0, 0], [1.7, 0.3, 0.2]], cell=cell, pbc=True)
            atoms.calc = StudentCalculator(model, backend=backend)
            energies.append(atoms.get_potential_energy())
    np.testing.assert_allclose(energies, energies[0], atol=1e-6)
