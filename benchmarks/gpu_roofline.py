"""PREDICTION of the GPU engine's time per atom and step, from shapes and published limits; no GPU needed.

For every kernel that a step launches (gpu_kernels.py) the work it has to do, divided by what the card
does at best (gpu_cards.py); the slowest of these bounds it. Water at 1 g/cm³, 3 interactions, 5 Å, skin
0.3 Å. A lower bound on time: nothing here was measured on a GPU. The table says what is left out.

    python benchmarks/gpu_roofline.py            # writes gpu_roofline.{md,json,png}, twice
    python benchmarks/gpu_roofline.py --output DIR
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import asdict, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, pyplot, save, write_report
from benchmarks.gpu_cards import CARDS, SOURCES, Card
from benchmarks.gpu_kernels import (
    COPIES,
    HALF_INTERVALS,
    INTERVALS,
    SPLITS,
    Launch,
    Shapes,
    bus_bytes,
    fused,
    memory_bytes,
    split_products,
    step,
    variables,
)
from mlff_distiller.constants import MATHS, ROUNDED_PRODUCTS

ATOMS = (100, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
CHANNELS = (64, 128, 256)
DETAIL = 100_000
GROUPS = (
    "edges forward", "edges backward", "networks", "products", "pointwise", "edges", "forces", "list", "bus",
    "launches",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "build" / "gpu_roofline", RESULTS)

LEFT_OUT = """\
- that no kernel reaches its bound: latencies that few warps do not hide, waves of blocks that do not come
  out even, clocks that sink at a card's power limit, DRAM at 100 % of its peak (streams reach 85 to 92 % of
  it on an A100, gpu-benches);
- integer and address arithmetic, conversions, divisions and square roots in double, predicates, all of which
  take issue slots (in the passes over edges they are counted, from the machine code: `gpu_sass.py`);
- misses of L1 by rows of neighbours within a block, and of the table because rows push it out; both arrays
  are assumed to stay (the part of the table that exceeds L1 is counted);
- what blocks of the fused networks wait for at barriers and between products, where they have an SM alone;
- that cuBLAS at these narrow shapes does not reach the peak it is charged with, and tf32
  converts float32 factors on the way;
