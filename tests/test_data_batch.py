"""Batches: neighbour lists against ASE, offsets, labels that are missing, and the cache."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list

from mlff_distiller import ops
from mlff_distiller.data import Structure, collate, neighbors_of
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import rattled

CUTOFF = 4.0


@pytest.fixture(autouse=True)
def any_backend(monkeypatch) -> None:
    """Use the pure-torch neighbour list where the package was not compiled."""
    try:
        ops.load_library()
    except InputError:
        monkeypatch.setattr(ops, "neighbor_list", ops.neighbor_list_reference)


def structures() -> list[Structure]:
    rng = np.random.default_rng(0)
    slab = fcc111("Al", (2, 2, 2))
    slab.pbc = [True, True, False]
    atoms = [molecule("CH3OH"), bulk("Si"), molecule("H"), slab, bulk("NaCl", "rocksalt", a=5.6)]
    plain = [rattled(Structure.from_atoms(a), rng, 0.05) for a in atoms]
    return [
        s.with_labels(-17_600.123456789 - i, rng.normal(size=(len(s), 3)), np.eye(3) * i)
        if i % 2
        else s
        for i, s in enumerate(plain)
    ]


def test_edges_are_those_of_ase_for_each_structure() -> None:
    inputs = structures()
    batch = collate(inputs, CUTOFF, torch.float64)
    assert batch.num_structures == 5
    assert batch.num_atoms.tolist() == [len(s) for s in inputs]
    start = 0
    senders, receivers = batch.edge_index
    for b, s in enumerate(inputs):
        i, j, shift, vector = ase_neighbor_list("ijSD", s.to_atoms(), CUTOFF)
        mine = batch.structure_index[receivers] == b
        assert torch.equal(
            batch.structure_index[senders][mine], batch.structure_index[receivers][mine]
        )
        found = {
            (int(r) - start, int(t) - start, *map(int, c))
            for t, r, c in zip(senders[mine], receivers[mine], batch.shifts[mine], strict=True)
        }
        expected = {(int(a), int(c), *map(int, d)) for a, c, d in zip(i, j, shift, strict=True)}
        assert found == expected
        assert len(i) == int(mine.sum())
        vectors = batch.positions[senders] - batch.positions[receivers]
        vectors = (vectors + batch.shifts.double() @ batch.cell[b])[mine]
        lengths = np.sort(np.linalg.norm(vector, axis=1))
        np.testing.assert_allclose(np.sort(vectors.norm(dim=1)), lengths, atol=1e-12)
        start += len(s)


def test_batching_equals_one_by_one() -> None:
    inputs = structures()
    batch = collate(inputs, CUTOFF)
    singles = [collate([s], CUTOFF) for s in inputs]
    for name in ("atomic_numbers", "positions", "cell", "pbc", "shifts", "energy", "forces"):
        together = torch.cat([getattr(b, name) for b in singles])
        assert torch.equal(getattr(batch, name), together), name
    assert batch.edge_index.shape[1] == sum(b.edge_index.shape[1] for b in singles)


def test_types_labels_and_moves() -> None:
    inputs = structures()
    batch = collate(inputs, CUTOFF)
    assert batch.positions.dtype == batch.forces.dtype == batch.stress.dtype == torch.float32
    assert batch.edge_index.dtype == batch.shifts.dtype == torch.int64
    # A total energy in float32 would be off by a meV here.
    assert batch.energy.dtype == torch.float64
    assert batch.energy[1].item() == inputs[1].energy
    assert batch.has_energy.tolist() == [False, True] * 2 + [False]
    assert torch.equal(batch.has_forces, batch.has_energy)
    assert torch.equal(batch.has_stress, batch.has_energy)
    assert not batch.forces[batch.structure_index == 0].any()
    assert torch.isfinite(batch.stress).all()
    wide = batch.to("cpu", torch.float64)
    assert wide.cell.dtype == wide.positions.dtype == torch.float64
    assert wide.atomic_numbers.dtype == torch.int64
    assert batch.to(dtype=torch.float64).to(dtype=torch.float32).energy.dtype == torch.float64
    with pytest.raises(InputError, match="at least one structure"):
        collate([], CUTOFF)


def test_neighbour_lists_are_built_once_and_die_with_their_structure(monkeypatch) -> None:
    calls = []
    build = ops.neighbor_list

    def count(*args, **kwargs):
        calls.append(args)
        return build(*args, **kwargs)

    monkeypatch.setattr(ops, "neighbor_list", count)
    (s, other) = structures()[:2]
    for _ in range(3):
        collate([s, other, s], CUTOFF)
    assert len(calls) == 2
    neighbors_of(s, CUTOFF + 1)
    assert len(calls) == 3
    alive = weakref.ref(s)
    del s
    gc.collect()
    assert alive() is None
