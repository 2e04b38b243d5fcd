"""Atoms of another program in device memory: positions from there, forces added there.

As OpenMM's CUDA platform keeps them (docs of csrc/cuda/particles.h), against the host path. On a card
with MLFF_TEST_GPU=1.
"""

import numpy as np
import pytest
from support.cuda_models import compute, export_models
from support.students import ELEMENTS
from support.systems import SYSTEMS, random_system

from mlff_distiller.errors import InputError

EV, NM = 96.48533212331, 10.0  # OpenMM's units
FIXED = 2.0**32
PRECISIONS = ["single", "mixed", "double"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return export_models(tmp_path_factory.mktemp("models"))


class Slots:
    """Particles in any order, of which the model sees some, and other forces on all of them."""

    def __init__(self, system, particles=None, n_particles=None, seed=0):
        self.numbers, self.positions, self.cell, self.pbc = system
        self.rng = np.random.default_rng(seed)
        n = len(self.numbers)
        self.n_particles = n_particles or n
        self.particles = np.arange(n) if particles is None else np.asarray(particles)
        self.stride = 32 * (-(-self.n_particles // 32))

    def potential(self, gpu, path, dtype, skin=0.3, **keywords):
        return gpu.GpuParticles(
            str(path), list(self.numbers), list(self.particles), NM, EV, dtype, skin, **keywords
        )

    def arrays(self, positions, precision):
        """posq, its corrections, particles of slots, forces that are there, exact positions in Å."""
        order = self.rng.permutation(self.n_particles).astype(np.int32)
        x = self.rng.normal(size=(self.n_particles, 3))  # of those that the model does not see
        x[self.particles] = positions / NM
        posq = np.full((self.stride, 4), 7.0)
        posq[: self.n_particles, :3] = x[order]
        single = posq.astype(np.float32)
        rest = (posq - single).astype(np.float32)
        before = self.rng.integers(-(2**40), 2**40, (3, self.stride))
        stored = {
            "single": single.astype(float),
            "mixed": single.astype(float) + rest,
            "double": posq,
        }[precision]
        back = np.empty((self.n_particles, 3))
        back[order] = stored[: self.n_particles, :3]
        exact = back[self.particles] * NM
        given = posq if precision == "double" else single
        return given, rest if precision == "mixed" else rest[:0], order, before, exact

    def compute(self, potential, arrays, forces=True, cell=None):
        """Energy in eV and forces in eV/Å; everything else in the buffer has to stay as it was."""
        given, rest, order, before, _ = arrays
        cell = self.cell if cell is None else cell
        energy, after = potential.compute(
            given, rest, order, cell, bool(self.pbc[0]), forces, before
        )
        change = np.zeros((self.n_particles, 3))
        change[order] = (after - before)[:, : self.n_particles].T
        assert np.array_equal(after[:, self.n_particles :], before[:, self.n_particles :])
        others = np.setdiff1d(np.arange(self.n_particles), self.particles)
        assert not change[others].any()
        return energy / EV, change[self.particles] / (FIXED * EV * NM)


def agree(got, want, n, dtype="float64"):
    """Fixed point has units of 2.4e-13 eV/Å; positions of float32 arrays are the same in both."""
    energy, force = (1e-10, 1e-11) if dtype == "float64" else (2e-6, 2e-5)
    assert abs(got[0] - want["energy"]) <= energy * n
    np.testing.assert_allclose(got[1], want["forces"], atol=force, rtol=1e-11)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["molecule", "skewed", "tiny"])
def test_equals_the_host_path(gpu, models, name, dtype, precision):
    slots = Slots(SYSTEMS[name]())
    potential = slots.potential(gpu, models["zbl"], dtype)
    host = gpu.GpuPotential(str(models["zbl"]), dtype=dtype)
    positions = slots.positions
    for step in range(4):  # the third is a graph, each finds the particles in other slots
        arrays = slots.arrays(positions, precision)
        got = slots.compute(potential, arrays)
        want = compute(host, (slots.numbers, arrays[-1], slots.cell, slots.pbc))
        agree(got, want, len(positions))
        positions = positions + slots.rng.normal(scale=0.02, size=positions.shape)
        assert potential.num_graph_launches == max(0, step)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_subset_in_another_order(gpu, models, dtype):
    rng = np.random.default_rng(4)
    system = random_system(40, 11.0, (True,) * 3, seed=5, distance=0.9)
    particles = rng.permutation(1000)[:40]
    slots = Slots(system, particles, 1000)
    potential = slots.potential(gpu, models["odd"], dtype)
    host = gpu.GpuPotential(str(models["odd"]), dtype=dtype)
    for _ in range(3):
        arrays = slots.arrays(slots.positions, "mixed")
        want = compute(host, (slots.numbers, arrays[-1], slots.cell, slots.pbc))
        agree(slots.compute(potential, arrays), want, 40)


def test_one_atom(gpu, models):
    for pbc, cell in ((False, np.zeros((3, 3))), (True, np.eye(3) * 1.9)):
        system = np.array([8]), np.array([[0.3, 0.2, 9.1]]), cell, np.full(3, pbc)
        slots = Slots(system)
        arrays = slots.arrays(slots.positions, "double")
        got = slots.compute(slots.potential(gpu, models["zbl"], "float64"), arrays)
        host = compute(gpu.GpuPotential(str(models["zbl"]), dtype="float64"), system)
        agree(got, host, 100)


def test_images_and_cells_that_change(gpu, models):
    """OpenMM moves molecules back into the box, and a barostat changes it."""
    slots = Slots(SYSTEMS["skewed"]())
    potential = slots.potential(gpu, models["zbl"], "float64")
    host = gpu.GpuPotential(str(models["zbl"]), dtype="float64")
    for stretch in (1.0, 1.01, 0.98, 1.2):
        cell = slots.cell * stretch
        images = slots.rng.integers(-2, 3, slots.positions.shape)
        positions = slots.positions * stretch + images @ cell
        arrays = slots.arrays(positions, "double")
        want = compute(host, (slots.numbers, arrays[-1], cell, slots.pbc))
        agree(slots.compute(potential, arrays, cell=cell), want, 40)


def test_energies_alone(gpu, models):
    slots = Slots(SYSTEMS["skewed"]())
    potential = slots.potential(gpu, models["zbl"], "float64")
    arrays = slots.arrays(slots.positions, "double")
    energy, forces = slots.compute(potential, arrays, forces=False)
    assert not forces.any()
    again, forces = slots.compute(potential, arrays)
    assert energy == pytest.approx(again, rel=1e-14)
    assert forces.any()


def test_lists_that_overflow_add_forces_once(gpu, models):
    """A first guess of 64 neighbours is too low here; the step is taken again."""
    system = random_system(60, 6.0, (True,) * 3, seed=3, distance=0.7)
    slots = Slots(system)
    potential = slots.potential(gpu, models["default"], "float64")
    host = gpu.GpuPotential(str(models["default"]), dtype="float64")
    arrays = slots.arrays(slots.positions, "double")
    got = slots.compute(potential, arrays)
    assert potential.num_builds == 2
    want = compute(host, (slots.numbers, arrays[-1], slots.cell, slots.pbc))
    agree(got, want, 60, "float64")


def test_bad_positions_name_the_particle_and_add_nothing(gpu, models):
    slots = Slots(SYSTEMS["skewed"](), np.arange(5, 45), 50)
    potential = slots.potential(gpu, models["zbl"], "float64")
    slots.compute(potential, slots.arrays(slots.positions, "double"))
    bad = slots.positions.copy()
    bad[7, 1] = np.nan
    with pytest.raises(InputError, match=r"positions must be finite.*atom 12"):
        slots.compute(potential, slots.arrays(bad, "double"))
    bad[7] = bad[3]
    with pytest.raises(InputError, match=r"atoms (8 and 12|12 and 8) are at one point"):
        slots.compute(potential, slots.arrays(bad, "double"))
    good = slots.arrays(slots.positions, "double")
    host = gpu.GpuPotential(str(models["zbl"]), dtype="float64")
    want = compute(host, (slots.numbers, good[-1], slots.cell, slots.pbc))
    agree(slots.compute(potential, good), want, 40)


def test_a_step_that_was_not_finished_is_dropped(gpu, models):
    """Another force of OpenMM may raise between the two halves."""
    slots = Slots(SYSTEMS["skewed"]())
    potential = slots.potential(gpu, models["zbl"], "float64")
    host = gpu.GpuPotential(str(models["zbl"]), dtype="float64")
    for seed in range(3):
        gpu.set_schedule(seed)
        other = slots.arrays(slots.positions + 0.1 * slots.rng.random((40, 3)), "double")
        given, rest, order, before, _ = other
        potential.start(given, rest, order, slots.cell, True, True, before)
        arrays = slots.arrays(slots.positions, "double")
        want = compute(host, (slots.numbers, arrays[-1], slots.cell, slots.pbc))
        agree(slots.compute(potential, arrays), want, 40)


def test_unknown_elements_are_refused(gpu, models):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    assert 92 not in ELEMENTS
    slots = Slots((np.where(np.arange(40) == 3, 92, numbers), positions, cell, pbc))
    potential = slots.potential(gpu, models["zbl"], "float64")
    with pytest.raises(InputError, match="U"):
        slots.compute(potential, slots.arrays(positions, "double"))


def test_same_bits_under_every_schedule(gpu, models):
    results = []
    for seed in range(4):
        gpu.set_schedule(seed)
        slots = Slots(SYSTEMS["skewed"]())
        potential = slots.potential(gpu, models["odd"], "float32")
        arrays = [slots.arrays(slots.positions, "single") for _ in range(3)]
        results.append([slots.compute(potential, one) for one in arrays])
    for other in results[1:]:
        for (energy, forces), (energy_0, forces_0) in zip(other, results[0], strict=True):
            assert energy == energy_0
            assert np.array_equal(forces, forces_0)


def test_what_crosses_the_bus(gpu, models):
    """The cell up; sums and the state of the list down; one wait a step, and two kernels more."""
    slots = Slots(SYSTEMS["skewed"]())
    potential = slots.potential(gpu, models["odd"], "float32")
    arrays = [slots.arrays(slots.positions, "single") for _ in range(5)]
    for one in arrays[:2]:
        slots.compute(potential, one)
    gpu.reset_counters()
    for one in arrays[2:]:
        slots.compute(potential, one)
    counters = gpu.counters()
    assert counters["launches"]["gather_particles<float>"] == 3
    assert counters["launches"]["add_particle_forces"] == 3
    ours = 3 * (slots.stride * (4 * 4 + 4 + 3 * 8))  # of this test: positions, slots, forces
    assert counters["bytes_to_device"] <= ours + 3 * 512
    assert counters["bytes_to_host"] <= 3 * (3 * 8 * slots.stride) + 3 * 1024
