"""Data that is streamed, of several files, and batches by atoms: the same numbers as ever."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import TINY, emt_crystals, emt_molecules, tiny_config, write

from mlff_distiller.config import DataConfig, TrainConfig, TrainingConfig, from_dict, to_dict
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, collate, write_structures
from mlff_distiller.data.batch import NeighborMemory
from mlff_distiller.data.frames import DataFiles, Frames, open_files, weighted_files
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.errors import InputError
from mlff_distiller.training import Hooks, train
from mlff_distiller.training import batches as batches_module
from mlff_distiller.training import statistics as statistics_module
from mlff_distiller.training import trainer as trainer_module
from mlff_distiller.training.batches import Ahead, Loader, Plan, default_atoms
from mlff_distiller.training.reference import ReferenceFit, fit_reference_energies
from mlff_distiller.training.setup import load_data
from mlff_distiller.training.statistics import Statistics


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(24))


@pytest.fixture
def small_windows(monkeypatch):
    """Six frames are shuffled at once, in blocks of three."""
    monkeypatch.setattr(batches_module, "WINDOW", 6)
    monkeypatch.setattr(batches_module, "_BLOCKS", 2)


def streamed(path: object, memory: float = 0.0, **training: object) -> TrainConfig:
    config = tiny_config(Path("unused"), batch_size=4, max_epochs=3, **training)
    plain = path if isinstance(path, (list, dict)) else str(path)
    return replace(config, data=DataConfig(path=plain, memory=memory))


def weights(output: Path) -> list[torch.Tensor]:
    content = torch.load(output / "last.ckpt", weights_only=True)
    moments = content["training"]["optimizer"]["state"]
    parts = [content["model"], content["training"]["student"], *(moments[k] for k in moments)]
    return [v for part in parts for v in part.values()]


def assert_same(one: Path, other: Path) -> None:
    pairs = list(zip(weights(one), weights(other), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)


# -- streaming -----------------------------------------------------------------------------------


def test_streaming_equals_training_in_memory_bit_for_bit(data, tmp_path, small_windows, capfd):
    train(streamed(data), tmp_path / "streamed", progress=True)
    assert (
        "read in blocks while training goes on: more than data.memory = 0" in capfd.readouterr().err
    )
    train(streamed(data, 1.0), tmp_path / "held", progress=True)
    assert "read in blocks" not in capfd.readouterr().err
    assert_same(tmp_path / "streamed", tmp_path / "held")


@pytest.mark.parametrize("steps", [2, 5, 11])
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(
    data, tmp_path, small_windows, steps
):
    train(streamed(data), tmp_path / "whole", progress=False)

    class Stopping(Hooks):
        def after_step(self, run, loss):
            if run.step == steps:
                run.stop()

    with pytest.raises(KeyboardInterrupt):
        train(streamed(data), tmp_path / "run", hooks=Stopping(), progress=False)
    # Where frames lie does not matter for going on either.
    train(streamed(data, 1.0), tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_was_killed_within_an_epoch_goes_on_from_there(data, tmp_path, monkeypatch):
    train(streamed(data), tmp_path / "whole", progress=False)
    monkeypatch.setattr(trainer_module, "_SAVE_WITHIN", 0.0)

    class Killed(BaseException):
        pass

    class Killing(Hooks):
        def before_step(self, run):
            if run.step == 7:
                raise Killed

    with pytest.raises(Killed):
        train(streamed(data), tmp_path / "run", hooks=Killing(), progress=False)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["training"]
    assert (state["epoch"], state["step"]) == (1, 7)
    assert state["batch"] == 2
    train(streamed(data), tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_two_processes_see_the_batches_of_one(data, tmp_path):
    for devices, name in ((1, "one"), (2, "two")):
        config = streamed(data, devices=devices, precision="float64")
        train(config, tmp_path / name, progress=False)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_order_is_random_and_covers_every_frame_once(small_windows):
    sizes = np.full(50, 4)
    plan = Plan(sizes, TrainingConfig(batch_size=4, seed=3))
    orders = [plan.order(epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3
    assert np.array_equal(plan.order(1), orders[1])
    # No more than two blocks of three are open at a time.
    assert all(len(np.unique(order[k : k + 6] // 3)) <= 4 for order in orders for k in (0, 6, 12))
    assert np.abs(np.diff(orders[0])).mean() > 5
    batches = plan.epoch(0)
    assert np.array_equal(np.concatenate(batches), orders[0])
    assert len(batches) == plan.batches_per_epoch == 13


def test_memory_stays_flat_while_frames_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "WINDOW", 128)
    # What frames take, without the time of their neighbour lists.
    monkeypatch.setattr(batches_module, "collate", lambda frames, *rest: len(frames))
    frames = emt_crystals(1)
    rng = np.random.default_rng(0)
    with HDF5Writer(tmp_path / "a.h5", teacher="emt") as writer:
        for _ in range(6):
            moved = [
                replace(frames[0], positions=frames[0].positions + rng.normal(0, 0.1, (4, 3)))
                for _ in range(500)
            ]
            writer.append(moved)
    store_splits(
        tmp_path / "a.h5",
        {"train": np.arange(3000), "valid": np.array([], int), "test": np.array([], int)},
    )

    def peak(memory: float) -> int:
        gc.collect()
        tracemalloc.start()
        files = DataFiles({str(tmp_path / "a.h5"): 1.0}, memory)
        found = files.frames("train")
        plan = Plan(found.sizes, TrainingConfig())
        loader = Loader(found, TINY.cutoff, torch.float32, plan.window, NeighborMemory(0.0))
        with loader.batches(plan.epoch(0)) as batches:
            seen = sum(batches)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == 3000
        return most

    # A window of 128 frames, blocks of the file and some batches; not a tenth of all frames more.
    few, all_of_them = peak(0.0), peak(2.0**30)
    assert few < 2e6
    assert all_of_them > 2.5 * few


# -- reading in blocks ---------------------------------------------------------------------------


def test_frames_read_in_blocks_are_those_read_one_by_one(tmp_path):
    frames = emt_crystals(20) + emt_molecules(12)
    frames[3] = frames[3].with_labels(frames[3].energy)
    frames[4] = frames[4].with_labels(None)
    frames[5] = replace(frames[5], fixed=np.eye(4, 3, dtype=bool), info={"group": "a"})
    path = tmp_path / "a.h5"
    writer = HDF5Writer(path, teacher="emt")
    writer.append(frames)
    order = np.random.default_rng(1).permutation(32)
    in_journal = HDF5Dataset(path, in_memory=False).take(order)  # not merged yet
    writer.close()
    held, read = HDF5Dataset(path, in_memory=True), HDF5Dataset(path, in_memory=False)
    for found in (in_journal, read.take(order), read.take([7, 7, 0]), held.take(order)):
        places = order if len(found) == 32 else [7, 7, 0]
        for i, s in zip(places, found, strict=True):
            for name in ("atomic_numbers", "positions", "cell", "pbc", "forces", "stress", "fixed"):
                expected = getattr(frames[i], name)
                assert (getattr(s, name) is None) == (expected is None), name
                np.testing.assert_array_equal(getattr(s, name), expected)
            assert (s.energy, s.info) == (frames[i].energy, frames[i].info)
    assert read.labelled().tolist() == [i != 4 for i in range(32)]
    assert read.hash() == held.hash()


def test_a_bad_frame_is_named_when_its_block_is_read(tmp_path):
    path = write(tmp_path / "a.h5", emt_crystals(12))
    import h5py

    from mlff_distiller.data import sums

    sums.strip(path)
    with h5py.File(path, "r+") as file:
        file["structures/positions"][4 * 7 + 1, 2] = np.nan
    with pytest.raises(InputError, match=r"a.h5, structure 7: positions must be finite.*atom 1"):
        load_data(streamed(path), TINY.cutoff)


# -- several files -------------------------------------------------------------------------------


def two_files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "a.h5", emt_crystals(16)),
        write(tmp_path / "b.h5", emt_crystals(8, seed=1)),
    )


def test_files_are_used_together_with_their_splits_and_weights(tmp_path):
    a, b = two_files(tmp_path)
    found = load_data(streamed({str(a): 0.5, str(b): 2.0}, 1.0), TINY.cutoff)
    splits = [HDF5Dataset(path).splits for path in (a, b)]
    assert found.train.counts == [len(s["train"]) for s in splits] == [12, 6]
    assert len(found.valid) == sum(len(s["valid"]) for s in splits) == 6
    expected = HDF5Dataset(b).subset("train")[2]
    np.testing.assert_array_equal(found.train[12 + 2].positions, expected.positions)
    plan = Plan(found.train.sizes, TrainingConfig(), found.train.counts, found.files.weights)
    orders = [plan.order(epoch) for epoch in range(4)]
    for order in orders:
        times = np.bincount(order, minlength=18)
        assert times[12:].tolist() == [2] * 6
        assert times[:12].sum() == 6
        assert times[:12].max() == 1
    # Which half of a file is shown changes.
    assert len({tuple(sorted(order)) for order in orders}) > 1
    assert {place for order in orders for place in order} >= set(range(10))


def test_the_hash_covers_all_files_and_weights(tmp_path):
    a, b = two_files(tmp_path)
    paths: list[object] = [str(a), [str(a), str(b)], [str(b), str(a)], {str(a): 1, str(b): 0.5}]
    hashes = [load_data(streamed(p), TINY.cutoff).metadata["data_hash"] for p in paths]
    assert hashes[0] == HDF5Dataset(a).hash()
    assert len(set(hashes)) == 4
    train(streamed(paths[1]), tmp_path / "run", progress=False)
    with pytest.raises(
        InputError, match=r"was trained on other data than .*a\.h5.*; give the same"
    ):
        train(streamed(paths[3]), tmp_path / "run", resume=True, progress=False)
    with HDF5Writer(b, teacher="emt") as writer:
        writer.append(emt_crystals(12, seed=5))
    with pytest.raises(InputError, match="was trained on other data"):
        train(streamed(paths[1]), tmp_path / "run", resume=True, progress=False)


def test_labels_of_several_teachers_are_named(tmp_path):
    a, _ = two_files(tmp_path)
    c = tmp_path / "c.h5"
    with HDF5Writer(c, teacher="lj") as writer:
        writer.append(emt_crystals(8, seed=2))
    found = load_data(streamed([str(a), str(c)]), TINY.cutoff)
    (note,) = [n for n in found.notes if "teachers" in n]
    assert note.startswith("warning: ")
    assert f"{a}: emt, {c}: lj" in note
    assert found.metadata["teacher"] == "emt + lj"


def test_bad_lists_of_files_are_named(tmp_path):
    a, b = two_files(tmp_path)

    def message(path: object) -> str:
        with pytest.raises(InputError) as error:
            load_data(streamed(path), TINY.cutoff)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "gone.h5 of which there is no such file" in message([str(a), str(tmp_path / "gone.h5")])
    assert "gone.h5 must be an HDF5 file, got no such file" in message(tmp_path / "gone.h5")
    os.symlink(a, tmp_path / "link.h5")
    assert "once, got" in message([str(a), str(tmp_path / "link.h5")])
    with pytest.raises(InputError, match=r"each once, got \['a.h5', 'a.h5'\]"):
        DataConfig(path=["a.h5", "a.h5"])
    with pytest.raises(InputError, match="at least one file"):
        DataConfig(path=[])
    for weight in (0.0, -1.0):
        with pytest.raises(InputError, match=r"the weight of a\.h5 must be finite and > 0"):
            DataConfig(path={"a.h5": weight})
    with pytest.raises(InputError, match=r"path\['a\.h5'\] must be finite"):
        DataConfig(path={"a.h5": float("nan")})
    with pytest.raises(InputError, match=r"data.path\[a.h5\]|data.path\['a.h5'\]"):
        from_dict(DataConfig, {"path": {"a.h5": "much"}}, "data")
    # An element that only the validation split of another file has.
    c = write(tmp_path / "c.h5", emt_molecules(2), valid=0.0)
    none = np.array([], int)
    store_splits(c, {"train": none, "valid": np.array([0, 1]), "test": none})
    assert "validation split holds H, C, O" in message([str(a), str(c)])
    store_splits(c, {"train": none, "valid": none, "test": np.array([0, 1])})
    assert f"{c} has an empty training split of 2 structures" in message([str(a), str(c)])
    assert f"{c} has an empty training split of 2 structures" in message(c)
    bare = tmp_path / "bare.h5"
    write_structures(bare, [s.with_labels(None) for s in emt_crystals(3)])
    assert f"{bare} must hold labels/energy" in message([str(b), str(bare)])


def test_a_file_that_changes_between_epochs(tmp_path):
    path = write(tmp_path / "a.h5", emt_crystals(16))

    class Changing(Hooks):
        def __init__(self, change):
            self.change = change

        def after_epoch(self, run, row):
            if run.epoch == 1:
                self.change()

    # Ours are replaced: what is open stays as it was.
    def grow() -> None:
        with HDF5Writer(path, teacher="emt") as writer:
            writer.append(emt_crystals(4, seed=3))

    shutil.copy(path, tmp_path / "b.h5")
    train(streamed(tmp_path / "b.h5"), tmp_path / "plain", progress=False)
    train(streamed(path), tmp_path / "grown", hooks=Changing(grow), progress=False)
    assert_same(tmp_path / "plain", tmp_path / "grown")

    def overwrite() -> None:
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"x")

    with pytest.raises(InputError, match=r"a.h5 must stay as it is while training reads it"):
        train(streamed(path), tmp_path / "run", hooks=Changing(overwrite), progress=False)
    assert (tmp_path / "run" / "best.ckpt").exists()


def test_files_on_a_command_line_and_in_yaml(tmp_path):
    assert weighted_files([]) is None
    assert weighted_files(["a.h5"]) == "a.h5"
    assert weighted_files(["a.h5", "b.h5"]) == ["a.h5", "b.h5"]
    assert weighted_files(["a.h5", "b.h5=0.2"]) == {"a.h5": 1.0, "b.h5": 0.2}
    odd = tmp_path / "a=2"
    odd.touch()
    assert weighted_files([str(odd), "b=c.h5"]) == [str(odd), "b=c.h5"]
    with pytest.raises(InputError, match=r"each file once, got a.h5 twice"):
        weighted_files(["a.h5", "a.h5=2"])
    for path in ("a.h5", ["a.h5", "b.h5"], {"a.h5": 1, "b.h5": 0.2}):
        config = from_dict(TrainConfig, {"data": {"path": path}})
        assert from_dict(TrainConfig, to_dict(config)) == config
    assert config.data.files == {"a.h5": 1.0, "b.h5": 0.2}


def test_weighted_files_train_from_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from mlff_distiller.cli import app
    from mlff_distiller.students.export import export_run

    a, b = two_files(tmp_path)
    run = tmp_path / "run"
    arguments = ["train", "--data", str(a), "--data", f"{b}=0.5", "-o", str(run), "--json"]
    config = tmp_path / "t.yaml"
    config.write_text(
        "model: {hidden_dim: 8, num_interactions: 2, num_rbf: 6, cutoff: 3.4}\n"
        "training: {max_epochs: 1, threads: 1, tensorboard: false}\n"
    )
    result = CliRunner().invoke(app, [*arguments, str(config)])
    assert result.exit_code == 0, result.output
    metadata = export_run(run, tmp_path / "s.pt")
    assert metadata["num_train"] == 18
    assert "uncertainty" in metadata  # fitted to both files


# -- statistics ----------------------------------------------------------------------------------


def test_one_pass_finds_the_same_as_the_parts_and_is_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", emt_crystals(24))
    held = load_data(streamed(path, 1.0), TINY.cutoff)
    assert not list(tmp_path.glob(".*statistics"))
    first = load_data(streamed(path), TINY.cutoff)
    assert first.metadata == held.metadata
    elements = held.elements
    energies = fit_reference_energies(list(held.train), elements)
    np.testing.assert_allclose(first.statistics.fit.solve(elements), energies, rtol=1e-12)
    forces = np.concatenate([s.forces for s in held.train])
    assert held.statistics.force_rms == pytest.approx(np.sqrt((forces**2).mean()))
    assert held.statistics.num_atoms == 4 * len(held.train)
    batch = collate(list(held.train), TINY.cutoff)
    assert held.statistics.num_edges == batch.edge_index.shape[1]
    assert held.statistics.num_stress == len(held.train)

    calls = []
    real = statistics_module._Pass.run

    def run(self):
        calls.append(self.data.path)
        real(self)

    monkeypatch.setattr(statistics_module._Pass, "run", run)
    (kept,) = tmp_path.glob(".*statistics")
    again = load_data(streamed(path), TINY.cutoff)
    assert not calls
    assert again.metadata == first.metadata
    assert again.statistics.state() == first.statistics.state()
    assert isinstance(again.statistics, Statistics)
    load_data(streamed(path), TINY.cutoff + 0.5)  # another cutoff
    assert len(calls) == 1
    kept.write_text("{")
    load_data(streamed(path), TINY.cutoff)
    assert len(calls) == 2
    with HDF5Writer(path, teacher="emt") as writer:
        writer.append(emt_crystals(2, seed=9))
    changed = load_data(streamed(path), TINY.cutoff)
    assert len(calls) == 3
    assert changed.metadata["data_hash"] != first.metadata["data_hash"]


def test_a_fit_of_many_compositions_in_pieces_is_least_squares(monkeypatch):
    monkeypatch.setattr("mlff_distiller.training.reference._COMPOSITIONS", 8)
    rng = np.random.default_rng(0)
    elements = [1, 6, 8, 14]
    true = np.array([-13.6, -1000.5, -2040.25, -7800.0])
    fit, rows, targets = ReferenceFit(), [], []
    for _ in range(300):
        counts = rng.integers(0, 6, 4)
        counts[0] += 1
        energy = float(counts @ true + counts.sum() * rng.normal(-3.0, 0.1))
        fit.add(np.repeat(elements, counts), energy)
        rows.append(counts / counts.sum())
        targets.append(energy / counts.sum())
    expected = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    np.testing.assert_allclose(fit.solve(elements), expected, rtol=1e-9)
    assert fit.undetermined() == []
    restored = ReferenceFit.restored(fit.state())
    assert restored.solve(elements).tolist() == fit.solve(elements).tolist()
    # Two elements that always come together leave their difference open, whatever the pieces.
    fit = ReferenceFit()
    for _ in range(100):
        n, m = rng.integers(1, 9, 2)
        fit.add(np.repeat([1, 1, 8, 14], [n, n, n, m]), -3.0 * (3 * n + m))
    assert fit.undetermined() == [1, 8]
    assert np.abs(fit.solve([1, 8, 14])).max() < 5.0


def test_reference_energies_that_scatter_alone_decides_stay_small():
    """Compositions that differ by a vacancy in 500 atoms: the slope between them is noise."""
    rng = np.random.default_rng(0)
    fit = ReferenceFit()
    for i in range(40):
        counts = [250, 250 - i % 2]
        fit.add(np.repeat([11, 17], counts), sum(counts) * (-3.0 + rng.normal(0.0, 0.02)))
    energies = fit.solve([11, 17])
    assert np.abs(energies + 3.0).max() < 0.1
    assert fit.undetermined() == [11, 17]
    # A difference that stands out of the scatter is kept.
    fit = ReferenceFit()
    for i in range(40):
        counts = [250, 250 - i % 2]
        total = 250 * -4400.0 + counts[1] * -12500.0
        fit.add(np.repeat([11, 17], counts), total + sum(counts) * rng.normal(-3.0, 0.02))
    assert fit.solve([11, 17]) == pytest.approx([-4400.0, -12500.0], abs=30.0)
    assert fit.undetermined() == []


# -- batches -------------------------------------------------------------------------------------


def test_batches_by_atoms_are_of_nearly_equal_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 60, 500)
    plan = Plan(sizes, TrainingConfig(batch_atoms=200))
    batches = plan.epoch(0)
    assert len(batches) == plan.batches_per_epoch == -(-sizes.sum() // 200)
    atoms = np.array([sizes[b].sum() for b in batches])
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert atoms.max() <= 200 + 60
    assert atoms.min() >= 200 - 80
    assert all(len(plan.epoch(e)) == plan.batches_per_epoch for e in range(5))
    # Frames larger than a batch are batches of their own, and none is empty.
    mixed = np.array([2] * 20 + [500] * 5)
    batches = Plan(mixed, TrainingConfig(batch_atoms=100)).epoch(0)
    assert min(len(b) for b in batches) == 1
    assert sorted(np.concatenate(batches)) == list(range(25))
    assert len(Plan(np.array([500] * 3), TrainingConfig(batch_atoms=1)).epoch(0)) == 3


def test_the_default_batch_fits_molecules_and_large_cells():
    assert default_atoms(9.0) == 72
    assert default_atoms(64.0) == 512
    assert default_atoms(500.0) == 512
    for size, structures in ((1, 8), (9, 8), (64, 8), (216, 2), (500, 1), (4000, 1)):
        lengths = [len(b) for b in Plan(np.full(96, size), TrainingConfig()).epoch(0)]
        assert max(lengths) <= structures + 1
        assert np.mean(lengths) <= structures + 0.5
    with pytest.raises(InputError, match="batch_size and batch_atoms exclude each other"):
        TrainingConfig(batch_size=4, batch_atoms=100)


def test_validation_batches_keep_to_the_limit():
    plan = Plan(np.full(10, 9), TrainingConfig(batch_atoms=40))
    sizes = np.array([9, 9, 9, 30, 50, 9, 1])
    assert [b.tolist() for b in plan.in_order(sizes)] == [[0, 1, 2], [3], [4], [5, 6]]
    plan = Plan(np.full(10, 9), TrainingConfig(batch_size=3))
    assert [b.tolist() for b in plan.in_order(sizes)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_neighbour_lists_beyond_their_memory_are_built_again(data, tmp_path):
    frames = emt_crystals(3)
    memory = NeighborMemory(float("inf"))
    size = sum(t.numel() * 4 for t in (collate(frames[:1], 3.4).edge_index,)) * 5 // 2
    memory = NeighborMemory(1.5 * size)
    from mlff_distiller.data.batch import _CACHE

    fresh = emt_crystals(3)
    batch = collate(fresh, TINY.cutoff, memory=memory)
    assert [bool(_CACHE.get(s)) for s in fresh] == [True, False, False]
    again = collate(fresh, TINY.cutoff, memory=memory)
    assert torch.equal(batch.edge_index, again.edge_index)
    for limit in (0.0, 1.0):
        config = streamed(data, 1.0)
        config = replace(config, data=replace(config.data, neighbor_memory=limit))
        train(config, tmp_path / str(limit), progress=False)
    assert_same(tmp_path / "0.0", tmp_path / "1.0")


def test_errors_of_the_worker_are_raised_where_batches_are_taken():
    def numbers():
        yield 1
        raise InputError("bad")

    found = []
    with pytest.raises(InputError, match="bad"), Ahead(numbers, 2) as ahead:
        found.extend(ahead)
    assert not found or found == [1]

    def endless():
        while True:
            yield 0

    with Ahead(endless, 2) as ahead:
        assert next(iter(ahead)) == 0
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_frames_behave_as_a_sequence(data):
    files = open_files({str(data): 1.0}, 0.0, 0.1, 0.1, 0)
    frames = files.frames("train")
    assert isinstance(frames, Frames)
    assert isinstance(frames[0], Structure)
    assert len(list(frames)) == len(frames) == len(frames.sizes)
    np.testing.assert_array_equal(frames[-1].positions, list(frames)[-1].positions)
    assert len(frames[::5]) == -(-len(frames) // 5)
    with pytest.raises(IndexError, match="got index 99"):
        frames[99]
