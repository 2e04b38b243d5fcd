"""Data that does not fit into memory: opening, reading and training from one HDF5 file.

    python benchmarks/streaming.py [--frames 10000 100000 1000000] [--steps 300] [--directory DIR]

Ethanol-sized frames (nine atoms of C, H, O in a box of random positions on a grid, labels by a
harmonic toy energy) are written once per size and removed at the end. For each size a process of
its own prints wall and CPU time to open the file, the time of the one pass over it (the first start alone;
later ones find its result beside the file), frames per second read and collated in the order of an
epoch, the same inside of training with a tiny student, and the largest memory at each station.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mlff_distiller.config import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from mlff_distiller.data import HDF5Dataset
from mlff_distiller.data.hdf5 import FORMAT, UNITS

_NUMBERS = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
_TINY = ModelConfig(hidden_dim=16, num_interactions=2, num_rbf=8, cutoff=4.0)


def write(path: Path, frames: int, seed: int = 0) -> None:
    """A file of ``frames`` molecules with splits of 8 : 1 : 1, written in blocks."""
    rng = np.random.default_rng(seed)
    n = len(_NUMBERS)
    grid = np.stack(np.meshgrid(*[1.4 * np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "structures/atomic_numbers": ((frames * n,), np.int64),
        "structures/positions": ((frames * n, 3), np.float64),
        "structures/cells": ((frames, 3, 3), np.float64),
        "structures/pbc": ((frames, 3), bool),
        "structures/info": ((frames,), h5py.string_dtype()),
        "labels/energy": ((frames,), np.float64),
        "labels/forces": ((frames * n, 3), np.float64),
    }
    with h5py.File(path, "w") as file:
        for name, (shape, kind) in shapes.items():
            file.create_dataset(name, shape, kind, chunks=(1024, *shape[1:]))
        file["structures/atomic_numbers_splits"] = np.arange(frames + 1, dtype=np.int64) * n
        for start in range(0, frames, 20_000):
            count = min(20_000, frames - start)
            rows, atoms = slice(start, start + count), slice(start * n, (start + count) * n)
            moved = rng.normal(0.0, 0.06, (count, n, 3))
            file["structures/atomic_numbers"][atoms] = np.tile(_NUMBERS, count)
            file["structures/positions"][atoms] = (grid + moved).reshape(-1, 3)
            file["structures/info"][rows] = ['{"source": "md", "temperature": 300}'] * count
            file["labels/energy"][rows] = 5.0 * (moved**2).sum(axis=(1, 2)) - 40.0
            file["labels/forces"][atoms] = -10.0 * moved.reshape(-1, 3)
        order = np.arange(frames)
        for name, rows_of in (("train", order % 10 < 8), ("valid", order % 10 == 8)):
            file[f"splits/{name}"] = np.flatnonzero(rows_of)
        file["splits/test"] = np.flatnonzero(order % 10 == 9)
        file.attrs.update(
            {"format": FORMAT, "units": json.dumps(UNITS), "teacher": "toy", "identity": "toy"}
        )


def memory() -> float:
    """Largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, steps: int, limit: float) -> dict[str, float]:
    """Times (s), rates (frames/s) and memory (MiB above that of the imports) for one file."""
    from mlff_distiller.training import Hooks, train
    from mlff_distiller.training.batches import Loader, Plan
    from mlff_distiller.training.setup import load_data

    found: dict[str, float] = {}
    base = memory()

    def done(name: str, start: tuple[float, float]) -> None:
        found[name] = time.perf_counter() - start[0]
        found[f"{name} (CPU)"] = time.process_time() - start[1]
        found[f"{name} MiB"] = memory() - base

    def clock() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    start = clock()
    data = HDF5Dataset(path, in_memory=False)
    data.take(data.splits["train"][:8])
    done("open", start)
    settings = TrainingConfig(batch_size=8, max_epochs=1, threads=1, tensorboard=False)
    config = TrainConfig(
        data=DataConfig(path=str(path), memory=limit), model=_TINY, training=settings
    )
    start = clock()
    contents = load_data(config, _TINY.cutoff)
    done("first start", start)
    start = clock()
    contents = load_data(config, _TINY.cutoff)
    done("next start", start)
    found["streamed"] = float(not contents.train.in_memory)

    plan = Plan(contents.train.sizes, settings)
    loader = Loader(
        contents.train, _TINY.cutoff, torch.float32, plan.window, contents.files.neighbors
    )
    start = clock()
    places = plan.epoch(0)
    done("order of an epoch", start)
    count = min(len(places), 6 * plan.window // 8)
    start = clock()
    with loader.batches(places[:count]) as batches:
        frames = sum(batch.num_structures for batch in batches if batch is not None)
    done("reading", start)
    found["frames/s read"] = frames / found["reading"]

    class Enough(Exception):
        pass

    class Timed(Hooks):
        started = (0.0, 0.0)
        steps = 0

        def before_step(self, run: Any) -> None:
            self.started = self.started if any(self.started) else clock()

        def after_step(self, run: Any, loss: float) -> None:
            self.steps = run.step
            if run.step >= steps:
                raise Enough

        def after_epoch(self, run: Any, row: dict[str, Any]) -> None:
            raise Enough

    hooks = Timed()
    with tempfile.TemporaryDirectory() as run:
        try:
            train(config, Path(run) / "run", hooks=hooks, progress=False)
        except Enough:
            done("training", hooks.started)
        found["frames/s trained"] = 8 * hooks.steps / found["training"]
    return found


def main() -> None:
    """Write, measure in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--memory", type=float, default=2.0, help="data.memory, GiB")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.steps, given.memory)))
        return
    with tempfile.TemporaryDirectory(dir=given.directory) as folder:
        for frames in given.frames:
            path = Path(folder) / f"{frames}.h5"
            write(path, frames)
            print(f"{frames:,} frames, {path.stat().st_size / 2**20:,.0f} MiB")
            command = [sys.executable, __file__, "--measure", str(path)]
            command += ["--steps", str(given.steps), "--memory", str(given.memory)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, value in json.loads(output.splitlines()[-1]).items():
                unit = "" if "MiB" in name or "/s" in name or name == "streamed" else " s"
                print(f"  {name:<24}{value:12.3f}{unit}")
            path.unlink()


if __name__ == "__main__":
    main()
