"""Training goes on from a student: what moves, what stays, and the zero of energy of new labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run
from support.labelled import TINY, emt_crystals, tiny_config, write

from mlff_distiller.config import ModelConfig, TrainingConfig, from_dict
from mlff_distiller.data import HDF5Dataset, Structure, collate
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.students.checkpoint import read_checkpoint
from mlff_distiller.students.export import export_student
from mlff_distiller.training import Hooks, train
from mlff_distiller.training.fine_tune import (
    doubts,
    parameter_groups,
    refit_reference_energies,
)


def student_of(elements=(29, 47), config: ModelConfig = TINY) -> StudentForceField:
    torch.manual_seed(0)
    return StudentForceField(config, list(elements), [-1.0 - z / 100 for z in elements])


@pytest.fixture
def file(tmp_path) -> Path:
    """An exported student of copper, silver and gold."""
    export_student(student_of((29, 47, 79)), tmp_path / "first.pt", {"teacher": "gfn2"})
    return tmp_path / "first.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "cu.h5", emt_crystals(16))


def moved(start: Path, end: Path) -> set[str]:
    """Names of the parameters that training changed, averages included."""
    old = StudentForceField.load(start).state_dict()
    states = [read_checkpoint(end / "last.ckpt")["training"]["student"]]
    states.append(read_checkpoint(end / "last.ckpt")["model"])
    return {name for state in states for name, v in state.items() if not torch.equal(v, old[name])}


# -- what moves ----------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_the_others_move(data, file, tmp_path):
    frozen = ["embedding*", "painn.interactions.0", "readout.?.bias"]
    config = tiny_config(data, max_epochs=2, frozen=frozen, weight_decay=0.1)
    train(config, tmp_path / "run", start_from=file, progress=False)
    names = dict(student_of().named_parameters())
    stays = {n for n in names if n.startswith("painn.interactions.0.")}
    stays |= {"painn.embedding.weight", "painn.readout.0.bias", "painn.readout.2.bias"}
    assert moved(file, tmp_path / "run") == set(names) - stays


def test_factors_scale_the_steps_and_the_last_that_fits_counts():
    student = student_of()
    settings = TrainingConfig(
        learning_rate_factors={"*": 0.5, "readout": 2.0, "readout.0.bias": 0.25}
    )
    groups, factors = parameter_groups(student, settings)
    rate = {id(p): f for g, f in zip(groups, factors, strict=True) for p in g["params"]}
    found = {name: rate[id(p)] for name, p in student.named_parameters()}
    expected = {"painn.readout.0.weight": 2.0, "painn.readout.2.weight": 2.0}
    expected |= {"painn.readout.2.bias": 2.0, "painn.readout.0.bias": 0.25}
    assert found == {name: expected.get(name, 0.5) for name in found}


def test_the_optimiser_steps_by_the_factors(data, file, tmp_path):
    rates = []

    class Watch(Hooks):
        def after_step(self, run, loss):
            rates.append([group["lr"] for group in run.optimizer.param_groups])

    config = tiny_config(data, max_epochs=1, learning_rate_factors={"readout": 0.1})
    train(config, tmp_path / "run", start_from=file, hooks=Watch(), progress=False)
    assert all(slow == pytest.approx(0.1 * fast) for fast, slow in rates)
    table = (tmp_path / "run" / "history.csv").read_text().splitlines()
    row = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert float(row["learning_rate"]) == pytest.approx(rates[-1][0])


@pytest.mark.parametrize("key", ["frozen", "learning_rate_factors"])
def test_a_pattern_that_fits_nothing_lists_the_names(data, tmp_path, key):
    value = ["embeding*"] if key == "frozen" else {"embeding*": 0.1}
    with pytest.raises(InputError, match=r"'embeding\*'.*embedding\.weight, interactions") as error:
        train(tiny_config(data, **{key: value}), tmp_path / "run", progress=False)
    assert f"training.{key}" in str(error.value)
    assert "\n" not in str(error.value)


def test_freezing_everything_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="must leave something to train"):
        train(tiny_config(data, frozen=["*"]), tmp_path / "run", progress=False)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), "fast"])
def test_factors_must_be_positive_numbers(factor):
    with pytest.raises(InputError, match=r"learning_rate_factors\['readout'\]"):
        from_dict(TrainingConfig, {"learning_rate_factors": {"readout": factor}})


def test_a_run_with_frozen_layers_resumes_with_the_same_ones_only(data, file, tmp_path):
    config = tiny_config(data, frozen=["embedding"], learning_rate_factors={"readout": 0.1})
    train(config, tmp_path / "whole", start_from=file, progress=False)

    class Stopping(Hooks):
        def after_step(self, run, loss):
            if run.step == 4:
                run.stop()

    pieces = tmp_path / "pieces"
    with pytest.raises(KeyboardInterrupt):
        train(config, pieces, start_from=file, hooks=Stopping(), progress=False)
    with pytest.raises(InputError, match=r"training\.frozen \['embedding'\], got \[\]"):
        train(tiny_config(data), pieces, resume=True, progress=False)
    train(config, pieces, resume=True, progress=False)
    one, other = (read_checkpoint(run / "last.ckpt") for run in (tmp_path / "whole", pieces))
    assert all(torch.equal(v, other["model"][name]) for name, v in one["model"].items())
    assert one["metadata"]["started_from"] == other["metadata"]["started_from"]


# -- from what -----------------------------------------------------------------------------------


def test_a_student_that_knows_more_elements_keeps_them(data, file, tmp_path, capfd):
    train(tiny_config(data, max_epochs=1), tmp_path / "run", start_from=file)
    student = StudentForceField.load(tmp_path / "run")
    assert student.elements == [29, 47, 79]
    assert "the student knows Au, which the training frames lack" in capfd.readouterr().err
    origin = read_checkpoint(tmp_path / "run")["metadata"]["started_from"]
    assert (origin["path"], origin["teacher"]) == (str(file), "gfn2")


@pytest.mark.parametrize("optimizer", ["soap", "adamw"])
def test_what_is_known_of_elements_without_frames_does_not_decay(data, file, tmp_path, optimizer):
    config = tiny_config(data, max_epochs=2, optimizer=optimizer, weight_decay=10.0)
    train(config, tmp_path / "run", start_from=file, progress=False)
    old = StudentForceField.load(file).state_dict()["painn.embedding.weight"]
    stored = read_checkpoint(tmp_path / "run" / "last.ckpt")
    for state in (stored["model"], stored["training"]["student"]):
        found = state["painn.embedding.weight"]
        assert torch.equal(found[2], old[2])
        assert not torch.isclose(found[:2], old[:2], rtol=1e-4).all()


def test_an_imported_student_trains_on(data, tmp_path):
    """The forms that SchNetPack and graph-pes have and new students do not."""
    config = replace(
        TINY, norm="paper", cutoff_function="cosine", rbf_trainable=True, zbl=True,
        zbl_switched=False,
    )  # fmt: skip
    path = tmp_path / "imported.pt"
    export_student(student_of(config=config), path, {"imported_from": {"program": "graph-pes"}})
    tiny = replace(tiny_config(data, max_epochs=1), model=config)
    train(tiny, tmp_path / "run", start_from=path, progress=False)
    assert len(moved(path, tmp_path / "run")) == len(list(student_of(config=config).parameters()))
    origin = read_checkpoint(tmp_path / "run")["metadata"]["started_from"]
    assert origin["imported_from"] == {"program": "graph-pes"}


# -- the zero of energy --------------------------------------------------------------------------


def energies_of(student: StudentForceField, frames: list[Structure]) -> np.ndarray:
    batch = collate(frames, student.cutoff, torch.float64)
    return student.compute(batch, forces=False, stress=False)["energy"].numpy()


def shifted_labels(student: StudentForceField, shift: dict[int, float]) -> list[Structure]:
    """Frames that the student labels, with other energies of the elements."""
    frames = emt_crystals(6)
    return [
        s.with_labels(float(e) + sum(shift[int(z)] for z in s.atomic_numbers), s.forces)
        for s, e in zip(frames, energies_of(student, frames), strict=True)
    ]


def test_refit_finds_the_shift_of_every_element_and_nothing_else():
    student = student_of((79, 47, 29)).to(torch.float64)
    before = student.reference_energies.clone()
    frames = shifted_labels(student, {29: 40.5, 47: -3.25})
    weights = [p.clone() for p in student.parameters()]
    refit_reference_energies(student, frames)
    assert student.reference_energies.tolist() == pytest.approx(
        (before + torch.tensor([0.0, -3.25, 40.5])).tolist(), abs=1e-9
    )
    assert energies_of(student, frames) == pytest.approx([s.energy for s in frames], abs=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(weights, student.parameters(), strict=True))


def test_marked_isolated_atoms_are_met_exactly():
    student = student_of().to(torch.float64)
    frames = shifted_labels(student, {29: 1.0, 47: 2.0})
    atom = Structure([47], np.zeros((1, 3)), info={"config_type": "IsolatedAtom"})
    atom = atom.with_labels(-17.5, np.zeros((1, 3)))
    refit_reference_energies(student, [*frames, atom])
    assert energies_of(student, [atom]) == pytest.approx([-17.5], abs=1e-9)


def test_refitting_needs_energies():
    with pytest.raises(InputError, match="with an energy, got none"):
        refit_reference_energies(student_of(), [s.with_labels(None) for s in emt_crystals(2)])


def test_another_zero_of_energy_is_warned_of_unless_refitted():
    student = student_of().to(torch.float64)
    near = shifted_labels(student, {29: 0.01, 47: -0.01})
    far = shifted_labels(student, {29: 5.0, 47: 5.0})
    assert doubts(student, [29, 47], near, kept=True) == []
    assert doubts(student, [29, 47], far, kept=False) == []
    (warning,) = doubts(student, [29, 47], far, kept=True)
    assert "+5 eV/atom" in warning
    assert "--refit-energies" in warning


def test_the_command_refits(data, file, tmp_path):
    arguments = ["train", "--data", data, "--from", file, "--max-epochs", "1", "--seed", "1"]
    for name, more in (("kept", []), ("refit", ["--refit-energies"])):
        run(*arguments, *more, "-o", tmp_path / name)
    kept, refit = (StudentForceField.load(tmp_path / n) for n in ("kept", "refit"))
    assert kept.reference_energies.tolist() == pytest.approx([-1.29, -1.47, -1.79])
    frames = HDF5Dataset(data).subset("train")
    first = StudentForceField.load(file)
    refit_reference_energies(first, frames)
    assert refit.reference_energies.tolist() == pytest.approx(first.reference_energies.tolist())
    assert refit.reference_energies[2].item() == pytest.approx(-1.79)
    result = run("train", "--data", data, "--refit-energies", "-o", tmp_path / "x", code=2)
    assert "goes with --from" in result.stderr
