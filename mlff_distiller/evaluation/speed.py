"""Time of one energy-and-forces call of a teacher, in a process of its own.

Thread counts of compiled teachers (tblite, PySCF ...) are fixed when their libraries load, so a
fair comparison at a given number of threads needs a fresh process:

    python -m mlff_distiller.evaluation.speed '{"teacher": "emt", ...}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError

# Before the answer of the process that measures: teachers print, too.
_ANSWER = "seconds a call: "


def time_teacher(
    name: str,
    structure: Structure,
    *,
    device: str = "cpu",
    options: dict[str, Any] | None = None,
    threads: int = 1,
    seconds: float = 5.0,
) -> float:
    """Seconds per call of a teacher on ``structure``, the median over about ``seconds``.

    Atoms move a little between calls, so that no calculator can answer from its cache.

    Raises:
        InputError: the teacher is not installed or fails.
    """
    from mlff_distiller.data.io import write_structures

    with tempfile.TemporaryDirectory(prefix="mlff-speed-") as folder:
        path = Path(folder) / "structure.extxyz"
        write_structures(path, [structure])
        job = {
            "teacher": name,
            "structure": str(path),
            "device": device,
            "options": options or {},
            "threads": threads,
            "seconds": seconds,
        }
        count = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        command = [sys.executable, "-m", "mlff_distiller.evaluation.speed", json.dumps(job)]
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"timing the teacher {name} failed: {lines[-1]}")
    for line in reversed(process.stdout.splitlines()):
        if line.startswith(_ANSWER):
            return float(line.removeprefix(_ANSWER))
    raise InputError(f"timing the teacher {name} failed: it ended the program without an error")


def _main(job: dict[str, Any]) -> None:
    import torch

    from mlff_distiller.data.io import read_structures
    from mlff_distiller.teachers import get_teacher

    torch.set_num_threads(job["threads"])
    teacher = get_teacher(job["teacher"], device=job["device"], **job["options"])
    atoms = read_structures(job["structure"])[0].to_atoms(labels=False)
    atoms.calc = teacher.calculator
    generator = np.random.default_rng(0)
    atoms.get_forces()  # set-up is not counted
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < job["seconds"]:
        atoms.positions += generator.normal(0.0, 1e-3, atoms.positions.shape)
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    print(f"{_ANSWER}{float(np.median(times))}")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
