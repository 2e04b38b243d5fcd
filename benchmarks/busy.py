"""Training on a machine that others use too: what spinning threads cost.

A small training (rattled copper, labelled with EMT) runs alone and beside busy processes, as many
as there are CPUs, once for each way in which OpenMP's threads may wait. Every round measures all,
in turn. With two threads on two CPUs beside two busy processes the fair share is half the speed.

    python benchmarks/busy.py
    python benchmarks/busy.py --quick
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, write_report
from mlff_distiller.cpus import usable_cpus

#: Name -> (environment, threads).
WAYS: dict[str, tuple[dict[str, str], int]] = {
    "OpenMP's default": ({"GOMP_SPINCOUNT": "300000"}, 2),
    "spin 10000": ({"GOMP_SPINCOUNT": "10000"}, 2),
    "spin 1000": ({"GOMP_SPINCOUNT": "1000"}, 2),
    "passive": ({"OMP_WAIT_POLICY": "passive"}, 2),
    "one thread": ({}, 1),
}


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that keep CPUs busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def prepare(folder: Path) -> None:
    """``data.h5``."""
    from ase.build import bulk

    bulk("Cu", cubic=True).repeat(2).write(folder / "cu.extxyz")
    for arguments in (
        ["sample", "cu.extxyz", "-o", "frames.extxyz", "--rattle", "40"],
        ["label", "frames.extxyz", "--teacher", "emt", "-o", "data.h5"],
    ):
        command(folder, arguments, {})


def command(folder: Path, arguments: list[str], environment: dict[str, str]) -> str:
    """Output of ``mlff-distiller``."""
    dropped = ("OMP_", "GOMP_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    done = subprocess.run(
        [sys.executable, "-m", "mlff_distiller.cli", *arguments],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def seconds(folder: Path, way: str, epochs: int, others: int) -> float:
    """Of training, without the start of the program."""
    environment, threads = WAYS[way]
    config = {
        "model": {"hidden_dim": 64, "num_interactions": 2},
        "training": {"max_epochs": epochs, "threads": threads, "early_stop_patience": 10 * epochs},
    }
    with tempfile.TemporaryDirectory(dir=folder) as run:
        (Path(run) / "c.yaml").write_text(json.dumps(config))
        with busy(others):
            output = command(
                folder,
                ["train", f"{run}/c.yaml", "--data", "data.h5", "-o", f"{run}/run", "--json"],
                environment,
            )
    return float(json.loads(output)["seconds"])


def main() -> None:
    parser = parser_of(__doc__, quick="one round of two epochs", output=RESULTS, whole=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    rounds, epochs = (1, 2) if options.quick else (options.rounds, options.epochs)
    cpus = usable_cpus()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        calls = {
            (way, others): partial(seconds, folder, way, epochs, others)
            for way in WAYS
            for others in (0, cpus)
        }
        found = in_turn(calls, rounds, rotate=True)
    median = {key: statistics.median(times) for key, times in found.items()}
    quiet = median["OpenMP's default", 0]
    rows = [
        {
            "way": way,
            "threads": WAYS[way][1],
            "alone": median[way, 0] / quiet,
            "busy": median[way, cpus] / quiet,
            "seconds": {"alone": found[way, 0], "busy": found[way, cpus]},
        }
        for way in WAYS
    ]
    report: dict[str, Any] = {
        "processor": processor(), "cpus": cpus, "epochs": epochs, "rounds": rounds, "rows": rows,
    }  # fmt: skip
    lines = [
        f"Time of a training, relative to OpenMP's default alone ({quiet:.1f} s). "
        f"{cpus} CPUs, {cpus} busy processes, {processor()}; medians of {rounds}.",
        "",
        "| threads wait by | threads | alone | beside busy processes |",
        "|---|---|---|---|",
        *(f"| {r['way']} | {r['threads']} | {r['alone']:.2f} | {r['busy']:.2f} |" for r in rows),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if not options.quick:
        write_report(options.output, "busy", report, text)


if __name__ == "__main__":
    main()
