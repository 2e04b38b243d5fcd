"""The presets of the model: size, accuracy after equal training, cost of training and of dynamics.

Each is trained on ethanol (rMD17; a cluster with EMT labels where ../shared/data is missing) for the
same number of steps of eight frames, one thread, with the default settings. The time of a training
step is that of the CPU; that of inference is the native engine's for water (648 atoms, one thread),
all presets in turn, beside the ratio to `small`.

    python benchmarks/presets.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import (
    RESULTS,
    in_turn,
    parser_of,
    processor,
    random_student,
    ratio,
    water,
    write_report,
)
from benchmarks.defaults import Variation, run
from benchmarks.tasks import SHARED, Task, tasks
from mlff_distiller.config import PRESETS, ModelConfig
from mlff_distiller.models import StudentForceField
from mlff_distiller.ops.engine import NativePotential

STEPS, ROUNDS, WATERS_PER_SIDE = 500, 12, 6


def inference(folder: Path, rounds: int, per_side: int) -> dict[str, list[float]]:
    """Seconds of a step of every preset, one for each round."""
    numbers, positions, cell = water(per_side)
    rng, pbc = np.random.default_rng(1), np.array([True] * 3)
    moved = [positions + rng.normal(0.0, 0.01, positions.shape) for _ in range(3)]

    def call_of(name: str) -> Any:
        path = folder / f"{name}.pt"
        random_student(path, **PRESETS[name])
        potential = NativePotential(path, threads=1)
        potential.compute(numbers, positions, cell, pbc)

        def call() -> float:
            start = time.process_time()
            for positions_now in moved:
                potential.compute(numbers, positions_now, cell, pbc)
            return (time.process_time() - start) / len(moved)

        return call

    return in_turn({name: call_of(name) for name in PRESETS}, rounds, rotate=True)


def parameters(name: str) -> int:
    """Of a student of C, H and O."""
    return StudentForceField(ModelConfig(**PRESETS[name]), [1, 6, 8]).num_parameters


def trained(task: Task, name: str, steps: int) -> dict[str, float]:
    """Errors and cost of a training of ``steps`` steps."""
    plain = Task(task.name, task.path, {}, task.training)
    return run(plain, Variation("preset", name, model=PRESETS[name], steps=steps), 0)


def main() -> None:
    parser = parser_of(__doc__, quick="a few steps", output=RESULTS, whole=True)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the public data sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds, side = (20, 2, 4) if options.quick else (STEPS, ROUNDS, WATERS_PER_SIDE)
    with tempfile.TemporaryDirectory() as folder:
        task = tasks(Path(folder), options.shared)[0]
        errors = {name: trained(task, name, steps) for name in PRESETS}
        seconds = inference(Path(folder), rounds, side)
    atoms = 3 * side**3
    rows = [
        {
            "preset": name,
            "parameters": parameters(name),
            **errors[name],
            "step_ms": 1e3 * errors[name]["seconds"] / errors[name]["steps"],
            "us_per_atom": 1e6 * statistics.median(seconds[name]) / atoms,
            "inference_to_small": ratio(seconds[name], seconds["small"]),
        }
        for name in PRESETS
    ]
    lines = [
        f"{task.name}, {rows[0]['steps']:.0f} steps of eight frames; inference of {atoms} atoms of "
        f"water, one thread. {processor()}.",
        "",
        "| preset | parameters | force MAE, meV/Å | energy MAE, meV/atom | training step, ms of CPU "
        "| inference, µs per atom | to `small` |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['preset']}` | {row['parameters']:,} | {row['force_mae']:.1f} | "
            f"{row['energy_mae']:.2f} | {row['step_ms']:.1f} | {row['us_per_atom']:.2f} | "
            f"{row['inference_to_small']:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if not options.quick:
        report = {"processor": processor(), "task": task.name, "rows": rows}
        write_report(options.output, "presets", report, text)


if __name__ == "__main__":
    main()
