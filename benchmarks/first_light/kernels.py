"""Time of every kernel of one step beside its bound (benchmarks/gpu_roofline.py). Needs torch's profiler.

    python card.py kernels.py MODEL OUT.json SIDE ...       no graph, list not rebuilt, median of 20

A rehearsal has no profiler: every launch is given a microsecond.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import card
import numpy as np

from benchmarks.gpu_cards import CARDS, H100
from benchmarks.gpu_kernels import Launch, Shapes, fused, step
from benchmarks.gpu_roofline import bound
from mlff_distiller.ops.engine import NativePotential
from mlff_distiller.students.file import read_metadata

ROUNDS = 20


def short(name: str) -> str | None:
    """As in MLFF_LAUNCH, of a demangled name of ours: ``forward_kernel<T, true>``; None of others'."""
    found = re.search(r"(?:\(anonymous namespace\)|_GLOBAL__N[^:]*)::(\w+)(<[^()]*>)?\(", name)
    if not found:
        return None
    text = found.group(1) + (found.group(2) or "")
    return text.replace("<float", "<T").replace("<double", "<T")


def align(kernels: list[tuple[str | None, float]], launches: list[Launch]) -> list[float]:
    """Seconds of each launch: ours by name, products take whatever is not ours."""
    spent, i = [], 0
    for launch in launches:
        seconds = 0.0
        if launch.multiply:
            if i < len(kernels) and (kernels[i][0] or "").startswith("product_kernel"):
                seconds += kernels[i][1]
                i += 1
            while i < len(kernels) and kernels[i][0] is None:
                seconds += kernels[i][1]
                i += 1
        else:
            if i >= len(kernels) or kernels[i][0] != launch.name:
                raise SystemExit(f"expected {launch.name}, got {kernels[i : i + 2]}; is "
                                 "benchmarks/gpu_kernels.py in step with the engine?")  # fmt: skip
            seconds = kernels[i][1]
            i += 1
        spent.append(seconds)
    if i != len(kernels):
        raise SystemExit(f"{len(kernels) - i} kernels left over: {kernels[i : i + 3]}")
    return spent


def profiled(
    call: Any, launches: list[Launch]
) -> list[tuple[list[tuple[str | None, float]], float]]:
    """Of each step: (name, seconds) of its kernels in order, and seconds from first to last."""
    if card.REHEARSAL:
        call()
        return [([(x.name, 1e-6) for x in launches], 1e-6 * len(launches))]
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(ROUNDS):
            call()
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events = [e for e in events if not re.search("memcpy|memset", e.name, re.IGNORECASE)]
    events.sort(key=lambda e: e.time_range.start)
    names = [short(e.name) for e in events]
    starts = [i for i, name in enumerate(names) if name == "decide_begin"] + [len(names)]
    rows = []
    for a, b in itertools.pairwise(starts):
        kernels = [
            (name, (e.time_range.end - e.time_range.start) * 1e-6)
            for name, e in zip(names[a:b], events[a:b], strict=True)
        ]
        span = (events[b - 1].time_range.end - events[a].time_range.start) * 1e-6
        rows.append((kernels, span))
    return rows


def table_of(rows: Any, launches: list[Launch], shapes: Shapes, math: str, limits: Any) -> dict:
    """By kernel and purpose: launches, median seconds, bound in seconds, what bounds it."""
    times = [align(kernels, launches) for kernels, _ in rows]
    table: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [0, 0.0, 0.0, ""])
    for k, launch in enumerate(launches):
        at_best = bound(launch, shapes, limits, math)
        row = table[(launch.name, "" if launch.group == "list" else launch.what)]
        row[0] += 1
        row[1] += statistics.median(each[k] for each in times)
        row[2] += at_best["seconds"]
        row[3] = at_best["bound"]
    return table


def measure(path: str, side: int, math: str) -> dict[str, Any]:
    """One system, printed and as a row of the report."""
    module = card.native()
    limits = next((c for c in CARDS if c.name.split("-")[0] in module.gpu_name(0)), H100)
    network = read_metadata(path)["model_config"]
    numbers, positions, cell = card.water(side)
    potential = NativePotential(path, device="cuda", math=math, graph=False)
    rng = np.random.default_rng(1)

    def call() -> None:
        shift = 0.005 * rng.normal(size=positions.shape).clip(-1, 1)
        potential.compute(numbers, positions + shift, cell, np.ones(3, bool))

    for _ in range(1 if card.REHEARSAL else 4):
        call()
    near = (network["cutoff"] / (network["cutoff"] + 0.3)) ** 3
    listed = potential.num_edges / len(numbers)
    half = math != "float32"
    shapes = Shapes(len(numbers), network["hidden_dim"], network["num_interactions"],
                    list_neighbors=listed, neighbors=listed * near, half=half,
                    intervals=potential.table["intervals"])  # fmt: skip
    own = not potential.products.startswith("cuBLAS")
    fuse = fused(shapes, math, not own)
    launches = step(network["num_interactions"], graph=False, fuse=fuse, half=half)
    rows = profiled(call, launches)
    table = table_of(rows, launches, shapes, math, limits)
    span = statistics.median(span for _, span in rows)
    total, floor = (sum(row[k] for row in table.values()) for k in (1, 2))
    print(f"\n{len(numbers):,} atoms, {math}, products by {potential.products}: kernels "
          f"{total * 1e6:.0f} us, first to last {span * 1e6:.0f} us, bound of an {limits.name} "
          f"{floor * 1e6:.0f} us, {total / len(numbers) * 1e9:.1f} ns an atom", flush=True)  # fmt: skip
    for (name, what), (count, seconds, at_best, kind) in sorted(
        table.items(), key=lambda x: -x[1][1]
    )[:14]:
        print(f"  {name:28s} {what:22s} x{count:2d} {seconds * 1e6:9.1f} us {seconds / total:5.1%}  bound "
              f"{at_best * 1e6:8.1f} {kind:7s} {at_best / seconds if seconds else 0:5.0%}")  # fmt: skip
    return {
        "atoms": len(numbers), "math": math, "limits": limits.name, "products": potential.products,
        "kernels_s": total, "bound_s": floor, "span_s": span,
        "rows": [{"name": name, "what": what, "count": row[0], "s": row[1], "bound_s": row[2],
                  "bound": row[3]} for (name, what), row in table.items()],
    }  # fmt: skip


def main() -> None:
    card.help_if_asked(__doc__)
    path, out, sides = sys.argv[1], Path(sys.argv[2]), [int(x) for x in sys.argv[3:]]
    report = []
    for side in sides:
        for math in ("float32", "half", "tf32"):
            report.append(measure(path, side, math))
            out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
