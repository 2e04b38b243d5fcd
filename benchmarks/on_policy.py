"""On-policy rounds against one-shot sampling, at the same number of labels and training steps.

Silicon (64 atoms) from SevenNet-0. One-shot: rattled, strained and defective cells alone. On-policy:
three tenths of the labels are such, the rest is chosen from the student's own dynamics at 300 to
1800 K, in five rounds. Then each student runs eight times 4 ps at 1800 K from the crystal: how many
runs explode, the error of its forces on frames that it visits, and on rattled vacancies,
interstitials, surfaces and stacking faults that nobody was trained on.

    python benchmarks/on_policy.py                      # about two hours on two cores
    python benchmarks/on_policy.py --budgets 100 200
    python benchmarks/on_policy.py --report
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from mlff_distiller.config import DistillConfig, SamplingConfig, from_dict
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, structures_hash
from mlff_distiller.dynamics import engine_of
from mlff_distiller.evaluation import predict
from mlff_distiller.files import atomic_write_text
from mlff_distiller.pipeline import explore
from mlff_distiller.pipeline.distill import run_distillation
from mlff_distiller.pipeline.stage import Hashed, hashed_file
from mlff_distiller.sampling import builtin, sample
from mlff_distiller.students import StudentForceField
from mlff_distiller.teachers.parallel import ParallelTeacher

WORK = Path(__file__).resolve().parents[1] / "runs" / "on_policy"
TEACHER = "sevennet-0"
BUDGETS = (100, 200, 400, 800)
METHODS = ("one-shot", "on-policy")
#: Of the labels, those of the first student.
SEED_SHARE = 0.3
ROUNDS = 5
#: Of the optimiser, with batches of two.
STEPS = 12_000
HOT = 1800.0
VISITED = 16
DEFECTS = 24


def sampling(number: int) -> dict[str, Any]:
    """Static frames: a third rattled, the rest strained, defective, close pairs."""
    parts = {"strain": 0.25, "defects": 0.2, "dimers": 0.1}
    sections: dict[str, Any] = {
        name: {"number": round(share * number)} for name, share in parts.items()
    }
    sections["defects"]["kinds"] = ["vacancy", "surface"]
    rattle = number - 1 - sum(section["number"] for section in sections.values())
    return {
        **sections,
        "num_rattle": rattle,
        "rattle_stdev": [0.03, 0.06, 0.12, 0.2],
        "num_md": 0,
        "isolated_atoms": True,
    }


def config_of(method: str, budget: int, output: Path) -> DistillConfig:
    """Equal labels and equal optimiser steps."""
    batch = 2
    rounds = ROUNDS if method == "on-policy" else 0
    seeds = budget if rounds == 0 else round(SEED_SHARE * budget)
    frames = 0 if rounds == 0 else -(-(budget - seeds) // rounds)
    # Half of the steps in the rounds, half in the last training.
    trained = sum(seeds + k * frames for k in range(rounds + 1)) if rounds else 0
    share = 0.5 if rounds else 0.0
    epochs = max(1, round(share * STEPS * batch / trained)) if rounds else 1
    last = round((1 - share) * STEPS * batch / budget)
    return from_dict(
        DistillConfig,
        {
            "structures": "builtin:silicon",
            "output": str(output),
            "purpose": {"temperature": [300, HOT], "timestep": 2.0},
            "teacher": {"name": TEACHER},
            "sampling": sampling(seeds),
            "data": {"test_fraction": 0.0},
            "model": {"hidden_dim": 32, "num_interactions": 2, "num_rbf": 16},
            "training": {
                "batch_size": batch,
                "optimizer": "adamw",
                "learning_rate": 3e-3,
                "weight_decay": 1e-4,  # the default when the first budgets were measured
                "stress_weight": 5000,
                "max_epochs": last,
                "early_stop_patience": 10_000,
                "threads": 1,
                "tensorboard": False,
            },
            "loop": {
                "rounds": rounds,
                "frames": max(1, frames),
                "visited": max(1, frames // 3),
                "epochs": epochs,
                "teacher_calls": budget,
                "final_anew": False,  # or the steps of the rounds would count for nothing
            },
            "acceptance": {"measure": False, "visited_force_mae": 1e-6},  # rounds never hold
            "engines": {"lammps": False, "openmm": False, "ase": False},
        },
    )


def labelled(frames: list[Structure], path: Path) -> list[Structure]:
    """The teacher's labels, kept in a file."""
    if not path.exists():
        found = ParallelTeacher(TEACHER).label(frames)
        with HDF5Writer(path, teacher=TEACHER) as writer:
            writer.append(found)
    return list(HDF5Dataset(path))


