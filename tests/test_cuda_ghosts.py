"""Ghost atoms on a GPU, as LAMMPS has them: lists that change, graphs that need not."""

import numpy as np
import pytest
from support.cuda_models import MODELS, assert_agree, cpu, export_models
from support.cuda_module import on_the_card
from support.students import ELEMENTS
from support.systems import SYSTEMS

from mlff_distiller.errors import DeviceError, InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return export_models(tmp_path_factory.mktemp("models"))


def with_ghosts(system, reach):
    """Local atoms wrapped into the box, images within ``reach`` of it, and whose images they are."""
    _, positions, cell, pbc = system
    fractions = positions @ np.linalg.inv(cell)
    fractions -= np.floor(fractions) * pbc
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    margin = reach / heights * pbc
    counts = np.ceil(margin).astype(int)
    ghosts, owners = [], []
    for shift in np.ndindex(*(2 * counts + 1)):
        offset = np.array(shift) - counts
        if not offset.any():
            continue
        moved = fractions + offset
        inside = np.all((moved > -margin) & (moved < 1 + margin), axis=1)
        ghosts.append(moved[inside])
        owners.append(np.nonzero(inside)[0])
    owners = np.concatenate(owners).astype(np.int32)
    return np.concatenate([fractions, *ghosts]) @ cell, owners


class Plan:
    """Ghosts as another process would have them: its rows are ours, sent to ourselves.

    Args:
        n_local: rows of this process.
        owners: of the ghosts.
        remote: which of them another process has; the others are copied on the device.
    """

    def __init__(self, n_local, owners, remote):
        wanted, places = np.unique(owners[remote], return_inverse=True)
        self.order = np.random.default_rng(0).permutation(len(wanted))
        self.sources = owners.copy()
        self.sources[remote] = n_local + places
        self.sent = wanted[self.order].astype(np.int32)

    def begin(self, ghosts, n_local, species, positions, *options):
        ghosts.begin(
            n_local, species, positions, self.sources, np.zeros(0), *options,
            sent=self.sent, n_received=len(self.sent),
        )  # fmt: skip

    def swap(self, rows):
        """What MPI does."""
        assert rows["sent"].shape == rows["received"].shape
        rows["received"][self.order] = rows["sent"]


