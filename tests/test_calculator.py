"""StudentCalculator: both backends against the pure-torch student, and ASE's habits."""

import copy
import gc
import multiprocessing
import pickle
import weakref

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from support.arbiter import direct
from support.backends import ASE_BACKENDS as BACKENDS
from support.students import make_student
from support.systems import ethanol, silicon

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.potential import native_is_built


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    student = make_student([1, 6, 8, 14])
    export_student(student, path)
    return student, path


def slab():
    atoms = silicon()
    atoms.pbc = [True, True, False]
    return atoms


def tiny_cell():
    return Atoms("SiC", [[0, 0, 0], [1.2, 1.1, 1.3]], cell=[2.5, 2.6, 2.4], pbc=True)


SYSTEMS = [
    silicon,
    ethanol,
    slab,
    tiny_cell,
    lambda: Atoms("O"),
    lambda: Atoms("H2", [[0] * 3, [9] * 3]),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), (torch.float32, 2e-4)])
def test_equals_the_student(model, system, backend, dtype, tolerance):
    student, path = model
    atoms = system()
    energy, forces, strain_gradient = direct(student, atoms)
    atoms.calc = StudentCalculator(path, "cpu", dtype, backend=backend)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=tolerance * len(atoms))
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=10 * tolerance)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, abs=tolerance * len(atoms))
    if atoms.pbc.any():
        stress = strain_gradient / atoms.get_volume()
        np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=10 * tolerance)
    else:
        with pytest.raises(PropertyNotImplementedError, match="cell has a volume"):
            atoms.get_stress()