def defects(folder: Path) -> list[Structure]:
    """The same for all students; another seed than training's."""
    config = from_dict(
        SamplingConfig,
        {
            "num_rattle": 0,
            "num_md": 0,
            "seed": 12345,
            "defects": {
                "number": DEFECTS,
                "kinds": ["vacancy", "interstitial", "surface", "stacking"],
            },
        },
    )
    return labelled(sample(builtin("silicon"), config), folder / "defects.h5")


def force_mae(student: Path, frames: list[Structure]) -> float:
    """meV/Å."""
    found = predict(StudentForceField.load(student), frames)
    errors = [np.abs(p.forces - f.forces).ravel() for p, f in zip(found, frames, strict=True)]
    return 1e3 * float(np.concatenate(errors).mean())


def measure(student: Path, folder: Path) -> dict[str, Any]:
    """Dynamics at the highest temperature, and errors there and on defects."""
    start = builtin("silicon")
    runs = [explore.Run(0, "nvt", HOT, HOT, 0.0, 4.0, seed=1000 + k) for k in range(8)]
    inputs = explore.Inputs(
        student=hashed_file(student),
        starts=Hashed(start, structures_hash(start)),
        runs=runs,
        engine=engine_of("auto"),
        timestep=2.0,
        interval=100.0,
        min_distance=0.6,
        max_force=30.0,
    )
    found = explore.work(inputs, folder, print)
    candidates = list(HDF5Dataset(folder / explore.CANDIDATES, require_labels=False))
    late = [s for s in candidates if s.info["time_fs"] > 1000.0] or candidates
    some = [late[i] for i in np.linspace(0, len(late) - 1, VISITED).astype(int)]
    visited = labelled(some, folder / "visited.h5")
    sizes = np.concatenate([np.linalg.norm(f.forces, axis=1) for f in visited])
    return {
        "exploded": found.exploded,
        "runs": len(runs),
        "visited_force_mae": force_mae(student, visited),
        "visited_mean_force": float(sizes.mean()),
        "defect_force_mae": force_mae(student, defects(WORK)),
    }


def finished(report: Path) -> list[dict[str, Any]]:
    """Rows of this folder, and of an earlier report where they are not in it."""
    rows = {}
    if report.exists():
        earlier = json.loads(report.read_text())
        if earlier["steps"] == STEPS:
            rows = {(r["budget"], r["method"]): r for r in earlier["rows"]}
    for budget in BUDGETS:
        for method in METHODS:
            result = WORK / f"{method}-{budget}" / "result.json"
            if result.exists():
                rows[budget, method] = json.loads(result.read_text())
    return [rows[b, m] for b in BUDGETS for m in METHODS if (b, m) in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| labels | method | exploded at 1800 K | force MAE visited, meV/Å | mean force, eV/Å "
        "| force MAE defects, meV/Å |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['labels']} | {r['method']} | {r['exploded']} of {r['runs']} "
        f"| {r['visited_force_mae']:.0f} | {r['visited_mean_force']:.2f} "
        f"| {r['defect_force_mae']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser: argparse.ArgumentParser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="only write what is done")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for budget in arguments.budgets:
        for method in arguments.methods:
            folder = WORK / f"{method}-{budget}"
            result = folder / "result.json"
            if result.exists() or arguments.report:
                continue
            print(f"== {method}, {budget} labels")
            metrics = run_distillation(config_of(method, budget, folder), quiet=True)
            found = measure(folder / "student.pt", folder)
            row = {"method": method, "labels": metrics["teacher_calls"], "budget": budget, **found}
            atomic_write_text(result, json.dumps(row, indent=1))
    rows = finished(arguments.output / "on_policy.json")
    text = f"# On-policy against one-shot\n\n{processor()}; {STEPS} steps of two frames each.\n\n"
    text += table(rows) + "\n"
    write_report(arguments.output, "on_policy", {"rows": rows, "steps": STEPS}, text)
    print(table(rows))


if __name__ == "__main__":
    main()
