"""What keeps a long training with a large learning rate from blowing up: ethanol, F = 128, SOAP.

Weights that the labels hardly hold make random walks. Short runs: the validation error after 30
epochs by weight decay. Long ones: the first 8000 steps of 800 epochs, without and with weight decay
and the bound of the rate (training.long_run_rate): the largest norm of a matrix of weights, the
worst loss after the first thousand steps, and whether the run blew up, that is had to go back with
half the rate. One thread; an hour.

    python benchmarks/long_training.py
    python benchmarks/long_training.py --quick      two epochs, 150 steps: not to be quoted
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from benchmarks.time_to_accuracy import BATCH, DATA, NETWORK, data_file
from mlff_distiller.config import TrainConfig, from_dict
from mlff_distiller.training import Hooks, train

SHORT = (1e-4, 0.03, 0.1, 0.3)
#: weight decay, bound of the rate
LONG = ((1e-4, 0.0), (0.03, 0.0), (0.03, 0.45))


class Watch(Hooks):
    """Norms, and the first step after which a run went back."""

    def __init__(self, most: int) -> None:
        self.most, self.steps, self.blown, self.worst = most, 0, 0, 0.0
        self.norms: list[float] = []

    def after_step(self, run: Any, loss: float) -> None:
        self.steps = max(self.steps, run.step)
        if run.step > 1000:  # it begins large
            self.worst = max(self.worst, loss)
        if run.schedule.lowered < 1.0 and not self.blown:
            self.blown = self.steps
        if run.step % 500 == 0:
            self.norms.append(max(float(p.detach().norm()) for p in run.student.parameters()))
        if run.step >= self.most or self.blown:
            run.finish("enough")


def one(path: Path, decay: float, bound: float, epochs: int, most: int) -> dict[str, Any]:
    """A training of ``epochs`` that ends after ``most`` steps, or once it has blown up."""
    watch = Watch(most)
    settings = {
        "batch_size": BATCH,
        "weight_decay": decay,
        "long_run_rate": bound,
        "max_epochs": epochs,
        "early_stop_patience": 10**9,
        "threads": 1,
        "tensorboard": False,
    }
    config = {"data": {"path": str(path)}, "model": NETWORK, "training": settings}
    with tempfile.TemporaryDirectory() as folder:
        result = train(from_dict(TrainConfig, config), Path(folder) / "run", hooks=watch)
    return {
        "weight_decay": decay,
        "long_run_rate": bound,
        "steps": watch.steps,
        "force_mae": result["validation"]["force_mae_mev_per_ang"],
        "worst": watch.worst,
        "norm": float(np.max(watch.norms)) if watch.norms else None,
        "blown": watch.blown,
    }


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Ethanol, F = 128, SOAP at a rate of 0.01, one thread. {report['processor']}.",
        "",
        "| weight decay | force MAE after 30 epochs, meV/Å |",
        "|---|---|",
        *(f"| {r['weight_decay']:g} | {r['force_mae']:.1f} |" for r in report["short"]),
        "",
        "| weight decay | bound of the rate | steps of a long run | largest norm of a matrix | worst loss | |",
        "|---|---|---|---|---|---|",
    ]
    for r in report["long"]:
        blown = f"blew up after {r['blown']} steps" if r["blown"] else ""
        lines.append(
            f"| {r['weight_decay']:g} | {r['long_run_rate'] or 'none'} | {r['steps']} "
            f"| {r['norm'] or 0:.0f} | {r['worst']:.2g} | {blown} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and write the tables."""
    parser = parser_of(__doc__, quick="two epochs, 150 steps", output=RESULTS, whole=True)
    options = parser.parse_args()
    if not DATA.exists():
        parser.exit(1, f"{DATA} is not there\n")
    epochs, most = (2, 150) if options.quick else (30, 8000)
    with tempfile.TemporaryDirectory() as folder:
        path = data_file("ethanol", Path(folder))
        report = {
            "processor": processor(),
            "short": [one(path, decay, 0.45, epochs, 10**9) for decay in SHORT],
            "long": [one(path, *settings, 800, most) for settings in LONG],
        }
    text = table(report)
    print(text)
    if not options.quick:
        write_report(options.output, "long_training", report, text)


if __name__ == "__main__":
    main()
