"""Neighbour lists: native = reference exactly, and both = ase, vesin, matscipy, brute force."""

from __future__ import annotations

import itertools
from collections import Counter

import ase.build
import ase.neighborlist
import matscipy.neighbours
import numpy as np
import pytest
import torch
import vesin
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlff_distiller.ops import edge_vectors, neighbor_list, neighbor_list_reference

Edge = tuple[int, int, int, int, int]  # receiver, sender, shift
BACKENDS = ("native", "reference")
scripted_reference = torch.jit.script(neighbor_list_reference)


class System:
    """A random structure. Kinds differ in what makes neighbour lists fail."""

    def __init__(self, seed: int, kind: str, pbc: tuple[bool, bool, bool]):
        rng = np.random.default_rng(seed)
        self.pbc = np.array(pbc)
        self.cutoff = float(rng.uniform(1.0, 4.0))
        n_atoms = int(rng.integers(1, 30))
        lengths = rng.uniform(3.0, 12.0, 3)
        cell = np.diag(lengths) + rng.uniform(-2.0, 2.0, (3, 3))
        if kind == "tiny":
            n_atoms = int(rng.integers(1, 4))
            cell = np.diag(rng.uniform(1.0, 1.8, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
        elif kind == "skewed":  # the same lattice, described badly
            cell[1] += int(rng.integers(-4, 5)) * cell[0]
            cell[2] += int(rng.integers(-3, 4)) * cell[1]
        elif kind == "flat":
            cell = np.diag([lengths[0], lengths[1], 1.5])
        if np.linalg.det(cell) < 0:
            cell[2] *= -1
        self.cell = cell
        self.positions = rng.uniform(0.0, 1.0, (n_atoms, 3)) @ cell
        if kind == "outside":
            self.positions += rng.integers(-3, 4, (n_atoms, 3)) @ cell
            self.positions += rng.normal(scale=5.0, size=3)

    def edges(self, backend: str, dtype: torch.dtype = torch.float64) -> list[Edge]:
        """Edges in the order of the list."""
        edge_index, shifts = neighbor_list(
            torch.tensor(self.positions, dtype=dtype),
            torch.tensor(self.cell, dtype=dtype),
            torch.tensor(self.pbc),
            self.cutoff,
            backend=backend,
        )
        senders, receivers = edge_index.numpy()
        return to_edges(receivers, senders, shifts.numpy())

    def doubtful(self, edge: Edge) -> bool:
        """True within rounding of the cutoff, where another program may decide otherwise."""
        i, j, *shift = edge
        vector = self.positions[j] - self.positions[i] + np.array(shift) @ self.cell
        return abs(np.linalg.norm(vector) - self.cutoff) < 1e-9


def to_edges(receivers: NDArray, senders: NDArray, shifts: NDArray) -> list[Edge]:
    return list(zip(receivers.tolist(), senders.tolist(), *shifts.T.tolist(), strict=True))


def from_ase(s: System) -> list[Edge]:
    return to_edges(
        *ase.neighborlist.primitive_neighbor_list("ijS", s.pbc, s.cell, s.positions, s.cutoff)
    )


def from_vesin(s: System) -> list[Edge]:
    lists = vesin.NeighborList(cutoff=s.cutoff, full_list=True)
    return to_edges(*lists.compute(s.positions, s.cell, s.pbc, quantities="ijS"))


def from_matscipy(s: System) -> list[Edge]:
    return to_edges(
        *matscipy.neighbours.neighbour_list(
            "ijS", positions=s.positions, cell=s.cell, pbc=s.pbc, cutoff=s.cutoff
        )
    )


def from_brute_force(s: System) -> list[Edge]:
    """Every pair, every image that the dual vectors allow; no cells, no wrapping."""
    inverse = np.linalg.inv(s.cell)
    spread = np.ptp(s.positions @ inverse, axis=0)
    reach = np.ceil(s.cutoff * np.linalg.norm(inverse, axis=0) + spread).astype(int) * s.pbc
    edges = []
    for shift in itertools.product(*(range(-m, m + 1) for m in reach)):
        images = s.positions + np.array(shift) @ s.cell
        distances = np.linalg.norm(images[None] - s.positions[:, None], axis=2)
        for i, j in zip(*np.nonzero(distances < s.cutoff), strict=True):
            if i != j or any(shift):
                edges.append((int(i), int(j), *shift))
    return edges


ORACLES = {
    "ase": from_ase,
    "vesin": from_vesin,
    "matscipy": from_matscipy,
    "brute_force": from_brute_force,
}
systems = st.builds(
    System,
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["plain", "tiny", "skewed", "flat", "outside"]),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


@pytest.mark.parametrize("oracle", ORACLES)
@settings(max_examples=100, deadline=None)
@given(system=systems)
def test_native_finds_the_edges_of_others(oracle, system):
    ours = Counter(e for e in system.edges("native") if not system.doubtful(e))
    theirs = Counter(e for e in ORACLES[oracle](system) if not system.doubtful(e))
    assert ours == theirs


@settings(max_examples=150, deadline=None)
@given(system=systems)
def test_native_is_reference_edge_by_edge(system):
    native = system.edges("native")
    assert native == system.edges("reference")
    assert native == sorted(native)
    assert len(set(native)) == len(native)
    reverse = sorted((j, i, -a, -b, -c) for i, j, a, b, c in native)
    assert native == reverse, "the list must be symmetric without exception"


@settings(max_examples=30, deadline=None)
@given(system=systems)
def test_float32_positions(system):
    assert system.edges("native", torch.float32) == system.edges("reference", torch.float32)


@settings(max_examples=15, deadline=None)
@given(system=systems)
def test_scripted_reference_and_small_chunks(system):
    args = (torch.tensor(system.positions), torch.tensor(system.cell), torch.tensor(system.pbc))
    expected = neighbor_list_reference(*args, system.cutoff)
    for found in (
        scripted_reference(*args, system.cutoff),
        neighbor_list_reference(*args, system.cutoff, max_candidates=100),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_moving_atoms_by_lattice_vectors_changes_shifts_only(seed):
    system = System(seed, "plain", (True, True, True))
    cell = torch.tensor(system.cell)
    inside = torch.tensor(system.positions)
    moves = torch.tensor(np.random.default_rng(seed).integers(-5, 6, inside.shape))
    outside = inside + moves.to(cell.dtype) @ cell
    pbc = torch.tensor([True, True, True])
    edge_index, shifts = neighbor_list(inside, cell, pbc, system.cutoff)
    moved_index, moved_shifts = neighbor_list(outside, cell, pbc, system.cutoff)
    vectors = edge_vectors(inside, cell, edge_index, shifts)
    assert (torch.linalg.norm(vectors, dim=1) < system.cutoff + 1e-9).all()
    expected_shifts = shifts - moves[edge_index[0]] + moves[edge_index[1]]
    # Order of shifts within one (receiver, sender) is kept: all of them move alike.
    torch.testing.assert_close(moved_index, edge_index, rtol=0, atol=0)
    torch.testing.assert_close(moved_shifts, expected_shifts, rtol=0, atol=0)


def build(atoms: ase.Atoms, cutoff: float, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    return neighbor_list(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        cutoff,
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
class TestSpecialCases:
    def test_no_atoms(self, backend):
        edge_index, shifts = neighbor_list(
            torch.zeros(0, 3), torch.eye(3), torch.tensor([True] * 3), 5.0, backend=backend
        )
        assert edge_index.shape == (2, 0)
        assert shifts.shape == (0, 3)
        assert edge_index.dtype == shifts.dtype == torch.int64

    def test_one_atom_in_the_open(self, backend):
        edge_index, shifts = neighbor_list(
            torch.ones(1, 3), torch.zeros(3, 3), torch.tensor([False] * 3), 5.0, backend=backend
        )
        assert edge_index.shape == (2, 0)
        assert shifts.shape == (0, 3)

    def test_one_atom_sees_its_images(self, backend):
        atoms = ase.Atoms("Po", cell=np.eye(3) * 3.0, pbc=True)
        edge_index, shifts = build(atoms, 3.1, backend)
        assert edge_index.tolist() == [[0] * 6, [0] * 6]
        assert shifts.tolist() == [
            [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]
        ]  # fmt: skip

    @pytest.mark.parametrize(("cutoff", "neighbors"), [(1.0, 0), (1.0 + 1e-12, 1), (0.99, 0)])
    def test_the_cutoff_itself_is_outside(self, backend, cutoff, neighbors):
        atoms = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]])
        assert build(atoms, cutoff, backend)[0].shape[1] == 2 * neighbors

    @pytest.mark.parametrize("shells", [1, 2, 3, 4])
    def test_shells_at_exactly_the_cutoff(self, backend, shells):
        """Where rounding decides, both directions of a pair must be decided alike."""
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 1, 3)
        atoms.positions += [0.1, 7.3, -11.9]
        cutoff = 3.6 * (shells / 2) ** 0.5
        edge_index, shifts = build(atoms, cutoff, backend)
        senders, receivers = edge_index.numpy()
        edges = to_edges(receivers, senders, shifts.numpy())
        assert edges == sorted((j, i, -a, -b, -c) for i, j, a, b, c in edges)
        other = BACKENDS[1 - BACKENDS.index(backend)]
        torch.testing.assert_close(
            build(atoms, cutoff, other), (edge_index, shifts), rtol=0, atol=0
        )

    @pytest.mark.parametrize(("cutoff", "neighbors"), [(2.4, 4), (3.9, 16), (4.6, 28), (5.5, 34)])
    def test_silicon_has_the_textbook_shells(self, backend, cutoff, neighbors):
        atoms = ase.build.bulk("Si", "diamond", a=5.43)
        edge_index, _ = build(atoms, cutoff, backend)
        assert torch.bincount(edge_index[1]).tolist() == [neighbors] * 2

    def test_a_slab_needs_no_third_vector(self, backend):
        slab = ase.build.fcc111("Al", (2, 2, 3), vacuum=None)
        slab.pbc = (True, True, False)
        with_vacuum = slab.copy()
        with_vacuum.cell[2] = [0.0, 0.0, 50.0]
        slab.cell[2] = 0.0
        torch.testing.assert_close(
            build(slab, 4.0, backend), build(with_vacuum, 4.0, backend), rtol=0, atol=0
        )

    def test_extremely_skewed_cell(self, backend):
        """b + 30 a spans the same lattice as b."""
        atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6)
        skewed = atoms.copy()
        skewed.cell[1] += 30 * skewed.cell[0]
        edge_index, shifts = build(skewed, 4.5, backend)
        compact_index, compact_shifts = build(atoms, 4.5, backend)
        assert edge_index.shape == compact_index.shape
        vectors = [
            edge_vectors(torch.tensor(a.positions), torch.tensor(a.cell.array), e, s)
            for a, e, s in ((skewed, edge_index, shifts), (atoms, compact_index, compact_shifts))
        ]
        first, second = (sorted(v.numpy().round(8).tolist()) for v in vectors)
        np.testing.assert_allclose(first, second, atol=1e-7)

    def test_distant_fragments(self, backend):
        """Far apart clusters of an open system must not blow up the grid."""
        cluster = ase.build.molecule("C6H6")
        far = cluster.copy()
        far.positions += 1e6
        edge_index, _ = build(cluster + far, 3.0, backend)
        alone, _ = build(cluster, 3.0, backend)
        assert edge_index.shape[1] == 2 * alone.shape[1]

    def test_atoms_on_one_point_are_neighbours(self, backend):
        atoms = ase.Atoms("He2", positions=np.zeros((2, 3)))
        assert build(atoms, 1.0, backend)[0].tolist() == [[1, 0], [0, 1]]


def test_more_neighbours_than_one_rank_sort_takes():
    atoms = ase.build.bulk("Cu", "fcc", a=3.6)
    native, reference = (build(atoms, 12.0, backend) for backend in BACKENDS)
    assert native[0].shape[1] > 512
    torch.testing.assert_close(native, reference, rtol=0, atol=0)


def test_result_does_not_depend_on_threads():
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True) * (7, 6, 8)
    atoms.rattle(0.2, seed=3)
    atoms = atoms[np.random.default_rng(0).permutation(len(atoms))]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(build(atoms, 5.0, "native"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)
    torch.testing.assert_close(build(atoms, 5.0, "reference"), results[0], rtol=0, atol=0)


def test_results_of_earlier_calls_stay_untouched():
    """The library keeps its work buffers; what it returned must not live in them."""
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True)
    before = build(atoms, 5.0, "native")
    copies = [tensor.clone() for tensor in before]
    build(ase.build.bulk("Cu", cubic=True) * 3, 4.0, "native")
    build(ase.build.molecule("H2O"), 4.0, "native")
    for tensor, copy in zip(before, copies, strict=True):
        assert torch.equal(tensor, copy)
