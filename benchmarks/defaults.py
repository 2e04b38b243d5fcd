"""Optimisers and the defaults of model and training, one changed at a time, on small tasks.

Ethanol (rMD17) and acetylacetone from ../shared/data where that is there, silicon from a file of
labels (--silicon); EMT labels otherwise (benchmarks/tasks.py). F = 64, 3 interactions (crystals 2),
one thread. Every run sees the same number of frames, with the schedule fitted to it. The error is
that of the 50 or so validation frames, the time that of the CPU. Runs that are done are kept in
runs/defaults, so that it can be stopped; 40 minutes of one core with the shared data.

    python benchmarks/defaults.py
    python benchmarks/defaults.py --silicon labels.h5 --only "optimiser*"
"""

from __future__ import annotations

import fnmatch
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from benchmarks.optimizers import OPTIMIZERS, Replace
from benchmarks.tasks import SHARED, Task, tasks
from mlff_distiller.config import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_write_text
from mlff_distiller.training import Hooks, train

WORK = Path(__file__).resolve().parents[1] / "runs" / "defaults"
#: Steps of a run with the batches of its task, of an optimiser and of any other variation.
STEPS_OPTIMIZER, STEPS = 1500, 1000
RATES: dict[str, tuple[float, ...]] = {
    "AdamW": (1e-3, 3e-3, 1e-2, 3e-2),
    "Muon": (1e-3, 3e-3, 1e-2),
    "SOAP": (1e-3, 3e-3, 5e-3, 1e-2, 3e-2),
}
#: Those that training has, and their names there.
OWN = {"AdamW": "adamw", "SOAP": "soap"}
#: Of the other optimisers.
RATE = 3e-3


@dataclass(frozen=True)
class Variation:
    """What differs from the defaults in a run.

    Attributes:
        kind: of the table that it belongs to.
        name: of its row.
        training: keys of TrainingConfig.
        model: keys of ModelConfig.
        batch: factor of the task's batch.
        optimizer: name in the tables; that of training's default when left out.
        steps: of the defaults' batch.
        seeds: how many runs.
        only: tasks that have it; empty for all.
    """

    kind: str
    name: str
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    batch: float = 1.0
    optimizer: str | None = None
    steps: int = STEPS
    seeds: int = 1


def variations() -> list[Variation]:
    """All runs, the defaults first."""
    found = [Variation("default", "default", seeds=3)]
    for name in (*OWN, *OPTIMIZERS):
        for rate in RATES.get(name, (RATE,)):
            found.append(
                Variation(
                    "optimiser",
                    f"{name}, {rate:g}",
                    {"learning_rate": rate},
                    optimizer=name,
                    steps=STEPS_OPTIMIZER,
                )
            )
    # SOAP's steps cost half as much again with small batches, little more with large ones.
    for rate in (3e-3, 5e-3, 1e-2):
        keys = {"learning_rate": rate}
        for name, optimizer, share in (
            (f"AdamW, {rate:g}", "AdamW", 1.0),
            (f"SOAP, {rate:g}, two thirds", "SOAP", 2 / 3),
            (f"SOAP, {rate:g}, nine tenths", "SOAP", 0.9),
        ):
            steps = round(share * STEPS_OPTIMIZER)
            found.append(
                Variation(
                    "equal time",
                    name,
                    keys,
                    optimizer=optimizer,
                    steps=steps,
                    seeds=1 if rate == 5e-3 else 2,
                )
            )
    trainings: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "learning rate": [(f"{v:g}", {"learning_rate": v}) for v in (1e-3, 3e-3, 3e-2)],
        "warm-up": [(f"{v} steps", {"warmup_steps": v}) for v in (0, 10, 300)],
        "schedule": [
            *((f"cosine to {v:g}", {"final_lr_fraction": v}) for v in (0.0, 0.1, 1.0)),
            ("plateau, patience 2", {"schedule": "plateau", "plateau_patience": 2}),
        ],
        "EMA": [(f"{v:g}", {"ema_decay": v}) for v in (0.0, 0.98, 0.999)],
        "weights": [
            (f"energy {e:g}, forces {f:g}", {"energy_weight": e, "force_weight": f})
            for e, f in ((0.1, 10.0), (1.0, 10.0), (100.0, 10.0), (1000.0, 10.0))
        ],
        "Huber": [
            (f"forces {v:g} eV/Å", {"force_huber": v, "energy_huber": v / 10})
            for v in (0.01, 0.05, 0.2)
        ],
        "weight decay": [(f"{v:g}", {"weight_decay": v}) for v in (0.0, 1e-2, 0.1)],
        "gradient clip": [(f"{v:g}", {"gradient_clip": v}) for v in (0.0, 1.0, 100.0)],
    }
    for kind, rows in trainings.items():
        found += [Variation(kind, name, training) for name, training in rows]
    for factor in (0.25, 0.5, 2.0):
        found.append(Variation("batch", f"× {factor:g}", batch=factor))
    found.append(Variation("precision", "float64", {"precision": "float64"}))
    models: dict[str, list[dict[str, Any]]] = {
        "interactions": [{"num_interactions": v} for v in (1, 2, 3, 4)],
        "radial functions": [
            *({"num_rbf": v} for v in (8, 16, 32)),
            {"rbf": "bessel"},
            {"rbf": "chebyshev"},
            {"rbf_trainable": True},
            {"rbf_per_interaction": True},
        ],
        "cutoff": [{"cutoff": v} for v in (4.0, 6.0)],
    }
    for kind, changes in models.items():
        for model in changes:
            name = ", ".join(f"{k} {v}" for k, v in model.items())
            found.append(Variation(kind, name, model=model))
    return found


