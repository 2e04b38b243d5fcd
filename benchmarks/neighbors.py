"""Neighbour lists from a thousand to a million atoms: µs per atom, beside vesin, matscipy, ase.

A disordered solid in random order of atoms, 0.1 atoms/Å^3 (water, silica), cutoff 5 Å: 52
neighbours. Each program returns senders, receivers and shifts. Programs take turns within every
round, so that a busy machine slows all of them; medians of the rounds are reported. With one
thread (default) the clock is the CPU time of the process, which other processes hardly disturb.

    python benchmarks/neighbors.py --max-atoms 1000000
    python benchmarks/neighbors.py --quick
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, pyplot, save, write_report
from mlff_distiller.ops import neighbor_list
from mlff_distiller.ops.neighbors import Backend

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
DENSITY = 0.1  # atoms / Å^3
CUTOFF = 5.0  # Å
LARGEST = {"ase": 10_000, "reference": 100_000, "matscipy": 100_000}  # slower than linear, or slow

Run = Callable[[NDArray, NDArray], int]


def disordered_solid(n_atoms: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Jittered lattice, atoms shuffled: positions (n_atoms, 3) and cubic cell, Å."""
    rng = np.random.default_rng(seed)
    per_side = int(np.ceil(n_atoms ** (1 / 3)))
    sites = np.stack(np.unravel_index(np.arange(per_side**3), (per_side,) * 3), axis=1)
    jittered = rng.permutation(sites)[:n_atoms] + rng.uniform(0.0, 0.6, (n_atoms, 3))
    length = (n_atoms / DENSITY) ** (1 / 3)
    return jittered * (length / per_side), np.eye(3) * length


def ours(backend: Backend) -> Run:
    def run(positions: NDArray, cell: NDArray) -> int:
        edge_index, _ = neighbor_list(
            torch.from_numpy(positions),
            torch.from_numpy(cell),
            torch.tensor([True, True, True]),
            CUTOFF,
            backend=backend,
        )
        return edge_index.shape[1]

    return run


def programs() -> dict[str, Run]:
    """The programs that are installed."""
    found: dict[str, Run] = {"native": ours("native"), "reference": ours("reference")}
    try:
        import vesin

        def run_vesin(positions: NDArray, cell: NDArray) -> int:
            lists = vesin.NeighborList(cutoff=CUTOFF, full_list=True)
            return len(lists.compute(positions, cell, True, quantities="ijS")[0])

        found["vesin"] = run_vesin
    except ImportError:
        pass
    try:
        from matscipy.neighbours import neighbour_list

        def run_matscipy(positions: NDArray, cell: NDArray) -> int:
            pbc = np.array([True, True, True])
            result = neighbour_list("ijS", positions=positions, cell=cell, pbc=pbc, cutoff=CUTOFF)
            return len(result[0])

        found["matscipy"] = run_matscipy
    except ImportError:
        pass

    from ase.neighborlist import primitive_neighbor_list

    def run_ase(positions: NDArray, cell: NDArray) -> int:
        return len(primitive_neighbor_list("ijS", (True,) * 3, cell, positions, CUTOFF)[0])

    found["ase"] = run_ase
    return found


def measure(sizes: list[int], rounds: int, threads: int) -> list[dict[str, float | int | str]]:
    """One row for each program and size."""
    clock = time.process_time if threads == 1 else time.perf_counter
    rows: list[dict[str, float | int | str]] = []
    for n_atoms in sizes:
        positions, cell = disordered_solid(n_atoms)
        racing = {k: run for k, run in programs().items() if n_atoms <= LARGEST.get(k, n_atoms)}
        edges = {name: run(positions, cell) for name, run in racing.items()}  # warm-up
        if len(set(edges.values())) != 1:
            raise SystemExit(f"the programs disagree at {n_atoms} atoms: {edges}")
        # A program inherits the heap that its predecessor left: the order rotates, and small
        # systems are built several times per turn, as in molecular dynamics.
        builds = 3 if n_atoms <= 30_000 else 1
        builders = {
            k: partial(seconds_of, clock, run, positions, cell) for k, run in racing.items()
        }
        few = rounds if n_atoms < 300_000 else min(rounds, 3)
        seconds = in_turn(builders, few, repeats=builds, rotate=True)
        for name, values in seconds.items():
            median = statistics.median(values)
            rows.append(
                {
                    "program": name,
                    "n_atoms": n_atoms,
                    "n_edges": edges[name],
                    "us_per_atom": 1e6 * median / n_atoms,
                    "spread": (max(values) - min(values)) / median,
                }
            )
        print_rows(rows, n_atoms)
    return rows


def seconds_of(clock: Callable[[], float], run: Run, positions: NDArray, cell: NDArray) -> float:
    start = clock()
    run(positions, cell)
    return clock() - start


def print_rows(rows: list[dict[str, float | int | str]], n_atoms: int) -> None:
    current = {r["program"]: float(r["us_per_atom"]) for r in rows if r["n_atoms"] == n_atoms}
    native = current["native"]
    text = "  ".join(f"{name} {us:8.2f} ({us / native:5.1f}×)" for name, us in current.items())
    print(f"{n_atoms:>9,} atoms  {text}", flush=True)


def plot(report: dict[str, Any], path: Path) -> None:
    rows = report["rows"]
    figure, axes = pyplot().subplots(figsize=(6.4, 4.0), layout="constrained")
    for name in dict.fromkeys(r["program"] for r in rows):
        own = [r for r in rows if r["program"] == name]
        axes.loglog(
            [r["n_atoms"] for r in own], [r["us_per_atom"] for r in own], "o-", label=str(name)
        )
    axes.set(xlabel="atoms", ylabel=f"µs per atom and build ({report['clock']})")
    axes.set_title("Neighbour list")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def main() -> None:
    parser = parser_of(__doc__, quick="up to 10,000 atoms, three rounds", output=RESULTS)
    parser.add_argument("--max-atoms", type=int, default=SIZES[-1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="threads of the native list")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.max_atoms, arguments.rounds = min(arguments.max_atoms, 10_000), 3
    sizes = [n for n in SIZES if n <= arguments.max_atoms]
    if not sizes:
        parser.error(f"--max-atoms must be at least {SIZES[0]}, got {arguments.max_atoms}")
    torch.set_num_threads(arguments.threads)

    clock = "CPU time" if arguments.threads == 1 else "wall time"
    print(f"µs per atom ({clock}, {arguments.threads} thread(s)), in brackets relative to native")
    rows = measure(sizes, arguments.rounds, arguments.threads)
    report = {
        "cutoff": CUTOFF,
        "density": DENSITY,
        "threads": arguments.threads,
        "clock": clock,
        "machine": processor(),
        "torch": torch.__version__,
        "rows": rows,
    }
    write_report(arguments.output, "neighbors", report, plot=plot)
    print(f"wrote {arguments.output / 'neighbors.json'} and neighbors.png")


if __name__ == "__main__":
    main()
