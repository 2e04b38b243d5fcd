"""The GPU engine under host emulation (tests/cuda_host): every kernel runs, on every schedule.

On a card with MLFF_TEST_GPU=1 (docs/testing.md).
"""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from support.cuda_models import MODELS, assert_agree, compute, cpu, export_models
from support.students import ELEMENTS
from support.systems import SYSTEMS, random_system

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.errors import DeviceError, InputError
from mlff_distiller.ops.engine import NativePotential


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return export_models(tmp_path_factory.mktemp("models"))


FUSE = pytest.mark.parametrize("fuse", [True, False], ids=["fused", "apart"])


@FUSE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_cpu_engine(gpu, models, name, dtype, fuse):
    potential = gpu.GpuPotential(models[name], dtype=dtype, fuse=fuse)
    for label, make in SYSTEMS.items():
        if name == "wide" and label != "skewed":
            continue
        system = make()
        got = compute(potential, system, atom_virials=True)
        assert_agree(got, cpu(models[name], system), dtype, len(system[0]))


def single_atom():
    return np.array([6]), np.array([[0.1, 0.2, 0.3]]), np.zeros((3, 3)), np.zeros(3, bool)


def no_atoms():
    return np.zeros(0, int), np.zeros((0, 3)), np.zeros((3, 3)), np.zeros(3, bool)


