"""The native engine from 81 to 100,000 atoms: time and memory per atom, and what bounds each phase.

Water at 1 g/cm³, default network (F = 128, 3 interactions, 5 Å, float32). Atoms jitter by 0.01 Å
between calls, as in dynamics; the neighbour list has the usual skin, and its cost when rebuilt at
every call is given apart. Each size runs in a process of its own, whose peak resident memory above
that of the loaded model is divided by the number of atoms. With one thread the clock is the CPU
time of the process, which other processes disturb least; with more it is wall time.

Phases are compared with what this core does at best in the same run: fused multiply-adds on
registers, the engine's own matrix product at the network's shapes, reads from L2 and from memory.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --quick --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import (
    RESULTS,
    parser_of,
    processor,
    pyplot,
    random_student,
    save,
    water,
    write_report,
)
from mlff_distiller.ops.engine import NativePotential, native_module

WATERS_PER_SIDE = (3, 4, 6, 8, 12, 16, 24, 33)  # 81 ... 107,811 atoms
QUICK = (3, 4, 8)
HIDDEN, INTERACTIONS = 128, 3
SKIN = 0.3  # Å
PHASES = ("geometry", "edges_forward", "dense_forward", "dense_backward", "edges_backward")


def export_model(path: Path) -> None:
    """The default network with random weights."""
    random_student(path, hidden_dim=HIDDEN, num_interactions=INTERACTIONS)


def multiply_adds(neighbors: float) -> dict[str, float]:
    """Fused multiply-adds per atom by phase: of the matrix products, and those (and plain products
    and sums, which take the same slots) of the loops over edges."""
    f, k = HIDDEN, INTERACTIONS
    # mix 6, update 2 + 3 (last: 2), message 4 but for the first interaction, readout 1/2
    dense = f * f * (6 * k + 5 * k - 1 + 4 * (k - 1) + 0.5)
    # Per edge and channel; see csrc/core/kernels_edges-inl.h.
    forward = f * neighbors * (11 + 17 * (k - 1))
    backward = f * neighbors * (18 + 35 * (k - 1))
    return {
        "dense_forward": dense,
        "dense_backward": dense,
        "edges_forward": forward,
        "edges_backward": backward,
    }


def ceilings(seconds: float) -> dict[str, float]:
    """What one core does at best, now."""
    native = native_module()
    return {
        "fma_gflops": native.testing.measure_fma(seconds),
        "gemm_gflops": native.testing.measure_gemm(96, HIDDEN, HIDDEN, seconds),
        "l2_gb_per_s": native.testing.measure_read(500_000, seconds),
        "memory_gb_per_s": native.testing.measure_read(256_000_000, seconds),
    }


def forget_peak_memory() -> None:
    """Start :func:`peak_memory` afresh (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident bytes of this process since :func:`forget_peak_memory`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def per_atom(
    n: int, call: Callable[[], Any], clock: Callable[[], float], rounds: int
) -> list[float]:
    """µs per atom of ``rounds`` calls, each long enough for the clock."""
    repeats = max(1, 400 // n)
    times = []
    for _ in range(rounds):
        start = clock()
        for _ in range(repeats):
            call()
        times.append((clock() - start) / repeats / n * 1e6)
    return times


def measure(path: str, per_side: int, threads: int, rounds: int) -> dict[str, Any]:
    """One size, in this process."""
    clock = time.process_time if threads == 1 else time.perf_counter
    numbers, positions, cell = water(per_side)
    n, pbc = len(numbers), np.array([True] * 3)
    rng = np.random.default_rng(1)
    moved = [positions + rng.normal(0, 0.01, positions.shape) for _ in range(3)]
    potential = NativePotential(path, threads=threads, skin=SKIN)
    forget_peak_memory()
    before = peak_memory()
    potential.compute(numbers, positions, cell, pbc)
    peak = peak_memory()

    turn = iter(range(10**9))

    def call() -> None:
        potential.compute(numbers, moved[next(turn) % 3], cell, pbc)

    call()
    times = per_atom(n, call, clock, rounds)
    phases: dict[str, float] = {}
    for _ in range(rounds):
        potential.set_profiling(True)
        start = potential.neighbor_seconds
        call()
        sample = {name: potential.profile[name] / n * 1e6 for name in PHASES}
        sample["neighbors"] = (potential.neighbor_seconds - start) / n * 1e6
        for name, value in sample.items():
            phases[name] = min(phases.get(name, np.inf), value)

    rebuilding = NativePotential(path, threads=threads, skin=0.0)
    rebuilding.compute(numbers, positions, cell, pbc)
    spent = rebuilding.neighbor_seconds
    for shifted in moved:
        rebuilding.compute(numbers, shifted, cell, pbc)
    inside = rebuilding.num_edges / n  # without skin: the edges that are computed
    return {
        "atoms": n,
        "neighbors": inside,
        "best": min(times),
        "median": statistics.median(times),
        "phases": phases,
        "rebuild": (rebuilding.neighbor_seconds - spent) / len(moved) / n * 1e6,
        "peak_kb_per_atom": (peak - before) / n / 1e3,
        "held_kb_per_atom": potential.memory_bytes / n / 1e3,
        "isa": potential.isa,
        "intervals": potential.table["intervals"],
    }


def in_process_of_its_own(path: Path, per_side: int, threads: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", str(path), str(per_side)]
    command += ["--threads", str(threads), "--rounds", str(rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(output.stdout)


def table(report: dict[str, Any]) -> str:
    """Markdown of everything measured."""
    best = report["ceilings"]
    lines = [
        f"{report['machine']}, {report['isa']}; one core: FMA {best['fma_gflops']:.0f} GFLOP/s, "
        f"our matrix product {best['gemm_gflops']:.0f} GFLOP/s, L2 {best['l2_gb_per_s']:.0f} GB/s, "
        f"memory {best['memory_gb_per_s']:.0f} GB/s. Load while measuring: {report['load']:.1f}.",
        "",
        "| threads | atoms | µs/atom best | median | neighbours | list rebuilt | peak kB/atom |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['threads']} | {row['atoms']:,} | {row['best']:.1f} | {row['median']:.1f} "
            f"| {row['neighbors']:.1f} | +{row['rebuild']:.1f} | {row['peak_kb_per_atom']:.1f} |"
        )
    lines += [
        "",
        "| atoms | phase | µs/atom | FMA limit | of the limit |",
        "|---|---|---|---|---|",
    ]
    for row in (r for r in report["rows"] if r["threads"] == 1):
        work = multiply_adds(row["neighbors"])
        for name in ("neighbors", *PHASES):
            spent = row["phases"][name]
            limit = 2e-3 * work[name] / best["fma_gflops"] if name in work else None
            bound = (
                "| – | – |" if limit is None else f"| {limit:.1f} | {100 * limit / spent:.0f} % |"
            )
            lines.append(f"| {row['atoms']:,} | {name.replace('_', ' ')} | {spent:.1f} {bound}")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for threads in sorted({row["threads"] for row in report["rows"]}):
        rows = [row for row in report["rows"] if row["threads"] == threads]
        atoms = [row["atoms"] for row in rows]
        left.plot(atoms, [row["best"] for row in rows], "o-", label=f"{threads} thread(s)")
    left.set(xscale="log", xlabel="atoms", ylabel="µs per atom and call", title="water, F = 128")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend()
    rows = [row for row in report["rows"] if row["threads"] == 1]
    bottom = np.zeros(len(rows))
    labels = [f"{row['atoms']:,}" for row in rows]
    for name in ("neighbors", *PHASES):
        heights = np.array([row["phases"][name] for row in rows])
        right.bar(labels, heights, bottom=bottom, label=name.replace("_", " "))
        bottom += heights
    right.set(xlabel="atoms", ylabel="µs per atom", title="one thread, by phase")
    right.tick_params(axis="x", rotation=45)
    right.set_ylim(0, 1.35 * right.get_ylim()[1])
    right.legend(fontsize=8, ncol=3, loc="upper center")
    save(figure, path)


def main() -> None:
    parser = parser_of(__doc__, quick="three sizes, few rounds", output=RESULTS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        path, side = arguments.worker
        result = measure(path, int(side), arguments.threads[0], arguments.rounds)
        print(json.dumps(result))
        return
    sides = QUICK if arguments.quick else WATERS_PER_SIDE
    rounds = 5 if arguments.quick else arguments.rounds
    best = ceilings(0.2 if arguments.quick else 1.0)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "student.pt"
        export_model(path)
        for side in sides:
            for threads in arguments.threads:
                few = max(3, min(rounds, 300_000 // (3 * side**3)))
                row = in_process_of_its_own(path, side, threads, few)
                rows.append({"threads": threads, **row})
                print(
                    f"{row['atoms']:>8,} atoms, {threads} thread(s): {row['best']:6.1f} µs/atom, "
                    f"{row['peak_kb_per_atom']:.1f} kB/atom"
                )
    report = {
        "machine": processor(),
        "isa": rows[0]["isa"],
        "load": os.getloadavg()[0],
        "ceilings": best,
        "rows": rows,
    }
    text = table(report)
    write_report(arguments.output, "scaling", report, text, plot)
    print("\n" + text)
    print(f"wrote scaling.json, scaling.md and scaling.png in {arguments.output}")


if __name__ == "__main__":
    main()
