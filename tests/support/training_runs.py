"""Runs of training, compared bit for bit."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from mlff_distiller.training import TrainingResult, train
from support.labelled import emt_crystals, tiny_config, write


def history(output: Path) -> list[dict[str, str]]:
    """Rows of history.csv as text, so that comparisons are bit for bit; without the clock."""
    with (output / "history.csv").open(newline="") as file:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(file)]


def weights_of(output: Path, name: str = "last.ckpt") -> list[torch.Tensor]:
    content = torch.load(output / name, weights_only=True)
    states = [content["model"]]
    if content["training"] is not None:
        states.append(content["training"]["student"])
        moments = content["training"]["optimizer"]["state"]
        states += [moments[k] for k in sorted(moments)]
    return [v for state in states for v in state.values()]


def assert_same_run(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    pairs = list(zip(weights_of(one), weights_of(other), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)
    best = zip(weights_of(one, "best.ckpt"), weights_of(other, "best.ckpt"), strict=True)
    assert all(torch.equal(a, b) for a, b in best)


def small_data(folder: Path) -> Path:
    """Sixteen labelled crystals."""
    return write(folder / "cu.h5", emt_crystals(16))


def uninterrupted(data: Path, folder: Path) -> tuple[Path, TrainingResult]:
    """A run of four epochs: directory and result."""
    output = folder / "run"
    return output, train(tiny_config(data), output, progress=False)