- the host: atoms are put in and out of order, results become numpy arrays (on one thread);
- the list: built every 10 to 50 steps; where it is not, the 15 kernels of a build are one conditional node of
  the graph, counted as a launch, or without a graph launches, whose blocks that return at once are not counted."""


@cache
def _code(formula: str) -> Any:
    return compile(formula, formula, "eval")


def value(formula: str, names: dict[str, float]) -> float:
    """A formula of gpu_kernels.py."""
    return float(eval(_code(formula), {"__builtins__": {}, "ceil": ceil, "max": max}, names))


def bound(launch: Launch, shapes: Shapes, card: Card, math: str) -> dict[str, Any]:
    """Work and seconds of one launch, by resource; ``bound`` is the slowest."""
    lanes = card.fp32_lanes if shapes.itemsize == 4 else card.fp64_lanes
    latencies = card.l1_latency, card.l2_latency
    names = variables(shapes, card.l1_bytes, latencies, card.sms, lanes)
    rates = card.rates()
    fp32, fp64 = value(launch.fp32, names), value(launch.fp64, names)
    special, rows = value(launch.special, names), value(launch.rows, names)
    if shapes.itemsize == 8:
        fp32, fp64 = 0.0, fp32 + fp64
    issue = (fp32 + fp64) / 32 + rows + value(launch.other, names) if launch.issue else 0.0
    if shapes.itemsize == 4:
        issue = max(issue, value(launch.code, names))
    tensor = 0.0
    if launch.multiply and math in ROUNDED_PRODUCTS and shapes.itemsize == 4:
        fp32, tensor = 0.0, 2 * fp32
    passes = value(launch.passes, names)
    dram = passes * max(0.0, value(launch.dram, names) - card.l2_bytes)
    work = {
        "FP32": fp32,
        "FP64": fp64,
        "special": special,
        "issue": issue,
        "L1": rows,
        "L2": value(launch.l2, names),
        "DRAM": dram,
        "latency": value(launch.chain, names),
    }
    seconds = {key: amount / rates[key] for key, amount in work.items()}
    if tensor:
        seconds[math] = tensor / rates[math]
    slowest = max(seconds, key=lambda key: seconds[key])
    return {
        "name": launch.name,
        "what": launch.what,
        "group": launch.group,
        "flop": 2 * (fp32 + fp64) + tensor,
        "l1_bytes": 128 * rows,
        "l2_bytes": work["L2"],
        "dram_bytes": dram,
        "seconds": seconds[slowest],
        "bound": slowest if seconds[slowest] else "launch",
        "by_resource": seconds,
    }


@cache
def bounds(
    shapes: Shapes, card: Card, math: str, graph: bool, fuse: int, split: str = ""
) -> list[dict[str, Any]]:
    """Of every launch of a step."""
    launches = step(shapes.interactions, graph, fuse, shapes.half)
    if split:
        launches, math = split_products(launches, split), "tf32"
    return [bound(x, shapes, card, math) for x in launches]


def predict(
    shapes: Shapes,
    card: Card,
    math: str = "float32",
    graph: bool = True,
    fuse: int | None = None,
    split: str = "",
) -> dict[str, Any]:
    """One step: seconds in all and by group, and every launch. ``fuse``: not what the engine chooses;
    ``split``: nor is this, see :func:`split_products`."""
    if math != "float32" and shapes.itemsize == 4:
        shapes = replace(shapes, half=True, intervals=HALF_INTERVALS)
    if split:
        fuse = 0
    elif fuse is None:
        fuse = fused(shapes, math)
    launches = bounds(shapes, card, math, graph, fuse, split)
    groups: dict[str, float] = defaultdict(float)
    for row in launches:
        groups[row["group"]] += row["seconds"]
    groups["bus"] = sum(bus_bytes(shapes.atoms)) / card.bus
    # The device's pause between dependent launches; without a graph the host may be slower than all.
    groups["launches"] = (len(launches) + COPIES + 1) * card.launch_graph  # and a conditional node
    total = sum(groups.values())
    if not graph:
        host = (len(launches) + COPIES) * card.launch_stream
        groups["launches"] += max(0.0, host - total)
        total = max(total, host)
    memory = memory_bytes(shapes)
    return {
        "card": card.name,
        "shapes": asdict(shapes),
        "math": math,
        "graph": graph,
        "seconds": total,
        "us_per_atom": total / shapes.atoms * 1e6,
        "groups": dict(groups),
        "memory_bytes": sum(memory.values()),
        "launches": launches,
    }


def largest(channels: int, card: Card) -> int:
    """Atoms of water that fit into 95 % of the card's memory."""
    memory = memory_bytes(Shapes(1_000_000, channels))
    each = (memory["atoms"] + memory["edges"]) / 1_000_000
    return int((0.95 * card.memory - memory["fixed"]) / each)


def fits(shapes: Shapes, card: Card) -> bool:
    return sum(memory_bytes(shapes).values()) <= 0.95 * card.memory


def collect() -> dict[str, Any]:
    """All predictions; launches only of the detailed ones."""
    rows = []
    for card in CARDS:
        for channels in CHANNELS:
            for math in MATHS:
                for atoms in ATOMS:
                    shapes = Shapes(atoms, channels)
                    if not fits(shapes, card):
                        continue
                    for graph in (True, False):
                        row = predict(shapes, card, math, graph)
                        if (atoms, channels, math, graph) != (DETAIL, 128, "float32", True):
                            del row["launches"]
                        rows.append(row)
    memory = [
        {
            "channels": f,
            "bytes_per_atom": sum(memory_bytes(Shapes(1_000_000, f)).values()) / 1e6,
            "largest": largest(f, CARDS[0]),
        }
        for f in CHANNELS
    ]
    split = [
        {
            "card": card.name,
            "channels": f,
            **{
                math: predict(Shapes(DETAIL, f), card, math)["us_per_atom"]
                for math in ("float32", "tf32")
            },
            **{x: predict(Shapes(DETAIL, f), card, split=x)["us_per_atom"] for x in SPLITS},
        }
        for card in CARDS
        for f in CHANNELS
    ]
    return {
        "label": "PREDICTION: a lower bound on time from published limits; nothing was measured on a GPU",
        "cards": [asdict(card) for card in CARDS],
        "sources": SOURCES,
        "predictions": rows,
        "memory": memory,
        "split": split,
        "kernels": [
            asdict(x)
            for fuse, half in ((8, False), (0, False), (0, True))
            for x in step(3, fuse=fuse, half=half)
        ],
    }


