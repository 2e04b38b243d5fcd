"""Data of mixed labels in training: isolated atoms, frames without forces, states of charge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.labelled import emt_crystals, emt_molecules, tiny_config

from mlff_distiller.data import Structure, ensure_splits, write_structures
from mlff_distiller.data.hdf5 import store_splits
from mlff_distiller.errors import InputError
from mlff_distiller.students import StudentForceField
from mlff_distiller.training import fit_reference_energies, train
from mlff_distiller.training.reference import ReferenceFit, isolated_energies
from mlff_distiller.training.setup import load_data, new_student
from mlff_distiller.training.statistics import Statistics


def fit_of(frames: list[Structure]) -> ReferenceFit:
    fit = ReferenceFit()
    for s in frames:
        if s.energy is not None:
            fit.add(s.atomic_numbers, s.energy)
    return fit


def atom(z: int, energy: float, **info: object) -> Structure:
    return Structure([z], [[0.0, 0, 0]], energy=energy, info=info)


def shifted(energy: float) -> list[Structure]:
    """EMT crystals of copper and silver, bound by ``energy`` eV/atom more."""
    frames = emt_crystals(14)
    return [s.with_labels(s.energy + energy * len(s), s.forces, s.stress) for s in frames]


@pytest.mark.parametrize("mark", ["IsolatedAtom", "isolated_atom", "isolated atom", "isolated"])
def test_marked_isolated_atoms_are_the_reference(tmp_path, mark: str) -> None:
    frames = [atom(29, -0.27, config_type=mark), atom(47, -0.22, config_type=mark)]
    frames += [atom(29, 5.0, config_type=mark, charge=1), *shifted(-3.0)]
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    config = tiny_config(path)
    data = load_data(config, config.model.cutoff)
    assert [len(s) for s in data.train].count(1) == 3  # never left out
    student = new_student(config, data)
    assert student.reference_energies.tolist() == pytest.approx([-0.27, -0.22])
    result = train(config, tmp_path / "run", progress=False)
    assert np.isfinite(result["validation"]["energy_mae_mev_per_atom"])
    trained = StudentForceField.load(tmp_path / "run")
    assert trained.reference_energies.tolist() == pytest.approx([-0.27, -0.22])
    # The network starts at the binding energy, not 3 eV/atom away from it.
    assert result["validation"]["energy_mae_mev_per_atom"] < 1000


def test_unmarked_atoms_only_join_the_fit() -> None:
    frames = [atom(29, -0.27), *shifted(-3.0)]
    assert isolated_energies(frames) == {}
    free = fit_reference_energies(frames, [29, 47])
    assert abs(free[0] + 0.27) > 0.5
    # Elements without an atom are fitted around those that have one.
    marked = [atom(29, -0.27, config_type="IsolatedAtom"), *shifted(-3.0)]
    isolated = isolated_energies(marked)
    energies = fit_reference_energies(marked, [29, 47], isolated=isolated)
    assert energies[0] == -0.27
    rest = [
        s.energy - energies[0] * (s.atomic_numbers == 29).sum()
        - energies[1] * (s.atomic_numbers == 47).sum()
        for s in marked[1:]
    ]  # fmt: skip
    binding = fit_of(marked).binding([29, 47], energies)
    assert binding == pytest.approx(np.mean(rest) / 4)


def test_the_lowest_of_several_atoms_counts() -> None:
    mark = {"config_type": "IsolatedAtom"}
    frames = [atom(8, -1.0, **mark), atom(8, -2.0, **mark), atom(8, -9.0, charge=1, **mark)]
    assert isolated_energies(frames) == {8: -2.0}


def test_frames_with_energies_only_and_without_labels(tmp_path) -> None:
    frames = emt_crystals(14)
    frames[1] = frames[1].with_labels(frames[1].energy)
    frames[2] = frames[2].with_labels(None)
    frames[3] = frames[3].with_labels(None, frames[3].forces)
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    store_splits(
        path, {"train": np.arange(10), "valid": np.arange(10, 14), "test": np.array([], int)}
    )
    config = tiny_config(path)
    data = load_data(config, config.model.cutoff)
    assert len(data.train) == 9
    assert any("1 of 10 structures in the train split have no labels" in n for n in data.notes)
    result = train(config, tmp_path / "run", progress=False)
    assert np.isfinite(result["validation"]["force_mae_mev_per_ang"])


def test_atoms_at_one_point_are_named_before_training(tmp_path) -> None:
    frames = emt_crystals(8)
    positions = frames[5].positions.copy()
    positions[3] = positions[0] + frames[5].cell[0]
    frames[5] = replace(frames[5], positions=positions)
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    config = tiny_config(path)
    with pytest.raises(InputError, match=r"a.h5, structure 5 has two atoms at one point.*--drop-b"):
        load_data(config, config.model.cutoff)


def test_states_of_charge_are_warned_of(tmp_path) -> None:
    frames = [
        s.with_labels(s.energy + 12.6 * (i % 2), s.forces, charge=i % 2)
        for i, s in enumerate(emt_crystals(12))
    ]
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    config = tiny_config(path)
    (note,) = load_data(config, config.model.cutoff).notes
    assert "charge" in note
    assert "0 in" in note
    assert "1 in" in note


def test_frames_that_are_trained_on_and_measure_as_well_are_warned_of(tmp_path) -> None:
    frames = emt_crystals(12)
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    write_structures(first, frames[:8])
    write_structures(second, [frames[9], frames[2], frames[10], frames[4], frames[11], frames[3]])
    store_splits(first, {"train": np.arange(4), "valid": np.arange(4, 6), "test": np.arange(6, 8)})
    store_splits(
        second, {"train": np.array([0]), "valid": np.arange(1, 4), "test": np.array([4, 5])}
    )
    config = tiny_config(first)
    assert not load_data(config, config.model.cutoff).notes
    config = replace(config, data=replace(config.data, path=[str(first), str(second)]))
    data = load_data(config, config.model.cutoff)
    (note,) = data.notes
    assert note == (
        "warning: 2 of the 9 frames of the validation and test splits are trained on as well, first "
        f"{second}, structure 1 (like {first}, structure 2): errors will look too small; leave them "
        f"out with 'mlff-distiller convert {first} {second} -o clean.h5 --drop-bad'"
    )
    assert Statistics.restored(data.statistics.state()).shared == data.statistics.shared


def test_an_element_in_the_test_split_alone_is_said(tmp_path) -> None:
    frames = emt_crystals(8) + emt_molecules(1)
    path = tmp_path / "a.h5"
    write_structures(path, frames)
    store_splits(path, {"train": np.arange(6), "valid": np.array([6, 7]), "test": np.array([8])})
    config = tiny_config(path)
    (note,) = load_data(config, config.model.cutoff).notes
    assert "test split holds H, O" in note
    assert "--new-splits" in note
    # Splits that are drawn never come to that.
    write_structures(path, frames)
    splits = ensure_splits(path, 0.2, 0.2, 0)
    assert 8 in splits["train"]


def test_elements_that_the_compositions_do_not_tell_apart() -> None:
    def frames(*numbers: list[int]) -> list[Structure]:
        return [
            Structure(z, [[2.0 * i, 0.0, 0.0] for i in range(len(z))], energy=-1.0) for z in numbers
        ]

    assert fit_of(frames([14, 14], [14])).undetermined() == []
    assert fit_of(frames([1, 1, 8], [8, 1, 1] * 2)).undetermined() == [1, 8]
    assert fit_of(frames([1, 1, 8], [1])).undetermined() == []
    assert fit_of(frames([1, 1, 8, 14], [14])).undetermined() == [1, 8]
    assert fit_of(frames([1, 1, 8], [1, 8, 8], [6, 7])).undetermined() == [6, 7]
    unlabelled = [Structure([6], [[0.0] * 3])]
    assert fit_of(unlabelled).undetermined() == []
    assert fit_of(frames([1, 8]) + unlabelled).undetermined() == [1, 8]
