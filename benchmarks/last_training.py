"""The last training of a finished distillation again: with new weights, and with those of its rounds.

On the labels of the run, with its settings and the same number of epochs, one thread. Reported are the
errors of the validation frames (average weights, last epoch), and how many batches blew up, that is
had a loss of more than a thousand times the median of the training. Where frames of a kind (lone atoms,
dimers) are few, weights drift in whatever only these feel.

    mlff-distiller distill examples/demo_silicon.yaml
    python benchmarks/last_training.py runs/demo --epochs 30
    python benchmarks/last_training.py runs/demo --epochs 30 --optimizer adamw --learning-rate 3e-3
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, processor, write_report
from mlff_distiller.config import DistillConfig, TrainConfig
from mlff_distiller.data import HDF5Dataset
from mlff_distiller.settings import load_config
from mlff_distiller.training import train
from mlff_distiller.training.history import read_history
from mlff_distiller.training.hooks import Hooks
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

_BLOWN = 1e3  # times the median loss


class _Losses(Hooks):
    def __init__(self) -> None:
        self.of_batches: list[float] = []

    def after_step(self, run: Any, loss: float) -> None:
        self.of_batches.append(loss)


def one(config: DistillConfig, run: Path, start: Path | None, epochs: int) -> dict[str, Any]:
    """Errors and time of one training."""
    settings = replace(
        config.training,
        max_epochs=epochs,
        max_minutes=None,
        early_stop_patience=10**9,
        threads=1,
        tensorboard=False,
    )
    data = replace(config.data, path=str(run / "data.h5"))
    losses = _Losses()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        train(
            TrainConfig(data=data, model=config.model, training=settings),
            Path(folder) / "run",
            start_from=start,
            hooks=losses,
            progress=False,
        )
        seconds = time.process_time() - begin
        history = read_history(Path(folder) / "run" / "history.csv")
    found = np.array(losses.of_batches)
    return {
        "weights": "new" if start is None else "of the rounds",
        "optimizer": settings.optimizer,
        "learning_rate": settings.learning_rate,
        "cpu_seconds": seconds,
        "force_mae": 1e3 * float(history["valid_force_mae"][-1]),
        "energy_mae": 1e3 * float(history["valid_energy_mae"][-1]),
        "stress_mae": float(history["valid_stress_mae"][-1]) * EV_PER_ANGSTROM3_IN_GPA,
        "train_force_rmse": 1e3 * float(history["train_force_rmse"][-1]),
        "batches": len(found),
        "blown": int((found > _BLOWN * np.median(found)).sum()),
        "worst": float(found.max()),
    }


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# The last training anew",
        "",
        f"{report['processor']}, one thread; {report['run']}: {report['frames']} frames, {report['epochs']} epochs.",
        "",
        "| weights | optimiser, rate | CPU s | force MAE, meV/Å | energy, meV/atom | stress, GPa | batches that blew up | worst loss |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['weights']} | {r['optimizer']}, {r['learning_rate']:g} | {r['cpu_seconds']:.0f} | {r['force_mae']:.1f} "
        f"| {r['energy_mae']:.2f} | {r['stress_mae']:.3f} | {r['blown']} of {r['batches']} | {r['worst']:.2g} |"
        for r in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train twice and write the table."""
    parser = parser_of(__doc__, whole=True, output=RESULTS)
    parser.add_argument("run", type=Path, help="folder of a finished distillation with rounds")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--optimizer", help="instead of the run's")
    parser.add_argument("--learning-rate", type=float, help="instead of the run's")
    args = parser.parse_args()
    config = load_config(args.run / "config.yaml", DistillConfig)
    given = {"optimizer": args.optimizer, "learning_rate": args.learning_rate}
    config = replace(
        config,
        training=replace(config.training, **{k: v for k, v in given.items() if v is not None}),
    )
    last = sorted((args.run / "rounds").glob("*/training/best.ckpt"))[-1]
    rows = [one(config, args.run, start, args.epochs) for start in (None, last)]
    report = {
        "processor": processor(),
        "run": args.run.name,
        "frames": len(HDF5Dataset(args.run / "data.h5").subset("train")),
        "epochs": args.epochs,
        "rows": rows,
    }
    text = markdown(report)
    write_report(args.output, "last_training", report, text)
    print(text)


if __name__ == "__main__":
    main()