def far_apart():
    positions = np.array([[0.0, 0, 0], [50.0, 0, 0], [0, 80.0, 1e5]])
    return np.array([1, 6, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool)


def one_atom_crystal():
    return np.array([6]), np.zeros((1, 3)), np.eye(3) * 1.7, np.ones(3, bool)


def needle():
    cell = np.array([[1.9, 0, 0], [1.1, 2.1, 0], [30.0, 17.0, 25.0]])
    rng = np.random.default_rng(5)
    fractions = np.stack([rng.random(9), rng.random(9), np.arange(9) / 9], axis=1)
    return rng.choice(ELEMENTS, 9), fractions @ cell, cell, np.ones(3, bool)


def many():
    return random_system(900, 24.0, (True, False, True), seed=8, distance=0.9)


def beyond_the_cutoff():
    """Edges are in the list, which has a skin, and none of them counts."""
    return (
        np.array([6, 8]),
        np.array([[0.0, 0, 0], [0, 0, 4.1]]),
        np.zeros((3, 3)),
        np.zeros(3, bool),
    )


SHAPES = [single_atom, no_atoms, far_apart, beyond_the_cutoff, one_atom_crystal, needle, many]


@FUSE
@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_at_the_edge(gpu, models, make, dtype, fuse):
    system = make()
    potential = gpu.GpuPotential(models["zbl"], dtype=dtype, fuse=fuse)
    got = compute(potential, system, atom_virials=True)
    # An atom with hundreds of neighbours rounds in float32 like the CPU engine: 7e-6 eV.
    scale = 10.0 if make is one_atom_crystal else 1.0
    assert_agree(got, cpu(models["zbl"], system), dtype, len(system[0]), scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_every_length(gpu, models, dtype):
    """Quarters of a warp share a row: some have an edge less. Edges beyond the cutoff lie among them."""
    rng = np.random.default_rng(3)
    _, _, cell, pbc = single_atom()
    for n in range(2, 12):
        i = np.arange(n)
        z, angle = 1 - (2 * i + 1) / n, 2.4 * i  # all around the first atom
        directions = np.stack([np.cos(angle), np.sin(angle), z / np.sqrt(1 - z**2)], axis=1)
        # Of the first atom every third neighbour is in the skin only (cutoff 4, skin 0.5).
        radii = np.where(i % 3 == 2, 4.2, rng.uniform(1.5, 3.9, n))
        directions *= (radii / np.linalg.norm(directions, axis=1))[:, None]
        positions = np.concatenate([np.zeros((1, 3)), directions])
        system = np.resize(ELEMENTS, n + 1), positions, cell, pbc
        potential = gpu.GpuPotential(models["zbl"], dtype=dtype, skin=0.5)
        got = compute(potential, system, atom_virials=True)
        assert_agree(got, cpu(models["zbl"], system), dtype, n + 1)


@FUSE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_the_same_bits_under_every_schedule(gpu, models, dtype, fuse):
    results = []
    for seed in range(4):
        gpu.set_schedule(seed)
        potential = gpu.GpuPotential(models["odd"], dtype=dtype, fuse=fuse)
        for system in (SYSTEMS["skewed"](), SYSTEMS["slab"]()):
            results.append((seed, compute(potential, system, atom_virials=True)))
    for (_, first), (_, other) in zip(results[:2] * 3, results[2:], strict=True):
        for key in first:
            assert np.array_equal(first[key], other[key]), key


def moves(system, steps, size, seed=0):
    rng = np.random.default_rng(seed)
    numbers, positions, cell, pbc = system
    for _ in range(steps):
        positions = positions + rng.normal(scale=size, size=positions.shape)
        yield numbers, positions, cell, pbc


@pytest.mark.parametrize("graph", [False, True])
def test_lists_are_rebuilt_when_atoms_moved_and_only_then(gpu, models, graph):
    system = SYSTEMS["skewed"]()
    potential = gpu.GpuPotential(models["zbl"], dtype="float64", skin=0.4, graph=graph)
    for moved in moves(system, 12, 0.03):
        assert_agree(compute(potential, moved), cpu(models["zbl"], moved), "float64", 32)
    assert 2 <= potential.num_builds <= 8
    assert potential.num_graph_launches == (11 if graph else 0)


def test_a_captured_step_skips_the_kernels_of_a_list_that_it_keeps(gpu, models):
    """A conditional node: they run where atoms have moved too far, and nowhere else."""
    potential = gpu.GpuPotential(models["odd"], dtype="float64", skin=0.4)
    builds = []
    for turn, moved in enumerate(moves(SYSTEMS["skewed"](), 12, 0.03)):
        before = potential.num_builds
        gpu.reset_counters()
        assert_agree(compute(potential, moved), cpu(models["odd"], moved), "float64", 32)
        launches = gpu.counters()["launches"]
        builds.append(potential.num_builds - before)
        assert launches["find_moved"] == 1
        expected = builds[-1] if turn else 1  # the first step is not captured
        for name in ("plan_bins", "find_neighbors<true>", "finish_build"):
            assert launches.get(name, 0) == expected, (turn, name)
        assert launches.get("rank_items", 0) == 2 * expected
    assert 1 in builds[1:]
    assert 0 in builds[1:]


def test_a_deformed_cell_keeps_the_list_while_it_may(gpu, models):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    potential = gpu.GpuPotential(models["zbl"], dtype="float64", skin=0.5)
    for strain in (0.0, 0.004, 0.008, 0.2):
        stretch = np.eye(3) + strain * np.array([[1, 0.3, 0], [0, -0.5, 0], [0, 0.2, 1]])
        system = numbers, positions @ stretch, cell @ stretch, pbc
        assert_agree(compute(potential, system), cpu(models["zbl"], system), "float64", 32)
    assert potential.num_builds == 2


def test_steady_state_waits_once_and_allocates_nothing(gpu, models):
    potential = gpu.GpuPotential(models["odd"], graph=False)
    steps = list(moves(SYSTEMS["skewed"](), 5, 0.005))
    compute(potential, steps[0])
    compute(potential, steps[1])
    gpu.reset_counters()
    for step in steps[2:]:
        compute(potential, step)
    counters = gpu.counters()
    assert potential.num_builds == 1
    assert counters["host_synchronisations"] == 3
    assert counters["device_allocations"] == counters["pinned_allocations"] == 0
    assert counters["pageable_copies"] == 0
    n = len(steps[0][0])
    assert counters["bytes_to_device"] <= 3 * (24 * n + 512)
    assert counters["bytes_to_host"] <= 3 * (32 * n + 1024)


def test_a_rebuild_needs_no_wait_either(gpu, models):
    potential = gpu.GpuPotential(models["odd"], skin=0.1)
    steps = list(moves(SYSTEMS["skewed"](), 6, 0.1))
    for step in steps[:3]:
        compute(potential, step)
    gpu.reset_counters()
    for step in steps[3:]:
        compute(potential, step)
    counters = gpu.counters()
    assert potential.num_builds == 6
    assert counters["host_synchronisations"] == counters["graph_launches"] == 3


def test_overflow_of_the_list_is_mended(gpu, models):
    # Dense enough for more than the 64 neighbours that room is made for at first.
    system = random_system(60, 6.0, (True, True, True), seed=4, distance=0.7)
    potential = gpu.GpuPotential(models["default"], dtype="float64")
    got = compute(potential, system)
    assert potential.num_edges > 64 * len(system[0])
    assert_agree(got, cpu(models["default"], system), "float64", len(system[0]))
    # And later, when a captured step runs into it.
    sparse = (system[0], system[1] * 2.0, system[2] * 2.0, system[3])
    potential = gpu.GpuPotential(models["default"], dtype="float64")
    for _ in range(3):
        compute(potential, sparse)
    assert potential.num_graph_launches
    assert_agree(
        compute(potential, system), cpu(models["default"], system), "float64", len(system[0])
    )


def test_systems_may_change_between_steps(gpu, models):
    potential = gpu.GpuPotential(models["zbl"], dtype="float64")
    for label in ("molecule", "skewed", "tiny", "skewed", "wire"):
        system = SYSTEMS[label]()
        assert_agree(
            compute(potential, system), cpu(models["zbl"], system), "float64", len(system[0])
        )


@FUSE
def test_energy_only(gpu, models, fuse):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    potential = gpu.GpuPotential(models["zbl"], dtype="float64", fuse=fuse)
    out = potential.compute(numbers.astype(np.int64), positions, cell, pbc, False, False)
    want = cpu(models["zbl"], (numbers, positions, cell, pbc))
    assert out["energy"] == pytest.approx(want["energy"], abs=1e-9)
    assert "forces" not in out


def test_forces_are_the_derivative_of_the_energy(gpu, models):
    numbers, positions, cell, pbc = SYSTEMS["tiny"]()
    potential = gpu.GpuPotential(models["zbl"], dtype="float64")
    forces = compute(potential, (numbers, positions, cell, pbc))["forces"]
    step = 1e-4
    for i, a in ((0, 0), (1, 2), (2, 1)):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[i, a] += sign * step
            energies.append(compute(potential, (numbers, moved, cell, pbc))["energy"])
        slope = (energies[0] - energies[1]) / (2 * step)
        # Values and slopes of the table are rounded apart: 1e-10 of some eV over the step.
        assert forces[i, a] == pytest.approx(-slope, abs=1e-6)


# --- bad input ------------------------------------------------------------------------------------


def test_faults_are_named(gpu, models):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    potential = gpu.GpuPotential(models["zbl"])
    good = compute(potential, (numbers, positions, cell, pbc))["energy"]
    bad = positions.copy()
    bad[7, 1] = np.nan
    with pytest.raises(InputError, match=r"finite.* atom 7"):
        compute(potential, (numbers, bad, cell, pbc))
    on_top = positions.copy()
    on_top[3] = on_top[11] + [0, 0, 1e-6]
    with pytest.raises(InputError, match=r"atoms (3 and 11|11 and 3) are at one point"):
        compute(potential, (numbers, on_top, cell, pbc))
    with pytest.raises(InputError, match="right-handed"):
        compute(potential, (numbers, positions, cell[[1, 0, 2]], pbc))
    with pytest.raises(InputError, match="the model knows H, C, O"):
        compute(potential, (np.full(len(numbers), 79), positions, cell, pbc))
    assert compute(potential, (numbers, positions, cell, pbc))["energy"] == good


def test_no_device_and_no_memory(gpu, models):
    gpu.set_device_count(0)
    assert gpu.gpu_count() == 0
    with pytest.raises(InputError, match=r"number of GPUs, 0.* use device cpu"):
        gpu.GpuPotential(models["one"])
    gpu.set_device_count(1)
    potential = gpu.GpuPotential(models["default"])
    gpu.set_memory_limit(20 << 20)
    with pytest.raises(DeviceError, match=r"memory: out of memory; .* or use the CPU$"):
        compute(potential, many())
    gpu.set_memory_limit(0)
    # The failed step left nothing half-made behind: not for another system, nor for the same one.
    system = SYSTEMS["tiny"]()
    assert_agree(compute(potential, system), cpu(models["default"], system), "float32", 3)
    assert_agree(
        compute(potential, many()), cpu(models["default"], many()), "float32", len(many()[0])
    )


def test_memory_bytes_are_all_there_are(gpu, models):
    before = gpu.memory_in_use()
    potential = gpu.GpuPotential(models["zbl"])
    compute(potential, SYSTEMS["skewed"](), atom_virials=True)
    used = gpu.memory_in_use() - before
    assert used >= potential.memory_bytes > 1e6
    assert used - potential.memory_bytes < 200 * 512  # what allocations are rounded up by


def test_memory_may_run_out_anywhere(gpu, models):
    """... and leaves nothing half-made behind for the same system, once there is memory again."""
    system = random_system(40, 9.0, (True, False, True), seed=8, distance=0.9)
    want = cpu(models["odd"], system)
    needed = gpu.GpuPotential(models["odd"])
    model = needed.memory_bytes
    compute(needed, system)
    step = needed.memory_bytes - model
    del needed
    before = gpu.memory_in_use()
    for share in (0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.9):
        potential = gpu.GpuPotential(models["odd"])
        gpu.set_memory_limit(before + model + int(share * step))
        with pytest.raises(DeviceError, match="out of memory"):
            compute(potential, system)
        gpu.set_memory_limit(0)
        assert_agree(compute(potential, system), want, "float32", len(system[0]))


# --- Python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_ase_calculator(with_gpu, models, device):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    results = []
    for options in ({}, {"device": device}):
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        atoms.calc = StudentCalculator(models["zbl"], **options)
        values = []
        for _ in range(4):
            values.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
            atoms.positions += 0.01 * np.sin(np.arange(3 * len(atoms)).reshape(-1, 3))
        results.append(values)
    for cpu_values, gpu_values in zip(*results, strict=True):
        for a, b in zip(cpu_values, gpu_values, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=2e-5)
    assert atoms.calc.backend == "native"


def test_openmm_python_force(with_gpu, models):
    import openmm
    from openmm import app, unit

    from mlff_distiller.openmm import painn_force

    numbers, positions, _, _ = SYSTEMS["molecule"]()
    topology = app.Topology()
    residue = topology.addResidue("M", topology.addChain())
    for z in numbers:
        topology.addAtom("X", app.Element.getByAtomicNumber(int(z)), residue)
    states = []
    for device in ("cpu", "cuda"):
        system = openmm.System()
        for _ in numbers:
            system.addParticle(12.0)
        system.addForce(
            painn_force(
                topology, models["zbl"], backend="python", device=device, precision="double"
            )
        )
        context = openmm.Context(
            system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
        )
        context.setPositions(positions * 0.1)
        state = context.getState(energy=True, forces=True)
        states.append(
            (state.getPotentialEnergy()._value, state.getForces(asNumpy=True).value_in_unit(
                unit.kilojoule_per_mole / unit.nanometer))
        )  # fmt: skip
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-12)
    # The CPU has exact filters in double precision, the GPU its table, whose slopes are within 1e-8.
    np.testing.assert_allclose(states[0][1], states[1][1], rtol=1e-7, atol=1e-4)


def test_devices_that_do_not_exist(with_gpu, models):
    count = with_gpu.gpu_count()
    with pytest.raises(InputError, match=f"below the number of GPUs, {count}, got {count + 2}"):
        NativePotential(models["one"], device=f"cuda:{count + 2}")
    with pytest.raises(InputError, match="device must be cpu, cuda or cuda:N, got 'gpu'"):
        NativePotential(models["one"], device="gpu")
    with pytest.raises(InputError, match="exact filters run on the CPU only"):
        NativePotential(models["one"], device="cuda", tabulate=False)
    with pytest.raises(InputError, match="math must be float32, half or tf32"):
        NativePotential(models["one"], device="cuda", math="fp8")


def test_an_engine_without_cuda_says_so(models, monkeypatch):
    from mlff_distiller.ops import engine

    parts = {"Potential": engine._native.Potential}
    monkeypatch.setattr(engine, "_native", SimpleNamespace(**parts))
    assert engine.gpu_count() == 0
    with pytest.raises(InputError, match="compiled without CUDA"):
        NativePotential(models["one"], device="cuda")
