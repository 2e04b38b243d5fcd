"""The native engine against autograd, finite differences and itself in other shapes."""

import numpy as np
import pytest
import torch
from support.arbiter import arbiter
from support.students import ELEMENTS, export_to, make_student
from support.systems import SYSTEMS, graph_of, random_system, water_box

from mlff_distiller.config import ModelConfig
from mlff_distiller.errors import InputError
from mlff_distiller.export import export_student
from mlff_distiller.ops.engine import NativePotential, available_isas
from mlff_distiller.students.radial import chebyshev_coefficients, chebyshev_nodes

ISAS = available_isas()
EXACT = {"dtype": "float64", "tabulate": False, "threads": 1}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("students")


@pytest.fixture(scope="module")
def small(directory):
    """A student that is quick to evaluate, with every feature on."""
    return export_to(directory, hidden_dim=24, num_interactions=3, cutoff=4.0, zbl=True)


@pytest.fixture(scope="module")
def full(directory):
    """The default size."""
    return export_to(directory, hidden_dim=128, num_interactions=3)


def close(result, expected, energy, force):
    """Energy within ``energy`` eV per atom (single atoms: three times that), forces within eV/Å."""
    n = max(1, len(expected["energies"]))
    assert np.abs(result["energies"] - expected["energies"]).max(initial=0) <= 3 * energy
    assert abs(result["energy"] - expected["energy"]) <= energy * n
    assert np.abs(result["forces"] - expected["forces"]).max(initial=0) <= force
    extent = 10.0
    assert np.abs(result["virial"] - expected["virial"]).max() <= force * extent * n


# --- against autograd --------------------------------------------------------


@pytest.mark.parametrize("rbf", ["gaussian", "bessel"])
@pytest.mark.parametrize("hidden_dim", [8, 64, 128, 256])
def test_float64_agrees_with_autograd(directory, hidden_dim, rbf):
    for depth, zbl in ((1, True), (2, False), (3, True)):
        student, path = export_to(
            directory, seed=depth, hidden_dim=hidden_dim, num_interactions=depth, rbf=rbf, zbl=zbl
        )
        potential = NativePotential(path, **EXACT)
        for system in ("molecule", "tiny") if depth < 3 else SYSTEMS:
            case = SYSTEMS[system]()
            expected = arbiter(student, *case)
            close(potential.compute(*case), expected, energy=1e-10, force=1e-10)