WAYS = {
    "owners": (0.0, {"graph": False}),
    "owners, graph": (0.0, {}),
    "exchange": (1.0, {}),
    "exchange, products apart": (1.0, {"fuse": False}),
    "owners and exchange": (0.5, {}),
    "exchange between devices": (1.0, {"device_exchange": True}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("label", ["skewed", "tiny", "slab"])
def test_local_and_ghost_atoms(gpu, models, label, dtype, way):
    share, options = WAYS[way]
    if on_the_card() and "device_exchange" in options:
        pytest.skip("asks the emulation: device memory that the host reaches")
    system = SYSTEMS[label]()
    n = len(system[0])
    reach = MODELS["zbl"]["cutoff"] + 0.3
    positions, owners = with_ghosts(system, reach)
    order = np.concatenate([np.arange(n), owners])
    species = np.array([ELEMENTS.index(z) for z in system[0]], np.int32)[order]
    ghosts = gpu.GpuSystem(models["zbl"], dtype=dtype, skin=0.3, **options)
    rng = np.random.default_rng(0)
    plan = Plan(n, owners, rng.random(len(owners)) < share)
    displacement = np.zeros((n, 3))
    for step in range(3):  # the list of the first step serves all
        x = positions + displacement[order]
        plan.begin(ghosts, n, species, x, step == 0, True)
        while share and (rows := ghosts.advance()):
            plan.swap(rows)
        got = ghosts.finish()
        forces, virials = np.zeros((n, 3)), np.zeros((n, 3, 3))
        np.add.at(forces, order, got["forces"])
        np.add.at(virials, order, got["atom_virials"])
        want = cpu(models["zbl"], (system[0], x[:n], system[2], system[3]))
        got = {**got, "forces": forces, "atom_virials": virials}
        assert_agree(got, want, dtype, n)
        displacement += rng.normal(scale=0.02, size=(n, 3))
    assert ghosts.num_graph_launches == (2 if way == "owners, graph" else 0)


@pytest.mark.parametrize("device_exchange", [False, True])
def test_only_rows_that_are_sent_cross_the_bus(gpu, models, device_exchange):
    """... or none, where MPI takes them from the device. No allocation after the first step."""
    system = SYSTEMS["skewed"]()
    n = len(system[0])
    positions, owners = with_ghosts(system, MODELS["zbl"]["cutoff"] + 0.3)
    species = np.array([ELEMENTS.index(z) for z in system[0]], np.int32)
    species = np.concatenate([species, species[owners]])
    plan = Plan(n, owners, owners < n // 3)
    assert 0 < len(plan.sent) < n / 2
    ghosts = gpu.GpuSystem(
        models["zbl"], dtype="float32", skin=0.3, device_exchange=device_exchange
    )
    for step in range(3):
        plan.begin(ghosts, n, species, positions, step == 0)
        if step == 1:
            gpu.reset_counters()
        exchanges, arrived = 0, 0
        while True:
            before = gpu.counters()
            rows = ghosts.advance()
            after = gpu.counters()
            down, up = (after[k] - before[k] for k in ("bytes_to_host", "bytes_to_device"))
            assert up == arrived
            if not rows:
                break
            arrived = 0 if device_exchange else rows["sent"].nbytes
            assert down == arrived
            plan.swap(rows)
            exchanges += 1
        assert exchanges == 4
        ghosts.finish()
    counters = gpu.counters()
    assert counters["device_allocations"] == counters["pinned_allocations"] == 0
    assert counters["pageable_copies"] == 0
    # Each exchange, the list, the results: one wait.
    assert counters["host_synchronisations"] == 2 * (4 + 1 + 1) - 1


def test_ghosts_without_a_source_are_refused(gpu, models):
    ((system, positions, owners),) = lists((0.3,))
    n = len(system[0])
    species = np.zeros(len(positions), np.int32)
    ghosts = gpu.GpuSystem(models["zbl"], dtype="float32", skin=0.3)
    with pytest.raises(InputError, match="sources must have shape"):
        ghosts.begin(n, species, positions, owners[1:], np.zeros(0))


def lists(steps):
    """Rows and owners of one system at lists that hold more and fewer ghosts: (system, x, owners)."""
    system = SYSTEMS["skewed"]()
    for reach in steps:
        positions, owners = with_ghosts(system, MODELS["zbl"]["cutoff"] + reach)
        yield system, positions, owners


def step(ghosts, system, positions, owners, new_list=True):
    """One step of a system whose ghosts all belong to this process, summed over images."""
    n = len(system[0])
    order = np.concatenate([np.arange(n), owners])
    species = np.array([ELEMENTS.index(z) for z in system[0]], np.int32)[order]
    ghosts.begin(n, species, positions, owners, np.zeros(0), new_list, True)
    got = ghosts.finish()
    forces, virials = np.zeros((n, 3)), np.zeros((n, 3, 3))
    np.add.at(forces, order, got["forces"])
    np.add.at(virials, order, got["atom_virials"])
    assert len(got["forces"]) == len(positions)
    return {**got, "forces": forces, "atom_virials": virials}


def test_a_graph_serves_lists_with_other_ghosts(gpu, models):
    """One is captured; the number of ghosts changes at every list, and none is captured anew."""
    ghosts = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)
    gpu.reset_counters()
    seen = set()
    for system, positions, owners in lists((0.35, 0.3, 0.4, 0.3, 0.36, 0.33)):
        want = cpu(models["zbl"], (system[0], positions[: len(system[0])], *system[2:]))
        for new_list in (True, False):
            got = step(ghosts, system, positions, owners, new_list)
            assert_agree(got, want, "float64", len(system[0]))
        seen.add(len(owners))
    assert len(seen) >= 4
    assert ghosts.num_builds == 6
    counters = gpu.counters()
    assert ghosts.num_graph_launches == counters["graph_launches"] == 11
    assert counters["graph_instantiations"] == 1
    assert counters["pageable_copies"] == 0  # owners, species and positions are page-locked
    assert counters["host_synchronisations"] <= 12 + 2 * len(seen)  # a wait a step, growing


def test_a_graph_is_updated_where_sizes_change(gpu, models):
    """Many more ghosts, then few again: the same launches, so the executable is kept."""
    ghosts = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)
    gpu.reset_counters()
    for system, positions, owners in lists((0.3, 4.0, 0.3)):
        want = cpu(models["zbl"], (system[0], positions[: len(system[0])], *system[2:]))
        for new_list in (True, False, False):
            got = step(ghosts, system, positions, owners, new_list)
            assert_agree(got, want, "float64", len(system[0]))
    counters = gpu.counters()
    assert counters["graph_instantiations"] == 1
    assert counters["graph_updates"] == 2
    assert counters["graph_launches"] == 6


def test_rows_that_are_only_there_for_the_size_change_no_bits(gpu, models):
    """After many ghosts or none before: the same numbers."""
    few, many = list(lists((0.3, 0.5)))
    fresh = step(gpu.GpuSystem(models["zbl"], dtype="float32", skin=0.3), *few)
    used = gpu.GpuSystem(models["zbl"], dtype="float32", skin=0.3)
    step(used, *many)
    again = step(used, *few)
    for key in fresh:
        assert np.array_equal(fresh[key], again[key]), key


def test_far_from_the_origin(gpu, models):
    """... lie the rows that are only there for the size, as the others do: bins stay as they are."""
    ((system, positions, owners),) = lists((0.3,))
    n = len(system[0])
    want = step(gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3), system, positions, owners)
    far = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)
    got = step(far, system, positions + np.array([4e3, -7e3, 2e3]), owners)
    assert_agree(got, want, "float32", n)


