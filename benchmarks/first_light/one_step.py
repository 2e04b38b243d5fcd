"""Some steps without torch, for ncu and compute-sanitizer, and of a million atoms.

python card.py one_step.py MODEL SIDE STEPS [no-cublas] [graph] [float32|half|tf32|bfloat16]
"""

from __future__ import annotations

import sys
import time

import card
import numpy as np


def main() -> None:
    card.help_if_asked(__doc__)
    path, side, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    words = sys.argv[4:]
    math = next((word for word in words if word in ("half", "tf32", "bfloat16")), "float32")
    numbers, positions, cell = card.water(side)
    potential = card.native().GpuPotential(
        path, graph="graph" in words, cublas="no-cublas" not in words, math=math
    )
    spent = []
    wave = np.sin(np.arange(positions.size)).reshape(-1, 3)
    for k in range(steps):
        moved = positions + 0.01 * (k % 4) * wave
        start = time.perf_counter()
        result = potential.compute(numbers, moved, cell, np.ones(3, bool), True, k == 1)
        spent.append(time.perf_counter() - start)
    total = np.abs(result["forces"].sum(0)).max()
    if not (np.isfinite(result["forces"]).all() and total < 1e-6 * len(numbers) + 1e-2):
        raise SystemExit(f"WRONG: forces add up to {total} eV/Å")
    later = sorted(spent[3:] or spent)
    print(f"{len(numbers):,} atoms, {math}, products by {potential.products}, {potential.num_builds} "
          f"lists, {potential.num_graph_launches} graphs, {potential.memory_bytes / 1e9:.2f} GB, first "
          f"{spent[0] * 1e3:.1f} ms, median of the rest {later[len(later) // 2] * 1e3:.3f} ms",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