def merged(launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launches of one kernel and purpose together, slowest first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for x in launches:
        key = (x["name"], "" if x["group"] == "list" else x["what"])
        row = rows.setdefault(key, {**x, "count": 0, **dict.fromkeys(SUMS, 0.0)})
        row["count"] += 1
        for name in SUMS:
            row[name] += x[name]
    return sorted(rows.values(), key=lambda row: -row["seconds"])


SUMS = ("flop", "l1_bytes", "l2_bytes", "dram_bytes", "seconds")


def kernel_table(prediction: dict[str, Any]) -> list[str]:
    atoms = prediction["shapes"]["atoms"]
    lines = [
        "| kernel | what | launches | kFLOP | L1 kB | L2 kB | DRAM kB | ns | bound |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in merged(prediction["launches"]):
        if row["seconds"] / atoms < 1e-11:
            continue
        numbers = [f"{row[name] / atoms / 1e3:.1f}" for name in SUMS[:-1]]
        lines.append(
            f"| `{row['name']}` | {row['what']} | {row['count']} | {' | '.join(numbers)} "
            f"| {row['seconds'] / atoms * 1e9:.1f} | {row['bound']} |"
        )
    return lines


def time_table(report: dict[str, Any]) -> list[str]:
    head = "".join(f" {atoms:,} |" for atoms in ATOMS)
    lines = [
        f"| card | F | math | graph |{head}",
        "|---|--:|---|---|" + "--:|" * len(ATOMS),
    ]
    cells: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for row in report["predictions"]:
        if row["graph"] or row["math"] == "float32":
            key = (row["card"], row["shapes"]["channels"], row["math"], row["graph"])
            cells[key][row["shapes"]["atoms"]] = row["us_per_atom"]
    for (card, f, math, graph), values in cells.items():
        text = " | ".join(f"{values[a]:.3g}" if a in values else "no room" for a in ATOMS)
        lines.append(f"| {card} | {f} | {math} | {'yes' if graph else 'no'} | {text} |")
    return lines


def split_table(report: dict[str, Any]) -> list[str]:
    """µs per atom and step; what the engine has, and what it could have instead of float32."""
    keys = ("float32", *SPLITS, "tf32")
    lines = [
        "| card | F | float32 | split by a kernel | by producers | in the product | tf32 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report["split"]:
        cells = " | ".join(f"{row[key]:.3g}" for key in keys)
        lines.append(f"| {row['card']} | {row['channels']} | {cells} |")
    return lines


def formula_table(report: dict[str, Any]) -> list[str]:
    lines = ["| kernel | what | work |", "|---|---|---|"]
    seen = set()
    for row in report["kernels"]:
        key = (row["name"], row["what"])
        if key in seen or row["what"] == "returns at once":
            continue
        seen.add(key)
        work = [f"{k} `{row[k]}`" for k in ("fp32", "fp64", "special", "other", "code", "rows", "l2", "dram", "chain")
                if row[k] != "0"]  # fmt: skip
        if row["passes"] != "1":
            work.append(f"passes `{row['passes']}`")
        lines.append(f"| `{row['name']}` | {row['what']} | {'; '.join(work) or '–'} |")
    return lines


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# PREDICTION: the engine on a GPU",
        "",
        "Written by `benchmarks/gpu_roofline.py`. **Nothing here was measured on a GPU**: a lower bound on "
        "time from what every kernel has to read, write and compute, and the cards' published limits. "
        "Water at 1 g/cm³, 3 interactions, 5 Å, skin 0.3 Å (62.5 neighbours in the list, 52.5 within "
        "the cutoff), single precision, energy and forces, list not rebuilt. The filter table has "
        f"{INTERVALS} intervals, with math other than float32 {HALF_INTERVALS}.",
        "",
        "## µs per atom and step, by number of atoms",
        "",
        *time_table(report),
        "",
        "## Memory",
        "",
        "| F | kB per atom | atoms in 80 GB (95 % used) |",
        "|--:|--:|--:|",
        *(f"| {m['channels']} | {m['bytes_per_atom'] / 1e3:.1f} | {m['largest']:,} |"
          for m in report["memory"]),
        "",
        f"## Float32's accuracy from tensor cores, at {DETAIL:,} atoms",
        "",
        "Not in the engine. Products of TF32 three times as deep, [hi hi lo] [hi; lo; hi], in place of float32's; "
        "factors are split by a kernel before each product, by the kernels that write them, or in registers of "
        "a product of our own (`split_products` in `gpu_kernels.py`). µs per atom and step:",
        "",
        *split_table(report),
        "",
        "## What is left out",
        "",
        LEFT_OUT,
    ]  # fmt: skip
    for row in report["predictions"]:
        if "launches" in row and row["shapes"]["channels"] == 128:
            lines += [
                "",
                f"## Kernels: {row['card']}, F = 128, {DETAIL:,} atoms, per atom and step",
                "",
                "kFLOP counts every floating-point instruction as two operations, as peaks do; DRAM is "
                "what exceeds L2. `product_kernel` stands for cuBLAS, which takes its place on a GPU.",
                "",
                *kernel_table(row),
                "",
                f"Copies over the bus {row['groups']['bus'] / DETAIL * 1e9:.1f} ns, "
                f"{len(row['launches'])} launches, a conditional node and {COPIES} copies "
                f"{row['groups']['launches'] / DETAIL * 1e9:.1f} ns; in all "
                f"{row['us_per_atom'] * 1e3:.0f} ns.",
            ]
    lines += [
        "",
        "## Work of each launch",
        "",
        "n atoms, F channels, C = F/32 chunks, H width of the readout, b bytes of a feature, w = b/4, "
        "k neighbours in the list, e within the cutoff, p edges of a turn of a warp's loop and features in "
        "16 bytes, t turns for an atom, B blocks of A atoms, s of them one after the other on an SM of z "
        "lanes, R bytes of an edge record, row = 32 b; `share`, "
        "`far2`, `far3` (`half2`, `half3` with slopes in float16): parts of neighbours' rows and of the table "
        "that L1 does not have. Units are "
        "explained in `gpu_kernels.py`.",
        "",
        *formula_table(report),
        "",
        "## Limits",
        "",
        "| | " + " | ".join(c["name"] for c in report["cards"]) + " | source |",
        "|---|" + "--:|" * len(report["cards"]) + "---|",
        *(f"| {key} | " + " | ".join(f"{c[key]:g}" for c in report["cards"]) + f" | {source} |"
          for key, source in report["sources"].items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    colours = dict(zip(CHANNELS, ("#55a868", "#4c72b0", "#c44e52"), strict=True))
    for card, style in zip(report["cards"], ("--", "-", ":"), strict=True):
        for f in CHANNELS:
            rows = [
                r for r in report["predictions"]
                if r["card"] == card["name"] and r["shapes"]["channels"] == f
                and r["math"] == "float32" and r["graph"]
            ]  # fmt: skip
            atoms = [r["shapes"]["atoms"] for r in rows]
            times = [r["us_per_atom"] for r in rows]
            left.plot(atoms, times, style, marker=".", color=colours[f],
                      label=f"{card['name'].split('-')[0]}, F = {f}")  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="atoms", ylabel="µs per atom and step",
             title="PREDICTION, float32, CUDA graph")  # fmt: skip
    left.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    bars = [
        r for r in report["predictions"]
        if r["shapes"]["atoms"] == DETAIL and r["shapes"]["channels"] == 128 and r["graph"]
    ]  # fmt: skip
    labels = [f"{r['card'].split('-')[0]}\n{r['math']}" for r in bars]
    bottom = [0.0] * len(bars)
    for group in GROUPS:
        heights = [r["groups"].get(group, 0.0) / DETAIL * 1e9 for r in bars]
        right.bar(labels, heights, bottom=bottom, label="geometry" if group == "edges" else group)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.bar_label(right.containers[-1], [f"{total:.0f}" for total in bottom], fontsize=8)
    right.set(ylabel="ns per atom and step", title=f"PREDICTION, F = 128, {DETAIL:,} atoms")
    right.legend(fontsize=8)
    save(figure, path, 130)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, action="append", help="folder, instead of the two")
    folders = parser.parse_args().output or FOLDERS
    report = collect()
    text = markdown(report)
    for folder in folders:
        write_report(folder, "gpu_roofline", report, text, plot)
    print("\n".join(time_table(report)))
    print(f"PREDICTIONS, not measurements; wrote gpu_roofline.md, .json and .png in {folders[0]}")


if __name__ == "__main__":
    main()
