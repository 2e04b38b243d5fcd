"""Frames whose labels would be refused for large forces are not asked about twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from mlff_distiller.data import Structure
from mlff_distiller.pipeline import choose
from mlff_distiller.pipeline.contacts import asked_about, contact_limit


@pytest.mark.parametrize(
    ("refused", "kept", "limit"),
    [
        ([], [0.7, 0.9], 0.0),
        ([0.70, 0.74, 0.80], [0.9], 0.0),  # too few to tell
        ([0.70, 0.74, 0.80, 0.837], [0.856, 0.9], 0.837),
        # One that was taken among nine, and one that was refused for another reason.
        ([0.70, 0.72, 0.74, 0.76, 0.78, 0.80, 0.82, 0.84, 0.98], [0.795, 0.85, 0.9, 0.95], 0.84),
        ([0.70, 0.72, 0.74, 0.76], [0.69, 0.71, 0.73, 0.75], 0.0),  # contacts do not decide
    ],
)
def test_the_limit_is_where_nearly_all_were_refused(refused, kept, limit) -> None:
    asked = [(r, True) for r in refused] + [[r, False] for r in kept]  # lists, as JSON has them
    assert contact_limit(asked) == limit


def test_contacts_are_those_of_the_frames() -> None:
    cell = Structure.from_atoms(bulk("Si", cubic=True))
    squeezed = replace(cell, positions=0.8 * cell.positions, cell=0.8 * cell.cell)
    dimer = Structure(np.array([14, 14]), np.array([[0.0, 0, 0], [1.5, 0, 0]]))
    ratio = 5.43 * np.sqrt(3) / 4 / 2.22
    found = asked_about([cell, dimer, squeezed], {1, 2})
    assert found == [(1.0, False), (pytest.approx(0.8 * ratio, abs=1e-4), True)]


def test_what_would_be_refused_is_neither_a_last_word_nor_uncertain() -> None:
    frame = Structure.from_atoms(bulk("Si", cubic=True))
    candidates = [
        replace(frame, info={"run": run, "exploded": run == 1, "time_fs": t})
        for run in range(2)
        for t in range(10)
    ]
    late = {18, 19}
    ends = choose._last_words(candidates, late)
    assert [candidates[i].info["time_fs"] for i in ends] == [7, 4]
    features = [np.eye(4)[[i % 4]] * (1 + i) for i in range(6)]
    assert choose.most_uncertain(features, features[:1], 6, barred=[5]) != []
    assert 5 not in choose.most_uncertain(features, features[:1], 6, barred=[5])
    assert 5 in choose.most_uncertain(features, features[:1], 6)