def run(task: Task, v: Variation, seed: int) -> dict[str, float]:
    """Errors and CPU time of one training."""
    size = max(1, round(v.batch * task.training["batch_size"]))
    passes = v.steps * task.training["batch_size"] / task.frames
    config = TrainConfig(
        data=DataConfig(path=str(task.path), test_fraction=0.0),
        model=ModelConfig(**{**task.model, **v.model}),
        training=TrainingConfig(
            **{
                "batch_size": size,
                "max_epochs": max(1, round(passes)),
                "early_stop_patience": 100_000,
                "threads": 1,
                "tensorboard": False,
                "device": "cpu",
                "seed": seed,
                **({"optimizer": OWN[v.optimizer]} if v.optimizer in OWN else {}),
                **v.training,
            }
        ),
    )
    hooks = Replace(v.optimizer) if v.optimizer in OPTIMIZERS else Hooks()
    with tempfile.TemporaryDirectory() as folder:
        start = time.thread_time()
        found = train(config, folder, hooks=hooks, progress=False)
        seconds = time.thread_time() - start
    errors = found["validation"]
    return {
        "force_mae": errors["force_mae_mev_per_ang"],
        "energy_mae": errors["energy_mae_mev_per_atom"],
        "steps": found["steps"],
        "seconds": seconds,
    }


def collect(
    found: list[Task], chosen: list[Variation], kept: Path, patterns: list[str]
) -> dict[str, dict[str, float]]:
    """Results by ``task | kind | name | seed``, in order; those in ``kept`` are not run again."""
    known: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    keys = []
    for v in chosen:
        for task in found:
            asked = any(fnmatch.fnmatch(f"{task.name} | {v.kind} | {v.name}", p) for p in patterns)
            for seed in range(v.seeds):
                key = f"{task.name} | {v.kind} | {v.name} | {seed}"
                keys.append(key)
                if key in known or not asked:
                    continue
                try:
                    known[key] = run(task, v, seed)
                except InputError as error:  # it diverged
                    print(f"{key}: {error}", flush=True)
                    continue
                print(key, json.dumps(known[key]), flush=True)
                atomic_write_text(kept, json.dumps(known, indent=1))
    return {key: known[key] for key in keys if key in known}


def markdown(results: dict[str, dict[str, float]]) -> str:
    """Tables by kind: errors of every task, and CPU time of a step."""
    names = list(dict.fromkeys(key.split(" | ")[0] for key in results))
    rows: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = {}
    for key, value in results.items():
        task, kind, name, _ = key.split(" | ")
        rows.setdefault((kind, name), {}).setdefault(task, []).append(value)
    lines = [
        f"Validation errors of forces (meV/Å) / energies (meV/atom), CPU time of a step (ms). {processor()}.",
        "With several seeds mean ± standard deviation of a run.",
    ]
    for kind in dict.fromkeys(k for k, _ in rows):
        head = " | ".join(f"{name} | ms" for name in names)
        lines += ["", f"## {kind}", "", f"| | {head} |", "|---|" + "---|---|" * len(names)]
        for (of, name), cells in rows.items():
            if of == kind:
                texts = [_cell(cells[task]) if task in cells else " | " for task in names]
                lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _cell(runs: list[dict[str, float]]) -> str:
    forces = [r["force_mae"] for r in runs]
    energies = [r["energy_mae"] for r in runs]
    ms = statistics.mean(1e3 * r["seconds"] / r["steps"] for r in runs)
    spread = f" ± {statistics.stdev(forces):.1f}" if len(runs) > 1 else ""
    return f"{statistics.mean(forces):.1f}{spread} / {statistics.mean(energies):.2f} | {ms:.1f}"


def main() -> None:
    parser = parser_of(__doc__, quick="a few steps of the defaults", output=RESULTS, whole=True)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the public data sets")
    parser.add_argument("--silicon", type=Path, help="HDF5 file of labelled silicon")
    parser.add_argument("--only", nargs="*", default=["*"], help='patterns of "task | kind | name"')
    parser.add_argument("--work", type=Path, default=WORK, help="folder of data and finished runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    found = tasks(options.work, options.shared, options.silicon)
    kept = options.work / ("quick.json" if options.quick else "results.json")
    chosen = [Variation("default", "default", steps=20)] if options.quick else variations()
    results = collect(found, chosen, kept, options.only)
    text = markdown(results)
    print(text)
    if not options.quick:
        write_report(options.output, "defaults", {"processor": processor(), "runs": results}, text)


if __name__ == "__main__":
    main()
