"""First contact: the GPU against the CPU engine in float64.

python card.py smoke.py MODEL [no-cublas]
"""

from __future__ import annotations

import sys
import time
import traceback

import card
import numpy as np

#: Energy of an atom, eV, and force, of the largest.
LIMITS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-5)}


def systems() -> dict[str, tuple]:
    """(numbers, positions, cell, pbc)."""
    numbers, positions, cell = card.water(2 if card.REHEARSAL else 4)
    on, off = np.ones(3, bool), np.zeros(3, bool)
    return {
        "periodic": (numbers, positions, cell, on),
        "open": (numbers, positions, np.zeros((3, 3)), off),
        "slab": (numbers, positions, cell, np.array([True, True, False])),
        "one atom": (numbers[:1], positions[:1], np.zeros((3, 3)), off),
    }


def one(module, path: str, dtype: str, graph: bool, cublas: bool, reference) -> int:
    """Wrong or failed systems of one mode."""
    bad, start = 0, time.perf_counter()
    potential = module.GpuPotential(path, dtype=dtype, graph=graph, cublas=cublas)
    print(f"{dtype} graph={graph:d}, made in {time.perf_counter() - start:.2f} s, products by "
          f"{potential.products}", flush=True)  # fmt: skip
    for name, (numbers, positions, cell, pbc) in systems().items():
        try:
            for move in range(3):  # a list, the list again, the captured graph
                moved = positions + 0.02 * move * np.sin(np.arange(positions.size)).reshape(-1, 3)
                want = reference.compute(numbers, moved, cell, pbc)
                got = potential.compute(numbers, moved, cell, pbc)
        except Exception:  # the next system may say more
            traceback.print_exc()
            bad += 1
            continue
        energy = np.abs(got["energies"] - want["energies"]).max()
        force = np.abs(got["forces"] - want["forces"]).max() / max(1, np.abs(want["forces"]).max())
        good = energy <= LIMITS[dtype][0] and force <= LIMITS[dtype][1]
        bad += not good
        print(f"  {name:9s} dE {energy:.1e} dF {force:.1e} edges {potential.num_edges} lists "
              f"{potential.num_builds} graphs {potential.num_graph_launches} "
              f"{'ok' if good else 'WRONG'}", flush=True)  # fmt: skip
    return bad


def main() -> int:
    card.help_if_asked(__doc__)
    path, cublas = sys.argv[1], "no-cublas" not in sys.argv
    module = card.native()
    print(
        f"torch loaded: {'torch' in sys.modules}; {module.gpu_count()} GPUs: {module.gpu_name(0)}",
        flush=True,
    )
    reference = module.Potential(path, dtype="float64")
    modes = [(dtype, graph) for dtype in LIMITS for graph in (False, True)]
    bad = sum(one(module, path, dtype, graph, cublas, reference) for dtype, graph in modes)
    print("smoke", "ok" if not bad else f"{bad} WRONG")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