FORMS = {
    "paper": {"norm": "paper", "cutoff_function": "cosine"},
    "narrow": {"norm_scale": 0.05, "cutoff_exponent": 3, "rbf_per_interaction": True},
    "epsilon": {"norm": "paper", "norm_epsilon": 1e-3, "readout_dim": 40},
    "mollifier": {"cutoff_function": "mollifier", "rbf": "bessel", "rbf_per_interaction": True},
    "switch": {"cutoff_function": "switch", "cutoff_onset": 2.0, "readout_dim": 3},
    "chebyshev": {"rbf": "chebyshev", "num_rbf": 9, "rbf_per_interaction": True},
    "cut": {"zbl": True, "zbl_switched": False, "num_interactions": 1},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_network_agrees_with_autograd(directory, form, isa):
    """Norms, cutoff functions, bases per interaction, readouts, energy scales, repulsion."""
    student = make_student(
        config=ModelConfig(**{"hidden_dim": 24, "cutoff": 4.0, "num_rbf": 7, **FORMS[form]})
    )
    with torch.no_grad():
        student.painn.scales.copy_(torch.tensor([1.0, 0.6, -1.4]))
        for k, basis in enumerate(student.painn.bases):  # as if each had been trained
            for values in basis.state_dict().values():
                values *= 1.0 + 0.05 * k
    path = directory / f"form-{form}.pt"
    export_student(student, path)
    potentials = [
        (NativePotential(str(path), isa=isa, **EXACT), 1e-10, 1e-10),
        (NativePotential(str(path), isa=isa, dtype="float64", threads=1), 1e-9, 1e-6),
        (NativePotential(str(path), isa=isa, threads=1), 5e-6, 2e-5),
        (NativePotential(str(path), isa=isa, threads=1, tabulate=False), 5e-6, 2e-5),
    ]
    for name in ("molecule", "skewed", "slab"):
        case = SYSTEMS[name]()
        expected = arbiter(student, *case)
        scale = max(1.0, np.abs(expected["forces"]).max())
        for potential, energy, force in potentials:
            close(potential.compute(*case), expected, energy=energy * scale, force=force * scale)


def test_any_function_of_the_distance_can_be_a_filter(directory):
    """What is no basis of the format, here an exponential and a sine, is projected on polynomials."""
    cutoff, terms = 4.0, 32
    student = make_student(
        config=ModelConfig(hidden_dim=8, cutoff=cutoff, num_rbf=terms, rbf="chebyshev")
    )

    def functions(x):
        return torch.stack([torch.exp(-x) * torch.sin((1 + k % 6) * x) for k in range(24)], dim=1)

    values = functions(chebyshev_nodes(terms, cutoff))
    with torch.no_grad():
        for interaction in student.painn.interactions:
            interaction.filter.weight.copy_(0.3 * chebyshev_coefficients(values))
    d = torch.linspace(0.0, cutoff, 301, dtype=torch.float64)
    found = student.painn.bases[0](d) @ student.painn.interactions[0].filter.weight.T
    assert torch.allclose(found, 0.3 * functions(d), atol=1e-11, rtol=0)
    path = directory / "any.pt"
    export_student(student, path)
    case = SYSTEMS["skewed"]()
    expected = arbiter(student, *case)
    close(NativePotential(str(path), **EXACT).compute(*case), expected, energy=1e-10, force=1e-10)
    scale = max(1.0, np.abs(expected["forces"]).max())
    close(
        NativePotential(str(path), threads=1).compute(*case),
        expected,
        energy=2e-6 * scale,
        force=1e-5 * scale,
    )


@pytest.mark.parametrize("hidden_dim", [8, 64, 128, 256])
@pytest.mark.parametrize("rbf", ["gaussian", "bessel"])
def test_float32_tables_agree_with_autograd(directory, hidden_dim, rbf):
    student, path = export_to(directory, hidden_dim=hidden_dim, rbf=rbf)
    potential = NativePotential(path, threads=1)
    for make in SYSTEMS.values():
        case = make()
        expected = arbiter(student, *case)
        # Random weights reach some eV and eV/Å or more: 1e-6 and 1e-5 of the largest count, too.
        e0 = student.reference_energies[student.species(torch.as_tensor(case[0]))].numpy()
        network = max(1.0, np.abs(expected["energies"] - e0).max())
        scale = max(1.0, np.abs(expected["forces"]).max())
        close(potential.compute(*case), expected, energy=2e-6 * network, force=1e-5 * scale)


def test_float64_tables_are_finer(small):
    student, path = small
    potential = NativePotential(path, dtype="float64", threads=1)
    case = SYSTEMS["skewed"]()
    close(potential.compute(*case), arbiter(student, *case), energy=1e-9, force=1e-7)


def test_every_instruction_set_gives_the_same(small, directory):
    _, wide = export_to(directory, seed=5, hidden_dim=40, num_interactions=2)  # not a whole vector
    case = SYSTEMS["skewed"]()
    for path in (small[1], wide):
        for settings, energy, force in (
            (EXACT, 1e-11, 1e-11),
            ({"dtype": "float64", "threads": 1}, 1e-11, 1e-11),
            ({"dtype": "float32", "threads": 1}, 2e-6, 2e-5),
            ({"dtype": "float32", "tabulate": False, "threads": 1}, 2e-6, 2e-5),
        ):
            results = [NativePotential(path, isa=isa, **settings).compute(*case) for isa in ISAS]
            assert NativePotential(path, **settings).isa == ISAS[-1]
            for result in results[1:]:
                close(result, results[0], energy, force)


# --- derivatives through the engine itself -----------------------------------


@pytest.mark.parametrize("tabulate", [False, True])
def test_forces_and_virial_are_derivatives_of_the_energy(small, tabulate):
    potential = NativePotential(small[1], dtype="float64", tabulate=tabulate, threads=1)
    numbers, positions, cell, pbc = random_system(14, 5.5, distance=1.3, seed=8)
    result = potential.compute(numbers, positions, cell, pbc)

    def energy(x, box):
        return potential.compute(numbers, x, box, pbc, forces=False)["energy"]

    def slope(along, h=2e-4):
        """Fourth-order central difference of ``along(step)``."""
        return (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)

    rng = np.random.default_rng(0)
    for _ in range(6):
        shift, strain = rng.normal(size=positions.shape), rng.normal(0, 0.2, (3, 3))
        moved = slope(lambda h, shift=shift: energy(positions + h * shift, cell))
        assert moved == pytest.approx(-(result["forces"] * shift).sum(), rel=1e-9, abs=1e-7)

        def strained(h, strain=strain):
            deform = np.eye(3) + h * strain
            return energy(positions @ deform, cell @ deform)

        assert slope(strained) == pytest.approx(
            -(result["virial"] * strain).sum(), rel=1e-9, abs=1e-6
        )


def test_invariances(small):
    potential = NativePotential(small[1], **EXACT)
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    result = potential.compute(numbers, positions, cell, pbc)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    turned = potential.compute(numbers, positions @ rotation.T, cell @ rotation.T, pbc)
    assert turned["energy"] == pytest.approx(result["energy"], abs=1e-9)
    np.testing.assert_allclose(turned["forces"], result["forces"] @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(
        turned["virial"], rotation @ result["virial"] @ rotation.T, atol=1e-8
    )
    order = np.random.default_rng(2).permutation(len(numbers))
    shuffled = potential.compute(numbers[order], positions[order] + 1.7, cell, pbc)
    np.testing.assert_allclose(shuffled["forces"], result["forces"][order], atol=1e-9)
    np.testing.assert_allclose(result["forces"].sum(axis=0), 0, atol=1e-10)


def test_atom_virials_sum_to_the_virial(small):
    result = NativePotential(small[1], **EXACT).compute(*SYSTEMS["slab"](), atom_virials=True)
    np.testing.assert_allclose(result["atom_virials"].sum(axis=0), result["virial"], atol=1e-9)


# --- special systems ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_isolated_and_absent_atoms(small, dtype):
    student, path = small
    potential = NativePotential(path, dtype=dtype, threads=1)
    cell, pbc = np.eye(3) * 30.0, np.array([True] * 3)
    case = (np.array([6, 1]), np.array([[1.0, 2, 3], [15, 15, 15]]), cell, pbc)
    result = potential.compute(*case)
    assert np.abs(result["energies"] - arbiter(student, *case)["energies"]).max() < 1e-6
    assert not result["forces"].any()
    assert not result["virial"].any()
    nothing = potential.compute(np.zeros(0, int), np.zeros((0, 3)), cell, pbc)
    assert nothing["energy"] == 0
    assert nothing["forces"].shape == (0, 3)


def test_dimer_is_smooth_at_the_cutoff(small):
    student, path = small
    cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
    for tabulate in (False, True):
        potential = NativePotential(path, dtype="float64", tabulate=tabulate, threads=1)
        alone, inside, outside = (
            potential.compute(
                np.array([8, 1]), np.array([[0.0, 0, 0], [0, student.cutoff + d, 0]]), cell, pbc
            )
            for d in (1.0, -1e-6, 1e-6)
        )
        assert outside["energy"] == alone["energy"]
        assert not outside["forces"].any()
        assert abs(inside["energy"] - alone["energy"]) < 1e-10
        assert np.abs(inside["forces"]).max() < 1e-5


def test_repulsion_dominates_close_pairs(directory):
    """The ZBL pair energy by hand, with the network's own contribution subtracted."""
    student = make_student(hidden_dim=8, num_interactions=1, cutoff=3.0)
    plain = make_student(hidden_dim=8, num_interactions=1, cutoff=3.0, zbl=False)
    plain.painn.load_state_dict(student.painn.state_dict())
    energies = []
    pair = (
        np.array([8, 1]),
        np.array([[0.0, 0, 0], [0.5, 0, 0]]),
        np.zeros((3, 3)),
        np.zeros(3, bool),
    )
    for name, model in (("zbl", student), ("plain", plain)):
        export_student(model, directory / f"{name}.pt")
        energies.append(NativePotential(directory / f"{name}.pt", **EXACT).compute(*pair)["energy"])
    x = 0.5 * (8**0.23 + 1) / 0.46850
    screening = (
        0.18175 * np.exp(-3.19980 * x)
        + 0.50986 * np.exp(-0.94229 * x)
        + 0.28022 * np.exp(-0.40290 * x)
        + 0.02817 * np.exp(-0.20162 * x)
    )
    u = 0.5 / (0.66 + 0.31)
    envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    assert energies[0] - energies[1] == pytest.approx(14.399645 * 8 / 0.5 * screening * envelope)


# --- threads, repetition, lists ----------------------------------------------


def test_threads_change_rounding_only_and_repeat_exactly(full):
    case = water_box(6)  # 648 atoms: sorted, several tiles
    potentials = {t: NativePotential(full[1], threads=t) for t in (1, 2, 3)}
    results = {t: p.compute(*case) for t, p in potentials.items()}
    for threads, potential in potentials.items():
        again = potential.compute(*case)
        for key, value in results[threads].items():
            np.testing.assert_array_equal(again[key], value)  # bit by bit
        # Atomic energies do not even depend on the number of threads.
        np.testing.assert_array_equal(results[threads]["energies"], results[1]["energies"])
        np.testing.assert_allclose(results[threads]["forces"], results[1]["forces"], atol=1e-12)


def test_sorting_atoms_does_not_show(small):
    student, path = small
    numbers, positions, cell, pbc = water_box(6)
    order = np.random.default_rng(0).permutation(len(numbers))
    case = (numbers[order], positions[order], cell, pbc)
    result = NativePotential(path, **EXACT).compute(*case, atom_virials=True)
    close(result, arbiter(student, *case), energy=1e-10, force=1e-10)
    unsorted = NativePotential(path, **EXACT).compute(numbers, positions, cell, pbc)
    np.testing.assert_allclose(unsorted["forces"][order], result["forces"], atol=1e-11)


def test_list_is_kept_and_rebuilt_when_needed(small):
    student, path = small
    potential = NativePotential(path, skin=0.5, **EXACT)
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    rng = np.random.default_rng(3)
    for step in range(12):
        case = (numbers, positions, cell, pbc)
        close(potential.compute(*case), arbiter(student, *case), energy=1e-10, force=1e-10)
        positions = positions + rng.normal(0, 0.03, positions.shape)
        if step % 3 == 2:  # barostat
            strain = np.eye(3) + rng.normal(0, 0.004, (3, 3))
            positions, cell = positions @ strain, cell @ strain
    assert 1 < potential.num_builds < 12
    builds = potential.num_builds
    potential.compute(numbers[::-1].copy(), positions, cell, pbc)
    assert potential.num_builds == builds + 1  # other elements, same places
    case = (numbers, positions, cell, np.array([True, True, False]))
    close(potential.compute(*case), arbiter(student, *case), energy=1e-10, force=1e-10)


def test_memory_per_atom(full):
    case = water_box(8)
    potential = NativePotential(full[1], threads=1)
    fixed = potential.memory_bytes
    potential.compute(*case)
    held = potential.memory_bytes
    assert (held - fixed) / len(case[0]) < 40e3
    for _ in range(3):
        potential.compute(*case)
    assert potential.memory_bytes == held


# --- the table ----------------------------------------------------------------


def test_table_reports_its_error(full):
    case = SYSTEMS["skewed"]()
    for dtype, value, slope in (("float32", 1e-7, 1e-5), ("float64", 1e-10, 1e-8)):
        table = NativePotential(full[1], dtype=dtype, threads=1).table
        assert table["tabulated"]
        assert table["intervals"] >= 256
        assert table["bytes"] > 256 * 3 * 128 * 4
        assert 0 < table["value_error"] <= value
        assert 0 < table["derivative_error"] <= slope
        exact = NativePotential(full[1], dtype=dtype, tabulate=False, threads=1)
        assert not exact.table["tabulated"]
        exact.compute(*case)


# --- graphs with ghosts --------------------------------------------------------


class Rank:
    """One domain: its centres' rows first, then a ghost for every image that they see."""

    def __init__(self, engine, owned, graph, index_of_owner):
        species, offsets, senders, vectors, shifts = graph
        self.engine, self.owned = engine, owned
        self.index_of_owner = index_of_owner
        ghosts: dict[tuple, int] = {}
        local = {int(atom): i for i, atom in enumerate(owned)}
        rows, self.ghost_atoms, self.edges, counts = [], [], [], [0]
        for atom in owned:
            for e in range(offsets[atom], offsets[atom + 1]):
                key = (int(senders[e]), *map(int, shifts[e]))
                if key[0] in local and key[1:] == (0, 0, 0):
                    rows.append(local[key[0]])
                else:  # also images of own atoms
                    if key not in ghosts:
                        ghosts[key] = len(owned) + len(ghosts)
                        self.ghost_atoms.append(key[0])
                    rows.append(ghosts[key])
                self.edges.append(e)
            counts.append(len(rows))
        atoms = np.concatenate([owned, np.array(self.ghost_atoms, int)]).astype(int)
        self.edges = np.array(self.edges, int)
        engine.begin(
            species[atoms], np.array(counts), np.array(rows, np.int32), vectors[self.edges]
        )


def exchange(ranks, requests):
    """What message passing does between ranks: every ghost row from its owner's row."""
    for rank, request in zip(ranks, requests, strict=True):
        assert request["rows"].shape[0] == len(rank.owned) + len(rank.ghost_atoms)
        assert request["n_local"] == len(rank.owned)
        request["rows"][len(rank.owned) :] = np.nan  # the engine must not rely on old values
    for rank, request in zip(ranks, requests, strict=True):
        for ghost, atom in enumerate(rank.ghost_atoms):
            owner, index = rank.index_of_owner[atom]
            request["rows"][len(rank.owned) + ghost] = requests[owner]["rows"][index]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("tabulate", [False, True])
def test_domains_with_ghosts_equal_one_domain(small, num_ranks, tabulate):
    from mlff_distiller import _native

    _, path = small
    numbers, positions, cell, pbc = random_system(40, 7.0, (True, True, True), seed=9)
    graph = graph_of(numbers, positions, cell, pbc, 4.0)
    species, offsets, senders, vectors, _ = graph
    n = len(numbers)

    def new_engine():
        return _native.testing.Engine(path, dtype="float64", tabulate=tabulate)

    whole = new_engine()
    whole.begin(species, offsets, senders, vectors)
    order = []
    while (request := whole.advance()) is not None:
        order.append((request["layer"], request["backward"]))
    assert order == [(1, False), (2, False), (2, True), (1, True)]
    assert request is None

    slab = np.floor((positions @ np.linalg.inv(cell))[:, 0] % 1 * num_ranks).astype(int)
    if num_ranks == 4:
        slab[slab == 3] = 2  # an empty rank takes part in every exchange
    owners = [np.flatnonzero(slab == r) for r in range(num_ranks)]
    index_of_owner = {int(a): (r, i) for r, o in enumerate(owners) for i, a in enumerate(o)}
    ranks = [Rank(new_engine(), o, graph, index_of_owner) for o in owners]
    for layer, backward in order:
        requests = [rank.engine.advance() for rank in ranks]
        for request in requests:
            assert (request["layer"], request["backward"]) == (layer, backward)
            assert request["rows"].shape[1] * 8 <= whole.max_exchange_bytes
        exchange(ranks, requests)
    assert all(rank.engine.advance() is None for rank in ranks)

    energies, gradients = np.full(n, np.nan), np.full((len(senders), 3), np.nan)
    for rank in ranks:
        energies[rank.owned] = rank.engine.atomic_energies
        gradients[rank.edges] = rank.engine.pair_gradients
    np.testing.assert_allclose(energies, whole.atomic_energies, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradients, whole.pair_gradients, rtol=0, atol=1e-12)

    receivers = np.repeat(np.arange(n), np.diff(offsets))
    forces = np.zeros((n, 3))
    np.add.at(forces, receivers, gradients)
    np.add.at(forces, senders, -gradients)
    expected = NativePotential(path, dtype="float64", tabulate=tabulate, threads=1).compute(
        numbers, positions, cell, pbc
    )
    np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-12)


def test_rows_without_species_and_edges_in_the_skin(small):
    """Excluded atoms get no energy; edges beyond the cutoff contribute exactly nothing."""
    from mlff_distiller import _native

    _, path = small
    numbers, positions, cell, pbc = random_system(20, 7.0, (True, True, True), seed=10)
    results = []
    for cutoff, extra in ((4.0, 0), (4.9, 3)):
        species, offsets, senders, vectors, _ = graph_of(numbers, positions, cell, pbc, cutoff)
        species = np.concatenate([species, np.full(extra, -1, np.int32)])
        offsets = np.concatenate([offsets, np.full(extra, offsets[-1])])
        engine = _native.testing.Engine(path, dtype="float64")
        engine.begin(species, offsets, senders, vectors)
        while engine.advance() is not None:
            pass
        far = np.linalg.norm(vectors, axis=1) >= 4.0
        assert not engine.pair_gradients[far].any()
        assert not engine.atomic_energies[len(numbers) :].any()
        results.append((engine.atomic_energies[: len(numbers)], engine.pair_gradients[~far]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_energy_only_needs_no_adjoints(small):
    from mlff_distiller import _native

    _, path = small
    species, offsets, senders, vectors, _ = graph_of(*SYSTEMS["skewed"](), 4.0)
    engine = _native.testing.Engine(path, dtype="float64")
    requests, energies = [], []
    for gradients in (False, True):
        engine.begin(species, offsets, senders, vectors, gradients)
        count = 0
        while engine.advance() is not None:
            count += 1
        requests.append(count)
        energies.append(engine.atomic_energies)
    assert requests == [2, 4]
    np.testing.assert_array_equal(energies[0], energies[1])
    assert list(engine.elements) == list(ELEMENTS)


def test_errors_name_atoms_as_the_caller_numbers_them(tmp_path):
    """Large systems are sorted in memory; messages must not show it."""
    _, path = export_to(tmp_path, hidden_dim=8, num_interactions=1, num_rbf=4, cutoff=3.0)
    numbers, positions, cell, pbc = random_system(700, 26.0, (True, True, True), distance=0.9)
    positions[651] = positions[17] + [0.0, 0.0, 1e-6]
    with pytest.raises(InputError, match=r"atoms (17 and 651|651 and 17) are at one point"):
        NativePotential(path).compute(numbers, positions, cell, pbc)