@pytest.mark.parametrize("new_list", [True, False])
def test_memory_that_runs_out_leaves_nothing_half_made(gpu, models, new_list):
    """The same step again, with a new list or not, once there is memory."""
    ((system, positions, owners),) = lists((0.3,))
    want = cpu(models["zbl"], (system[0], positions[: len(system[0])], *system[2:]))
    for share in (0.05, 0.3, 0.6, 0.9):
        before = gpu.memory_in_use()
        needed = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)
        made = gpu.memory_in_use() - before
        step(needed, system, positions, owners)
        work = gpu.memory_in_use() - before - made
        del needed
        ghosts = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)
        gpu.set_memory_limit(before + made + int(share * work))
        with pytest.raises(DeviceError, match="out of memory"):
            step(ghosts, system, positions, owners)
        gpu.set_memory_limit(0)
        got = step(ghosts, system, positions, owners, new_list)
        assert_agree(got, want, "float64", len(system[0]))
        del ghosts  # its memory counts


def test_weighted_energies_of_heat_flux(gpu, models):
    """Forces of the sum of weight times energy: checked by finite differences."""
    numbers, positions, _, _ = SYSTEMS["molecule"]()
    n = len(numbers)
    species = np.array([ELEMENTS.index(z) for z in numbers], np.int32)
    weights = np.random.default_rng(1).normal(size=n)
    system = gpu.GpuSystem(models["zbl"], dtype="float64", skin=0.3)

    def run(x, w):
        system.begin(n, species, x, np.zeros(0, np.int32), w, True)
        while system.advance():
            pass
        return system.finish()

    forces = run(positions, weights)["forces"]
    step = 1e-4
    for i, a in ((0, 0), (3, 1)):
        sums = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[i, a] += sign * step
            sums.append(weights @ run(moved, weights)["energies"])
        assert forces[i, a] == pytest.approx(-(sums[0] - sums[1]) / (2 * step), abs=1e-6)
