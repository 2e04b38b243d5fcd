"""What a training step costs by atoms and by edges: are batches of equal numbers of atoms equal?

Batches of about 512 atoms from thin to dense, F = 64 and 128, three interactions, 5 Å, float32, one
thread: CPU time of a step of the native operators, its fit as atoms · a + edges · b, and how unequal
steps are where a set mixes them, with batches of equal atoms and of equal edges.

    python benchmarks/batching.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, water, write_report
from mlff_distiller.config import ModelConfig
from mlff_distiller.data import Batch, Structure, collate
from mlff_distiller.models import StudentForceField
from mlff_distiller.sampling.builtin import builtin

ATOMS, WIDTHS = 512, (64, 128)


def systems(atoms: int) -> dict[str, list[Structure]]:
    """Frames of a batch of about ``atoms`` atoms, from few neighbours to many."""
    numbers, positions, cell = water(5)
    crystals = {
        "silicon": bulk("Si", cubic=True) * (2, 2, 2),
        "copper": bulk("Cu", cubic=True) * (3, 3, 3),
        "water": Atoms(numbers, positions, cell=cell, pbc=True),
        "diamond": bulk("C", cubic=True) * (3, 3, 3),
    }
    found = {"ethanol": builtin("ethanol")}
    for name, crystal in crystals.items():
        crystal.rattle(0.05, seed=0)
        found[name] = [Structure.from_atoms(crystal)]
    return {k: v * max(1, round(atoms / len(v[0]))) for k, v in found.items()}


class Step:
    """A step's gradient, again and again."""

    def __init__(self, width: int, structures: list[Structure]) -> None:
        torch.manual_seed(0)
        elements = sorted({int(z) for s in structures for z in s.atomic_numbers})
        self.student = StudentForceField(ModelConfig(hidden_dim=width, zbl=False), elements)
        self.batch: Batch = collate(structures, self.student.cutoff)
        self.labels = torch.randn(self.batch.positions.shape)

    def __call__(self) -> float:
        start = time.process_time()
        found = self.student.compute(self.batch, stress=False, create_graph=True)
        loss = (found["forces"] - self.labels).square().mean() + found["energy"].square().mean()
        loss.backward(inputs=list(self.student.parameters()))
        return time.process_time() - start


def fit(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of an atom and of an edge, by least squares of relative errors."""
    found = np.array([[r["atoms"], r["edges"]] for r in rows], dtype=float)
    cost = np.array([r["seconds"] for r in rows])
    a, b = np.linalg.lstsq(found / cost[:, None], np.ones(len(cost)), rcond=None)[0]
    return float(a), float(b)


def main() -> None:
    parser = parser_of(__doc__, quick="64 atoms, two rounds", output=RESULTS, whole=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms, rounds = (64, 2) if options.quick else (ATOMS, 5)
    rows, lines, costs = [], [], []
    for width in WIDTHS:
        steps = {name: Step(width, frames) for name, frames in systems(atoms).items()}
        for step in steps.values():
            step()
        times = in_turn(steps, rounds, rotate=True)
        mine: list[dict[str, Any]] = []
        for name, step in steps.items():
            n, edges = len(step.batch.positions), step.batch.edge_index.shape[1]
            seconds = statistics.median(times[name])
            row = {"width": width, "system": name, "atoms": n, "edges": edges}
            mine.append({**row, "seconds": seconds})
            lines.append(f"| {width} | {name} | {n} | {edges / n:.0f} | {1e6 * seconds / n:.0f} |")
        a, b = fit(mine)
        per_atom = [r["seconds"] / r["atoms"] for r in mine]
        per_edge = [r["seconds"] / r["edges"] for r in mine]
        costs.append(
            f"F = {width}: {1e6 * a:.0f} µs an atom and {1e6 * b:.1f} µs an edge. Slowest to fastest "
            f"step of these systems: {max(per_atom) / min(per_atom):.1f} with equal atoms, "
            f"{max(per_edge) / min(per_edge):.1f} with equal edges."
        )
        rows += mine
    head = "| F | system | atoms | neighbours | CPU µs an atom |\n|---|---|---|---|---|"
    text = f"A training step, native operators, one thread. {processor()}.\n\n{head}\n"
    text += "\n".join([*lines, "", *costs]) + "\n"
    print(text)
    if not options.quick:
        write_report(options.output, "batching", {"processor": processor(), "rows": rows}, text)


if __name__ == "__main__":
    main()
