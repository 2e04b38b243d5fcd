"""Sampling that was interrupted goes on, to the frames of one that was not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from support.calculators import Counting

from mlff_distiller.config import SamplingConfig
from mlff_distiller.data import HDF5Dataset, Structure, structures_hash
from mlff_distiller.sampling import PartialFrames, builtin, sample

COPPER = Structure.from_atoms(bulk("Cu", cubic=True) * (2, 2, 2))
SETTINGS = SamplingConfig(
    num_rattle=2, num_md=25, md_temperatures=[300.0, 900.0], md_warmup=2, md_interval=2, seed=3,
    max_force=2.0,
)  # fmt: skip


def run(path: Path, calculator: EMT, settings: SamplingConfig = SETTINGS):
    rejected: Counter[str] = Counter()
    seen = []
    with PartialFrames(path, {"seed": settings.seed}) as partial:
        frames = sample(
            [COPPER], settings, calculator, rejected=rejected, partial=partial,
            progress=lambda done, total: seen.append(done),
        )  # fmt: skip
    return frames, rejected, seen


def test_goes_on_to_the_same_frames(tmp_path: Path) -> None:
    whole = Counting()
    frames, rejected, _ = run(tmp_path / "a.h5", whole)
    assert rejected, "the comparison needs segments that end early"
    calls = 0
    stops = [7, 20, 25, 20]
    for stop in stops:  # the same run, interrupted again and again
        calculator = Counting(stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b.h5", calculator)
        calls += calculator.calls
    last = Counting()
    again, rejected_again, seen = run(tmp_path / "b.h5", last)
    assert structures_hash(again) == structures_hash(frames)
    assert [s.info for s in again] == [s.info for s in frames]
    assert rejected_again == rejected
    assert seen == list(range(1, len(frames) - 1))
    assert last.calls < whole.calls - 20
    assert calls + last.calls < whole.calls + 35 * len(stops)


def test_what_was_rejected_is_counted_once(tmp_path: Path) -> None:
    """Also where the segment that rejected it is read, not run."""
    whole, rejected, _ = run(tmp_path / "a.h5", EMT())
    assert rejected
    with PartialFrames(tmp_path / "b.h5", {"seed": SETTINGS.seed}) as partial:
        sample([COPPER], SETTINGS, EMT(), partial=partial)  # all of it is kept
    idle = Counting()
    frames, again, _ = run(tmp_path / "b.h5", idle)
    assert again == rejected
    assert idle.calls == 0
    assert structures_hash(frames) == structures_hash(whole)


def test_finished_segments_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", Counting(2))
    assert not list(tmp_path.iterdir()), "nothing was finished, nothing is left"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", Counting(45))
    data = HDF5Dataset(tmp_path / "a.h5", require_labels=False)
    assert 0 < len(data) < SETTINGS.num_md
    assert sum(row[2] for row in data.progress["segments"]) == len(data)


def test_frames_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", Counting(45))
    other = dataclasses.replace(SETTINGS, seed=4)
    frames, _, _ = run(tmp_path / "a.h5", EMT(), other)
    wanted, _, _ = run(tmp_path / "b.h5", EMT(), other)
    assert structures_hash(frames) == structures_hash(wanted)
    # Nor those of a file that is damaged.
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.h5", Counting(45))
    content = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(content[: len(content) // 2])
    frames, _, _ = run(tmp_path / "c.h5", EMT())
    wanted, _, _ = run(tmp_path / "d.h5", EMT())
    assert structures_hash(frames) == structures_hash(wanted)


def test_molecules_go_on_too(tmp_path: Path) -> None:
    base = builtin("ethanol")
    settings = SamplingConfig(num_rattle=0, num_md=12, md_temperatures=[300.0], md_warmup=1,
                              md_interval=1)  # fmt: skip
    whole = sample(base, settings, EMT())
    calculator = Counting(11)
    with (
        pytest.raises(KeyboardInterrupt),
        PartialFrames(tmp_path / "a.h5", {}) as partial,
    ):
        sample(base, settings, calculator, partial=partial)
    with PartialFrames(tmp_path / "a.h5", {}) as partial:
        assert len(partial)
        again = sample(base, settings, EMT(), partial=partial)
    assert structures_hash(again) == structures_hash(whole)