def periodic_in(*pbc: bool) -> Atoms:
    """Silicon cut open, with vacuum where it is open and a skewed cell where it is not."""
    atoms = silicon()
    atoms.set_pbc(pbc)
    for axis in np.flatnonzero(~atoms.pbc):
        atoms.cell[axis] *= 2
    return atoms


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 0, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stress_is_the_strain_derivative(model, backend, pbc):
    atoms = periodic_in(*pbc)
    atoms.calc = StudentCalculator(model[1], dtype="float64", backend=backend)
    stress, step = atoms.get_stress(voigt=False), 1e-5
    for a, b in [(0, 0), (1, 2), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[a, b] == pytest.approx(slope, abs=1e-7)


def test_slabs_follow_the_convention_of_ase(model) -> None:
    """As EMT does: the stress of the whole cell; the same for pbc in two and three directions."""
    slab = periodic_in(1, 1, 0)
    slab.calc = StudentCalculator(model[1], dtype="float64")
    bulk_like = slab.copy()
    bulk_like.cell[2] *= 3
    bulk_like.pbc = True
    bulk_like.calc = StudentCalculator(model[1], dtype="float64")
    np.testing.assert_allclose(bulk_like.get_stress(), slab.get_stress() / 3, atol=1e-12)
    slab.cell[2] = 0
    with pytest.raises(PropertyNotImplementedError, match="cell has a volume"):
        slab.get_stress()


def test_two_dimensional_cells_relax_in_plane(model) -> None:
    slab = periodic_in(1, 1, 0)
    slab.calc = StudentCalculator(model[1], dtype="float64")
    before = slab.get_stress()[[0, 1, 5]]
    BFGS(FrechetCellFilter(slab, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(steps=30)
    assert np.abs(slab.get_stress()[[0, 1, 5]]).max() < 0.3 * np.abs(before).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_with_a_cached_list_equals_fresh_lists(model, backend):
    atoms = silicon()
    atoms.calc = StudentCalculator(model[1], dtype="float64", backend=backend, skin=0.5)
    MaxwellBoltzmannDistribution(atoms, temperature_K=800, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    for _ in range(5):
        dynamics.run(8)
        fresh = atoms.copy()
        fresh.calc = StudentCalculator(model[1], dtype="float64", backend=backend, skin=0.0)
        assert fresh.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(fresh.get_forces(), atoms.get_forces(), atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cached_list_ends_where_it_would_be_wrong(model, backend):
    """Two atoms that meet after steps below half of the skin; and a cell that grows and shrinks."""
    calc = StudentCalculator(model[1], dtype="float64", backend=backend, skin=0.3)
    pair = Atoms("Si2", [[0.0] * 3, [5.0, 0.0, 0.0]], cell=[30.0, 30.0, 30.0], pbc=True)
    crystal = silicon()
    pair.calc = crystal.calc = calc
    apart = pair.get_potential_energy()
    steps = [(pair, lambda: pair.positions.__isub__([[-0.1, 0, 0], [0.1, 0, 0]]))] * 13
    cell = crystal.cell.array.copy()
    for factor in (1.5, 0.97, 1.0):
        steps.append((crystal, lambda f=factor: crystal.set_cell(f * cell, scale_atoms=False)))
    for atoms, change in steps:
        change()
        fresh = atoms.copy()
        fresh.calc = StudentCalculator(model[1], dtype="float64", backend=backend, skin=0.0)
        energy = fresh.get_potential_energy()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    assert abs(pair.get_potential_energy() - apart) > 1e-3


def test_only_changes_of_the_structure_lead_to_a_calculation(model, monkeypatch):
    atoms = ethanol()
    calc = atoms.calc = StudentCalculator(model[1], backend="portable")
    calls = []
    compute = calc._potential.compute
    monkeypatch.setattr(
        calc._potential,
        "compute",
        lambda *arguments, **options: calls.append(1) or compute(*arguments, **options),
    )
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.set_momenta(np.ones((len(atoms), 3)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    atoms.get_forces()
    assert len(calls) == 1
    assert not calc.calculation_required(atoms, ["energy", "forces"])
    for change in ("positions", "cell", "pbc", "numbers"):
        before = len(calls)
        if change == "positions":
            atoms.positions[3, 1] += 1e-14 + np.spacing(atoms.positions[3, 1])
        elif change == "cell":
            atoms.set_cell([9.0, 9.0, 9.0])
        elif change == "pbc":
            atoms.pbc = [True, False, True]
        else:
            atoms.numbers[0] = 14
        assert calc.check_state(atoms) == [change]
        assert calc.get_property("forces", atoms, allow_calculation=False) is None
        atoms.get_forces()
        assert len(calls) == before + 1


def test_results_belong_to_the_caller(model):
    atoms = ethanol()
    atoms.calc = StudentCalculator(model[1])
    forces = atoms.get_forces()
    kept = forces.copy()
    forces += 1.0
    np.testing.assert_array_equal(atoms.get_forces(), kept)
    positions = atoms.positions.copy()
    atoms.get_potential_energy()
    np.testing.assert_array_equal(atoms.positions, positions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_optimiser_with_a_moving_cell_finds_zero_forces(model, backend):
    atoms = bulk("Si", cubic=True)
    atoms.calc = StudentCalculator(model[1], dtype="float64", backend=backend)
    atoms.rattle(0.02, seed=0)
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms, mask=[1, 1, 1, 0, 0, 0]), logfile=None).run(fmax=1e-3, steps=8)
    assert atoms.get_potential_energy() < before


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_and_pickles_compute_alike(model, backend):
    atoms = ethanol()
    calc = StudentCalculator(model[1], dtype="float64", backend=backend, skin=0.7)
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    for twin in (copy.deepcopy(calc), copy.copy(calc), pickle.loads(pickle.dumps(calc))):
        assert twin._potential is not calc._potential
        assert (twin.backend, twin.skin, twin.dtype) == (calc.backend, 0.7, "float64")
        assert twin.get_property("energy", ethanol()) == energy


def _child(queue, calc, atoms):
    queue.put(calc.get_property("forces", atoms))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forked_child_computes(model, backend):
    if backend == "portable" and torch.version.cuda:
        pytest.skip("torch that was built for a GPU has no autograd in a forked child")
    atoms = silicon()
    calc = StudentCalculator(model[1], dtype="float64", backend=backend, threads=2)
    forces = calc.get_property("forces", atoms)
    atoms.rattle(0.01, seed=5)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, calc, atoms))
    child.start()
    received = queue.get(timeout=300)
    child.join(timeout=300)
    np.testing.assert_allclose(received, calc.get_property("forces", atoms), atol=1e-10)
    assert np.abs(received - forces).max() > 1e-6


def test_a_calculator_is_freed_without_the_garbage_collector(model):
    calc = StudentCalculator(model[1])
    calc.get_property("energy", ethanol())
    alive = weakref.ref(calc)
    gc.disable()
    try:
        del calc
        assert alive() is None
    finally:
        gc.enable()


def test_trajectory_records_what_was_computed(model, tmp_path):
    atoms = silicon()
    atoms.calc = StudentCalculator(model[1])
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.write(tmp_path / "frame.traj")
    frame = read(tmp_path / "frame.traj")
    assert frame.get_potential_energy() == energy
    np.testing.assert_array_equal(frame.get_forces(), forces)
    np.testing.assert_array_equal(frame.get_stress(), stress)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)])
def test_left_handed_cells_are_the_same_lattice(model, backend, pbc):
    right, left = silicon(), silicon()
    left.set_cell(left.cell.array[[1, 0, 2]])
    right.pbc, left.pbc = pbc, np.array(pbc)[[1, 0, 2]]
    for atoms in (right, left):
        atoms.calc = StudentCalculator(model[1], backend=backend)
    assert left.get_potential_energy() == pytest.approx(right.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(left.get_forces(), right.get_forces(), atol=1e-5)
    if all(pbc):
        np.testing.assert_allclose(left.get_stress(), right.get_stress(), atol=1e-6)


def _bad_atoms():
    nan = ethanol()
    nan.positions[4, 2] = np.nan
    flat = silicon()
    flat.set_cell([[5, 0, 0], [0, 5, 0], [5, 5, 0]])
    no_cell = Atoms("Si", pbc=True)
    return [
        (Atoms("Au2", [[0] * 3, [2] * 3]), r"knows H C O Si, got Au \(Z=79\)"),
        (Atoms("XSi", [[0] * 3, [2] * 3]), "Z=0"),
        (nan, "positions"),
        (flat, "volume|flat"),
        (no_cell, "zero|flat|volume"),
        (Atoms(), "at least one atom"),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("atoms", "message"), _bad_atoms())
def test_bad_atoms(model, backend, atoms, message):
    calc = StudentCalculator(model[1], backend=backend)
    atoms.calc = calc
    with pytest.raises(InputError, match=message) as error:
        atoms.get_potential_energy()
    assert "\n" not in str(error.value)
    good = ethanol()
    good.calc = calc
    assert np.isfinite(good.get_potential_energy())


def test_bad_files(model, tmp_path):
    with pytest.raises(InputError, match=r"no such model file: .*nowhere\.pt"):
        StudentCalculator(tmp_path / "nowhere.pt")
    data = model[1].read_bytes()
    (tmp_path / "short.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        StudentCalculator(tmp_path / "short.pt")
    (tmp_path / "text.pt").write_text("no model at all")
    with pytest.raises(InputError, match="no exported student"):
        StudentCalculator(tmp_path / "text.pt")


def test_bad_options(model):
    with pytest.raises(InputError, match="float32 or float64, got 'int8'"):
        StudentCalculator(model[1], dtype="int8")
    with pytest.raises(InputError, match="auto, native, portable, got 'fast'"):
        StudentCalculator(model[1], backend="fast")
    with pytest.raises(InputError, match="skin"):
        StudentCalculator(model[1], backend="portable", skin=-1.0)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda'"):
            StudentCalculator(model[1], device="cuda")
    if native_is_built():
        with pytest.raises(InputError, match="runs on the CPU"):
            StudentCalculator(model[1], device="cuda", backend="native")


@pytest.mark.parametrize("model", [None, 3, b"x"])
def test_a_model_is_a_path(model):
    from mlff_distiller import StudentForceField

    for use in (StudentCalculator, StudentForceField.load):
        with pytest.raises(InputError, match="the model must be the path of a file"):
            use(model)


def test_a_directory_is_no_model(tmp_path):
    with pytest.raises(InputError, match="a model is a file, got the directory"):
        StudentCalculator(tmp_path)
