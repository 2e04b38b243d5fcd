"""What the optimiser really does: steps by hand, the order of the structures, the schedule."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.labelled import TINY, emt_crystals, emt_molecules, tiny_config, write

from mlff_distiller.config import DataConfig, TrainConfig, TrainingConfig
from mlff_distiller.data import HDF5Dataset, collate
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.training import evaluate, train
from mlff_distiller.training.metrics import ErrorSums, score
from mlff_distiller.training.schedule import Schedule
from mlff_distiller.training.setup import load_data, new_student


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(16))


def whole(data: Path, **training: object) -> TrainConfig:
    """All twelve frames in one batch, in float64, without averaging."""
    settings = {"batch_size": 12, "precision": "float64", "ema_decay": 0.0, "warmup_steps": 0}
    return tiny_config(data, **{**settings, **training})


def rows(output: Path) -> list[dict[str, float]]:
    with (output / "history.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def trained(config: TrainConfig, output: Path) -> dict[str, torch.Tensor]:
    """Weights after the last step, not those of the best epoch."""
    train(config, output, progress=False)
    return dict(torch.load(output / "last.ckpt", weights_only=True)["training"]["student"])


def gradients(student: StudentForceField, frames: list, settings: TrainingConfig):
    """The documented loss written out: means of squares, energies per atom."""
    batch = collate(frames, student.cutoff, torch.float64)
    found = student.compute(batch, create_graph=True)
    sizes = torch.tensor([len(s) for s in frames], dtype=torch.float64)
    labels = [torch.tensor(np.array([s.energy for s in frames]))]
    labels.append(torch.tensor(np.concatenate([s.forces for s in frames])))
    labels.append(torch.tensor(np.array([s.stress for s in frames])))
    terms = [(found["energy"] - labels[0]) / sizes]
    terms += [found["forces"] - labels[1], found["stress"] - labels[2]]
    weights = (settings.energy_weight, settings.force_weight, settings.stress_weight)
    loss = sum(w * (t**2).mean() for w, t in zip(weights, terms, strict=True))
    parameters = list(student.parameters())
    return loss.item(), torch.autograd.grad(
        loss, parameters, allow_unused=True, materialize_grads=True
    )


# -- steps by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.05, 0.0])
def test_three_steps_are_adamw_with_clipped_gradients_and_decay(data, tmp_path, limit):
    settings = {"max_epochs": 3, "weight_decay": 0.3, "gradient_clip": limit, "warmup_steps": 2}
    config = whole(data, learning_rate=0.02, final_lr_fraction=0.1, **settings)
    found = trained(config, tmp_path / "run")

    contents = load_data(config, TINY.cutoff)
    student = new_student(config, contents)
    parameters = list(student.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    losses, norms = [], []
    for step in range(3):
        loss, raw = gradients(student, contents.train, config.training)
        losses.append(loss)
        norms.append(math.sqrt(sum(float((g**2).sum()) for g in raw)))
        scale = min(1.0, limit / norms[-1]) if limit else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * step / 3))
        rate = 0.02 * (0.1 + 0.9 * cosine) * (0.5 if step == 0 else 1.0)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, raw, first, second, strict=True):
                m.mul_(0.9).add_(scale * g, alpha=0.1)
                v.mul_(0.999).add_((scale * g) ** 2, alpha=0.001)
                p.mul_(1 - rate * 0.3)
                root = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                p.sub_(rate * m / (1 - 0.9 ** (step + 1)) / root)
    assert min(norms) > 2 * limit  # clipped each time, by different factors
    assert max(norms) > 1.2 * min(norms)
    # Each epoch is one step: what its history tells is the loss before the step.
    assert [r["train_loss"] for r in rows(tmp_path / "run")] == pytest.approx(losses, rel=1e-9)
    for name, value in student.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-9)


def test_gradients_of_unequal_batches_are_means_of_their_own_labels(data, tmp_path):
    """One epoch of 8 + 4 structures: Σ over two steps of moments, with weights that stand still."""
    config = whole(data, batch_size=8, max_epochs=1, learning_rate=1e-300, weight_decay=0.0)
    config = replace(config, training=replace(config.training, gradient_clip=0.0))
    with recorded() as batches:
        train(config, tmp_path / "run", progress=False)
    contents = load_data(config, TINY.cutoff)
    student = new_student(config, contents)
    moments = [torch.zeros_like(p) for p in student.parameters()]
    for batch in batches:
        chosen = [s for s in contents.train if key_of(s.positions) in batch]
        assert len(chosen) == len(batch)
        _, found = gradients(student, chosen, config.training)
        moments = [0.9 * m + 0.1 * g for m, g in zip(moments, found, strict=True)]
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["training"]
    stored = state["optimizer"]["state"]
    for k, moment in enumerate(moments):
        torch.testing.assert_close(stored[k]["exp_avg"], moment, rtol=1e-8, atol=1e-12)


# -- the order of the structures -----------------------------------------------------------------


def key_of(positions) -> bytes:
    return np.round(np.asarray(positions), 6).tobytes()


class recorded:
    """The structures of each training batch while it lasts, as keys."""

    def __enter__(self) -> list[list[bytes]]:
        self.batches: list[list[bytes]] = []
        self.real = StudentForceField.compute
        recorder = self

        def compute(student, batch, *args, **kwargs):
            if kwargs.get("create_graph"):
                sizes = batch.num_atoms.to(torch.int64).tolist()
                parts = batch.positions.split(sizes)
                recorder.batches.append([key_of(p.double()) for p in parts])
            return recorder.real(student, batch, *args, **kwargs)

        StudentForceField.compute = compute  # type: ignore[method-assign]
        return self.batches

    def __exit__(self, *error: object) -> None:
        StudentForceField.compute = self.real  # type: ignore[method-assign]


def order_of(config: TrainConfig, output: Path) -> list[list[int]]:
    """Indices into the training split, one list for each epoch."""
    with recorded() as batches:
        train(config, output, progress=False)
    split = HDF5Dataset(config.data.path).subset("train")
    index = {key_of(s.positions): k for k, s in enumerate(split)}
    assert all(len(batch) <= config.training.batch_size for batch in batches)
    flat = [index[key] for batch in batches for key in batch]
    n = len(split)
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def test_every_epoch_shows_each_structure_once_in_an_order_of_its_own(data, tmp_path):
    config = tiny_config(data, precision="float64", batch_size=5, max_epochs=3)
    orders = order_of(config, tmp_path / "run")
    assert len(orders) == 3
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(12)]}) == 4
    seed = replace(config, training=replace(config.training, seed=1))
    others = order_of(seed, tmp_path / "other")
    assert len({tuple(order) for order in orders + others}) == 6


# -- the schedule --------------------------------------------------------------------------------


def test_warm_up_is_linear_and_ends():
    flat = {"learning_rate": 0.5, "final_lr_fraction": 1.0, "max_epochs": 2, "long_run_rate": 0.0}
    schedule = Schedule(TrainingConfig(warmup_steps=5, **flat), 10)
    found = [schedule.learning_rate(step, 0.0) for step in range(8)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5])
    assert Schedule(TrainingConfig(warmup_steps=0, **flat), 10).learning_rate(0, 0.0) == 0.5
    plateau = TrainingConfig(schedule="plateau", warmup_steps=4, **flat)
    assert Schedule(plateau, 10).learning_rate(1, 0.0) == pytest.approx(0.25)


def test_cosine_has_its_floor_and_its_middle():
    config = TrainingConfig(
        learning_rate=2.0, final_lr_fraction=0.2, max_epochs=4, warmup_steps=0, max_minutes=3.0,
        long_run_rate=0.0,
    )  # fmt: skip
    schedule = Schedule(config, 5)
    found = [schedule.learning_rate(step, 0.0) for step in (0, 5, 10, 20, 25)]
    expected = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 1, 1)]
    assert found == pytest.approx([2 * e for e in expected])
    assert schedule.progress(0, 90.0) == pytest.approx(0.5)


def test_long_runs_have_rates_that_fall_with_the_root_of_the_steps():
    config = TrainingConfig(
        learning_rate=1.0, warmup_steps=0, final_lr_fraction=1.0, max_epochs=10, long_run_rate=2.0
    )
    rates = [Schedule(config, 10).learning_rate(step, 0.0) for step in range(16)]
    assert rates[:4] == [1.0] * 4
    assert rates[4:] == pytest.approx([2 / (k + 1) ** 0.5 for k in range(4, 16)])
    slower = Schedule(replace(config, learning_rate=0.6), 10)
    assert [slower.learning_rate(k, 0.0) for k in (8, 15)] == [0.6, 0.5]
    free = replace(config, long_run_rate=0.0)
    assert Schedule(free, 10).learning_rate(99, 0.0) == 1.0


def test_plateau_stops_falling_at_its_floor_and_waits_for_its_patience():
    config = TrainingConfig(
        schedule="plateau", learning_rate=1.0, final_lr_fraction=0.3, warmup_steps=0,
        plateau_patience=2, plateau_factor=0.5, long_run_rate=0.0,
    )  # fmt: skip
    schedule = Schedule(config, 5)
    rates = []
    for loss in [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
        schedule.end_epoch(loss)
        rates.append(schedule.learning_rate(3, 0.0))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3]


def test_a_restored_plateau_goes_on_as_if_nothing_had_happened():
    config = TrainingConfig(
        schedule="plateau", learning_rate=1.0, warmup_steps=0, plateau_patience=1, long_run_rate=0.0,
    )  # fmt: skip
    losses = [3.0, 1.0, 2.0, 1.5, 1.2, 1.1, 1.05, 0.5, 0.6, 0.7, 0.8]
    for stop in range(len(losses)):
        whole_run, first = Schedule(config, 5), Schedule(config, 5)
        rates = []
        for loss in losses:
            whole_run.end_epoch(loss)
            rates.append(whole_run.learning_rate(0, 0.0))
        for loss in losses[:stop]:
            first.end_epoch(loss)
        second = Schedule(config, 5)
        second.load_state_dict(first.state_dict())
        found = []
        for loss in losses[stop:]:
            second.end_epoch(loss)
            found.append(second.learning_rate(0, 0.0))
        assert found == rates[stop:]
    assert rates[-1] < 0.5


def test_the_rate_of_the_schedule_is_the_rate_of_the_optimiser(data, tmp_path):
    config = tiny_config(data, max_epochs=3, warmup_steps=4, learning_rate=1e-2)
    train(config, tmp_path / "run", progress=False)
    # Three batches an epoch: what is recorded is the rate of the steps 2, 5 and 8 of 9.
    expected = [
        1e-2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * k / 9))) * min(1, (k + 1) / 4)
        for k in (2, 5, 8)
    ]
    found = rows(tmp_path / "run")
    assert [r["learning_rate"] for r in found] == pytest.approx(expected)
    assert [r["step"] for r in found] == [3, 6, 9]


# -- what is averaged, measured and kept ---------------------------------------------------------


def test_checkpoints_hold_the_average_and_the_state_holds_the_last_weights(data, tmp_path):
    config = whole(data, max_epochs=2, learning_rate=1e-2, ema_decay=0.15)
    last = trained(config, tmp_path / "two")
    first = trained(
        replace(config, training=replace(config.training, max_epochs=1)), tmp_path / "n"
    )
    start = dict(new_student(config, load_data(config, TINY.cutoff)).named_parameters())
    # The cosine of one epoch and that of two begin alike, so both runs share their first step.
    averaged = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)["model"]
    for name, value in start.items():
        after_one = 0.1 * value.detach() + 0.9 * first[name]  # (1 + 0) / (10 + 0) < 0.15
        after_two = 0.15 * after_one + 0.85 * last[name]
        torch.testing.assert_close(averaged[name], after_two, rtol=1e-9, atol=1e-12)


def test_the_validation_of_the_history_is_that_of_the_averaged_student(data, tmp_path):
    config = whole(data, max_epochs=1, learning_rate=3e-2, ema_decay=0.9)
    train(config, tmp_path / "run", progress=False)
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    valid = HDF5Dataset(data).subset("valid")
    student = StudentForceField.load(tmp_path / "run" / "last.ckpt")
    found = evaluate(student, valid)
    (row,) = rows(tmp_path / "run")
    assert row["valid_force_mae"] * 1e3 == pytest.approx(found["force_mae_mev_per_ang"], rel=1e-9)
    student.load_state_dict(content["training"]["student"])
    other = evaluate(student, valid)["force_mae_mev_per_ang"]
    assert other != pytest.approx(found["force_mae_mev_per_ang"], rel=1e-3)
    s = config.training
    parts = [
        found[f"{k}_rmse_{u}"] for k, u in (("energy", "mev_per_atom"), ("force", "mev_per_ang"))
    ]
    squares = [(p / 1e3) ** 2 for p in parts] + [(found["stress_rmse_gpa"] / 160.2176634) ** 2]
    weights = (s.energy_weight, s.force_weight, s.stress_weight)
    loss = sum(w * x for w, x in zip(weights, squares, strict=True))
    assert row["valid_loss"] == pytest.approx(loss, rel=1e-9)


def test_the_errors_of_an_epoch_do_not_hold_those_of_the_one_before(data, tmp_path):
    """Weights that stand still give the same training error in every epoch."""
    config = whole(data, max_epochs=3, learning_rate=1e-300, weight_decay=0.0, batch_size=5)
    train(config, tmp_path / "run", progress=False)
    found = rows(tmp_path / "run")
    for key in ("train_loss", "train_energy_rmse", "train_force_rmse", "train_stress_rmse"):
        assert [r[key] for r in found] == pytest.approx([found[0][key]] * 3, rel=1e-9)
    student = StudentForceField.load(tmp_path / "run")
    metrics = evaluate(student, HDF5Dataset(data).subset("train"))
    assert found[0]["train_force_rmse"] * 1e3 == pytest.approx(metrics["force_rmse_mev_per_ang"])
    stress = metrics["stress_rmse_gpa"] / 160.2176634
    assert found[0]["train_stress_rmse"] == pytest.approx(stress)


def test_equal_losses_keep_the_first_epoch_and_count_as_stagnation(data, tmp_path):
    config = whole(data, max_epochs=9, learning_rate=1e-300, weight_decay=0.0)
    config = replace(config, training=replace(config.training, early_stop_patience=3))
    result = train(config, tmp_path / "run", progress=False)
    assert (result["best_epoch"], result["epochs"]) == (1, 5)
    assert result["stopped"] == "early stop"
    assert read_checkpoint(tmp_path / "run")["metadata"]["epoch"] == 1


def test_best_is_the_epoch_of_the_least_mean_errors_not_of_the_least_loss(
    data, tmp_path, monkeypatch
):
    """A fit that goes on is better on all atoms but a few, whose squares decide the loss."""
    from mlff_distiller.training import trainer

    tables = iter([(8.0, 45.0, 80.0), (1.2, 43.0, 90.0), (1.2, 44.0, 70.0)])

    def scripted(student, batches, *, loss, after_batch):
        energy, force, outliers = next(tables)
        errors = ErrorSums(loss=loss)
        errors.table[0] = torch.tensor([energy, energy**2, 1.0, energy**2]) / 1e3
        errors.table[1] = torch.tensor([force, outliers**2, 1.0, outliers**2]) / 1e3
        return errors

    monkeypatch.setattr(trainer, "error_sums", scripted)
    result = train(whole(data, max_epochs=3), tmp_path / "run", progress=False)
    assert result["best_epoch"] == 2
    losses = [row["valid_loss"] for row in rows(tmp_path / "run")]
    assert losses.index(min(losses)) == 2


def test_the_score_of_an_epoch_counts_what_has_labels_and_weight():
    metrics = {
        "energy_mae_mev_per_atom": 2.0, "force_mae_mev_per_ang": 8.0, "stress_mae_gpa": None
    }  # fmt: skip
    assert score({}, TrainingConfig()) == math.inf
    assert score(metrics, TrainingConfig()) == pytest.approx(4.0)
    assert score(metrics, TrainingConfig(energy_weight=0.0)) == pytest.approx(8.0)
    assert score({**metrics, "stress_mae_gpa": 0.5}, TrainingConfig()) == pytest.approx(2.0)
    assert score(dict.fromkeys(metrics), TrainingConfig()) == 0.0


def test_patience_is_counted_through_a_stop(data, tmp_path):
    """Stopped in the third epoch of losses that stand still: two more, not four."""
    config = whole(data, max_epochs=3, learning_rate=1e-300, weight_decay=0.0)
    config = replace(config, training=replace(config.training, early_stop_patience=3))
    assert train(config, tmp_path / "run", progress=False)["epochs"] == 3
    longer = replace(config, training=replace(config.training, max_epochs=9))
    result = train(longer, tmp_path / "run", resume=True, progress=False)
    assert (result["epochs"], result["best_epoch"], result["stopped"]) == (5, 1, "early stop")


# -- options that must reach the run -------------------------------------------------------------


def test_options_of_the_data_decide_the_splits(tmp_path):
    frames = emt_crystals(20)

    def splits(name: str, **options: object) -> dict[str, list[int]]:
        from mlff_distiller.data import HDF5Writer

        path = tmp_path / name
        with HDF5Writer(path, teacher="emt") as writer:
            writer.append(frames)
        config = whole(path, max_epochs=1)
        config = replace(config, data=DataConfig(path=str(path), **options))
        train(config, tmp_path / f"run-{name}", progress=False)
        return {k: sorted(int(i) for i in v) for k, v in HDF5Dataset(path).splits.items()}

    first = splits("a.h5", valid_fraction=0.3, test_fraction=0.2)
    assert [len(first[k]) for k in ("train", "valid", "test")] == [10, 6, 4]
    assert splits("b.h5", valid_fraction=0.3, test_fraction=0.2) == first
    other = splits("c.h5", valid_fraction=0.3, test_fraction=0.2, split_seed=1)
    assert other["valid"] != first["valid"]


def test_the_seed_decides_the_first_weights(data):
    contents = load_data(whole(data), TINY.cutoff)
    weights = [
        new_student(whole(data, seed=seed), contents).painn.embedding.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert float((weights[0] - weights[2]).abs().min()) > 0


def test_reference_energies_can_be_left_at_zero(data, tmp_path):
    for choice in ("none", "least-squares"):
        config = tiny_config(data, reference_energies=choice, max_epochs=1)
        train(config, tmp_path / choice, progress=False)
        energies = StudentForceField.load(tmp_path / choice).reference_energies
        assert bool((energies == 0).all()) == (choice == "none")


@pytest.mark.parametrize("reach", [1.0, 1.3])
def test_reference_energies_leave_out_the_repulsion(tmp_path, reach):
    frames = [s for i, s in enumerate(emt_molecules(48)) if i % 6 == 0]  # water only
    path = write(tmp_path / "w.h5", frames)
    config = whole(path, max_epochs=1)
    fitted = []
    for zbl in (False, True):
        config = replace(config, model=replace(TINY, zbl=zbl, zbl_reach=reach))
        student = new_student(config, load_data(config, TINY.cutoff))
        hydrogen, oxygen = student.reference_energies.tolist()
        fitted.append(2 * hydrogen + oxygen)
        if student.repulsion is not None:
            with torch.no_grad():
                student.painn.readout[-1].weight.zero_()
                student.painn.readout[-1].bias.zero_()
            batch = collate(load_data(config, TINY.cutoff).train, TINY.cutoff, torch.float64)
            repulsion = student.compute(batch)["energy"].mean().item() - fitted[-1]
    assert repulsion > 0.1
    assert fitted[0] - fitted[1] == pytest.approx(repulsion, rel=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
def test_training_runs_with_its_threads(data, tmp_path, monkeypatch, threads):
    seen = set()
    real = StudentForceField.compute

    def compute(student, *args, **kwargs):
        seen.add(torch.get_num_threads())
        return real(student, *args, **kwargs)

    monkeypatch.setattr(StudentForceField, "compute", compute)
    before = torch.get_num_threads()
    # The first student is scaled before, with the threads of the caller or of the run.
    train(tiny_config(data, max_epochs=1, threads=threads), tmp_path / "run", progress=False)
    assert threads in seen
    assert seen <= {threads, before}
    assert torch.get_num_threads() == before


def test_the_run_directory_holds_the_state_after_every_end(data, tmp_path):
    config = whole(data, max_epochs=2)
    train(config, tmp_path / "run", progress=False)
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")["training"]
    assert (state["epoch"], state["batch"], state["step"]) == (2, 0, 2)
    assert state["best_epoch"] >= 1
    assert state["seconds"] > 0
    metadata = read_checkpoint(tmp_path / "run" / "last.ckpt")["metadata"]
    assert metadata["num_train"] == 12
    assert metadata["num_valid"] == 4
