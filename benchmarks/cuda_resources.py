"""Registers, shared memory, spills and theoretical occupancy of every CUDA kernel, per GPU.

Compiles csrc/cuda/*.cu with nvcc, reads what ptxas says of each kernel and writes a table. No GPU
is needed. Occupancy is what registers, static shared memory and the block size allow; a launch
that adds dynamic shared memory has less.

    python benchmarks/cuda_resources.py            # writes docs/cuda_resources.md
    python benchmarks/cuda_resources.py --check    # fails on spills, or if that table is out of date
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "mlff_distiller/csrc"
TABLE = ROOT / "docs/cuda_resources.md"
FLAGS = ["-std=c++17", "-O3", f"-I{CSRC}"]
ASSUMED_BLOCK = 256  # where a kernel has no __launch_bounds__

MAX_WARPS = 64  # per multiprocessor; the same on all three
MAX_BLOCKS = 32
REGISTERS = 65536
REGISTER_UNIT = 256  # registers are given out to a warp in units of this
SCHEDULERS = 4  # each has a quarter of the registers
RESERVED_SHARED = 1024  # bytes per block that the driver takes


@dataclass(frozen=True)
class Gpu:
    """A compute capability and the shared memory of its multiprocessor, bytes."""

    arch: str
    cards: str
    shared: int


GPUS = [
    Gpu("sm_80", "A100", 164 * 1024),
    Gpu("sm_90", "H100, H200", 228 * 1024),
    Gpu("sm_100", "B200", 228 * 1024),
]


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture: per thread, but `shared` per block. Bytes."""

    registers: int
    shared: int
    stack: int
    spills: int  # stores and loads
    block: int | None  # threads of __launch_bounds__


def occupancy(usage: Usage, gpu: Gpu) -> float:
    """Warps that a multiprocessor can hold, over the most that it could: 0 to 1."""
    warps = -(-(usage.block or ASSUMED_BLOCK) // 32)
    per_warp = -(-usage.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // warps
    by_shared = gpu.shared // (usage.shared + RESERVED_SHARED)
    blocks = min(MAX_WARPS // warps, MAX_BLOCKS, by_registers, by_shared)
    return blocks * warps / MAX_WARPS


def parse(report: str, ptx: str) -> dict[str, Usage]:
    """Usage by mangled kernel name, from `ptxas -v` and the PTX it compiled."""
    blocks = {}
    for name, directives in re.findall(r"\.entry (\w+)\([^)]*\)([^{]*)\{", ptx):
        bound = re.search(r"\.maxntid (\d+)(?:, (\d+), (\d+))?", directives)
        if bound:
            x, y, z = (int(n or 1) for n in bound.groups())
            blocks[name] = x * y * z
    usages = {}
    # Device functions that were not inlined have properties of their own; kernels have both parts.
    for part in report.split("Compiling entry function '")[1:]:
        name = part[: part.index("'")]
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", part)
        used = re.search(r"Used (\d+) registers(.*)", part)
        if stack is None or used is None:
            raise ValueError(f"cannot read what ptxas says of {name}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        usages[name] = Usage(
            registers=int(used[1]),
            shared=int(shared[1]) if shared else 0,
            stack=int(stack[1]),
            spills=int(stack[2]) + int(stack[3]),
            block=blocks.get(name),
        )
    return usages


def compile_source(source: Path, gpu: Gpu, folder: Path) -> dict[str, Usage]:
    ptx = folder / f"{source.stem}.{gpu.arch}.ptx"
    virtual = gpu.arch.replace("sm_", "compute_")
    run(["nvcc", *FLAGS, f"-arch={virtual}", "-ptx", str(source), "-o", str(ptx)])
    report = run(["ptxas", "-O3", "-v", f"-arch={gpu.arch}", str(ptx), "-o", "/dev/null"])
    return parse(report, ptx.read_text())


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def readable(names: list[str]) -> dict[str, str]:
    """Mangled -> demangled, without namespaces and arguments."""
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    short = {}
    for name, full in zip(names, filtered, strict=True):
        plain = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", full).removeprefix("void ")
        plain = re.sub(r"\((bool|int|unsigned int)\)", "", plain)  # of template arguments
        short[name] = plain[: plain.index("(")] if "(" in plain else plain
    return short


def across(values: list[int]) -> str:
    """One number where architectures agree, else all."""
    return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))


def table(usages: dict[tuple[str, str], dict[str, Usage]]) -> str:
    """Markdown; usages by (file, kernel), then architecture."""
    version = re.search(r"release ([\d.]+)", run(["nvcc", "--version"]))
    lines = [
        "# What the CUDA kernels take",
        "",
        f"Written by `benchmarks/cuda_resources.py` with nvcc {version[1] if version else '?'};"
        " no GPU was involved.",
        f"Columns with several values: {', '.join(f'{g.arch} ({g.cards})' for g in GPUS)}.",
        "Registers and stack are per thread, shared memory (static) per block, in bytes; spills"
        " are bytes stored and loaded.",
        "Occupancy is the theoretical one, in percent of 64 warps per multiprocessor. An asterisk:"
        f" no launch bounds, {ASSUMED_BLOCK} threads assumed.",
        "",
        "| file | kernel | block | registers | shared | stack | spills | occupancy |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for (file, kernel), by_arch in sorted(usages.items()):
        each = [by_arch[gpu.arch] for gpu in GPUS]
        block = each[0].block
        percent = [round(100 * occupancy(u, gpu)) for u, gpu in zip(each, GPUS, strict=True)]
        cells = [
            file,
            f"`{kernel}`",
            str(block) if block else f"{ASSUMED_BLOCK}*",
            across([u.registers for u in each]),
            across([u.shared for u in each]),
            across([u.stack for u in each]),
            across([u.spills for u in each]),
            across(percent),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the table, write nothing"
    )
    check = parser.parse_args().check
    for tool in ("nvcc", "ptxas", "c++filt"):
        if shutil.which(tool) is None:
            sys.exit(
                f"{tool} is needed, found none in PATH; it comes with the CUDA toolkit (binutils)"
            )

    usages: dict[tuple[str, str], dict[str, Usage]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            for gpu in GPUS:
                found = compile_source(source, gpu, Path(folder))
                for name, kernel in readable(list(found)).items():
                    usages.setdefault((source.name, kernel), {})[gpu.arch] = found[name]
    text = table(usages)
    spilling = [
        f"{kernel} on {arch}: {usage.spills} bytes"
        for (_, kernel), by_arch in usages.items()
        for arch, usage in by_arch.items()
        if usage.spills
    ]
    if not check:
        TABLE.write_text(text)
        print(f"{len(usages)} kernels -> {TABLE.relative_to(ROOT)}")
    if spilling:
        print("registers spill in " + "; ".join(spilling))
    if check:
        stale = not TABLE.exists() or TABLE.read_text() != text
        if stale:
            print(f"{TABLE.relative_to(ROOT)} is out of date; run benchmarks/cuda_resources.py")
        sys.exit(int(stale or bool(spilling)))


if __name__ == "__main__":
    main()
