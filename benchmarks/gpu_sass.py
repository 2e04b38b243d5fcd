"""What the passes over edges and the fused networks are in machine code: instructions, registers, spills.

Compiles csrc/cuda/edge_passes.cu and fused.cu for one GPU with nvcc, takes them apart with nvdisasm and
counts the instructions of the loop over edges of each kernel and of the loops of products, and how many of
their loads are under way at once. No GPU is needed. benchmarks/gpu_roofline.py counts with these numbers
(gpu_kernels.py, SASS and PER_FMA), and a test compares.

    python benchmarks/gpu_sass.py                 # of sm_90
    python benchmarks/gpu_sass.py --arch sm_80

nvdisasm is in the CUDA toolkit, in the wheel nvidia-cuda-nvdisasm, and in triton, which torch's CUDA builds bring.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import parser_of
from benchmarks.cuda_resources import CSRC, FLAGS, parse, readable, run

#: Edges of one chunk that a warp does in one turn of its loop, in float32.
EDGES_A_TURN = 4
KERNELS = ("forward_kernel<float, true>", "forward_kernel<float, false>",
           "forward_half_kernel<true>", "forward_half_kernel<false>",
           "backward_kernel<float, true>", "backward_kernel<float, false>")  # fmt: skip
#: Multiply-adds in one turn of the loops of products: 8 rows of weights, 4 columns, by the atoms of a block.
MULTIPLY_ADDS = {f"{name}_kernel<float, {atoms}>": 32 * atoms
                 for name in ("update", "turn", "reverse") for atoms in (4, 8)}  # fmt: skip


@dataclass(frozen=True)
class Count:
    """Of one kernel. ``per_edge``: instructions of the loop per edge and 32 channels, by kind; of fused
    networks per multiply-add of a warp, in the longest of their loops.
    ``in_flight``: loads of a warp that the code issues before it waits for the first of them."""

    registers: int
    spills: int
    per_edge: dict[str, float]
    in_flight: int

    @property
    def total(self) -> float:
        """Instructions per edge and 32 channels."""
        return sum(self.per_edge.values())


def tool(name: str) -> str | None:
    """Path of a program of the toolkit, in PATH or in a wheel."""
    found = shutil.which(name)
    if found:
        return found
    for package, part in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            path = Path(place) / part / name
            if path.exists():
                return str(path)
    return None


def kind(instruction: str) -> str:
    """Of an instruction, without predicate: what it keeps busy."""
    name = instruction.split(".")[0].split()[0]
    if name in ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2"):
        return "float32"
    if name in ("LDG", "LDS", "LD", "LDC", "LDL", "LDGSTS"):
        return "loads"
    if name in ("STG", "STS", "ST", "STL", "ATOM", "RED"):
        return "stores"
    if name == "SHFL":
        return "shuffles"
    if name == "HADD2":  # float16 to float32
        return "conversions"
    return "other"


def loops(body: list[str]) -> list[list[str]]:
    """Instructions within each branch backwards, of one function of nvdisasm's output."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in body:
        label = re.match(r"^(\.L_x?_?\d+):", line)
        if label:
            labels[label[1]] = len(code)
        found = re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][^;]*);", line)
        if found:
            code.append(found[1].strip())
    ranges = []
    for at, instruction in enumerate(code):
        target = re.match(r"BRA(?:\.\w+)*\s.*`\((\.L_x?_?\d+)\)", instruction)
        if target and labels.get(target[1], at + 1) <= at:
            ranges.append((labels[target[1]], at + 1))
    # A branch to itself ends every function.
    return [code[a:b] for a, b in ranges if b - a > 1]


def in_flight(code: list[str]) -> int:
    """Most loads under way at once, in one turn of a loop; results are taken to arrive in order."""
    pending: list[set[int]] = []
    most = 0
    for instruction in code:
        used: set[int] = set()
        for number, wide in re.findall(r"\bR(\d+)(\.64)?", instruction):
            used |= {int(number), int(number) + bool(wide)}
        waits = [at for at, target in enumerate(pending) if target & used]
        if waits:
            pending = pending[max(waits) + 1 :]
        load = re.match(r"LDG\S* R(\d+)", instruction)
        if load:
            words = re.search(r"\.(64|128)\b", instruction.split()[0])
            first = int(load[1])
            pending.append(set(range(first, first + (int(words[1]) // 32 if words else 1))))
            most = max(most, len(pending))
    return most


def count(disassembly: str, usages: dict, names: dict[str, str]) -> dict[str, Count]:
    """By readable name, of the kernels in KERNELS and MULTIPLY_ADDS."""
    found = {}
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", disassembly, flags=re.MULTILINE)
    for mangled, text in zip(parts[1::2], parts[2::2], strict=True):
        name = names.get(mangled, "")
        if name not in KERNELS and name not in MULTIPLY_ADDS:
            continue
        turns, units = loops(text.splitlines()), MULTIPLY_ADDS.get(name, EDGES_A_TURN)
        if name in MULTIPLY_ADDS:
            # Of the loops around them, which have barriers, nothing.
            turns = [x for x in turns if sum(i.startswith("FFMA") for i in x) == units]
            turns = [x for x in turns if not any(i.startswith("BAR") for i in x)]
        # Everything that is not the loop over edges is shorter.
        turn = max(turns, key=len)
        kinds = Counter(kind(x) for x in turn if not x.startswith("NOP"))
        usage = usages[mangled]
        per_edge = {key: n / units for key, n in kinds.items()}
        found[name] = Count(usage.registers, usage.spills, per_edge, in_flight(turn))
    return found


def measure(arch: str = "sm_90") -> dict[str, Count]:
    """Compile, take apart, count. Raises SystemExit where a tool is missing."""
    missing = [name for name in ("nvcc", "ptxas", "nvdisasm", "c++filt") if tool(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} needed, found none; install the CUDA toolkit")
    found: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "passes.ptx", Path(folder) / "passes.cubin"
        virtual = arch.replace("sm_", "compute_")
        for source in ("edge_passes.cu", "fused.cu"):
            command = ["nvcc", *FLAGS, f"-arch={virtual}", "-ptx", str(CSRC / "cuda" / source)]
            run([*command, "-o", str(ptx)])
            report = run(["ptxas", "-O3", "-v", f"-arch={arch}", str(ptx), "-o", str(cubin)])
            usages = parse(report, ptx.read_text())
            text = run([str(tool("nvdisasm")), "-c", str(cubin)])
            found |= count(text, usages, readable(list(usages)))
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--arch", default="sm_90")
    found = measure(parser.parse_args().arch)
    kinds = ("float32", "conversions", "loads", "stores", "shuffles", "other")
    print(
        "| kernel | instructions per edge and 32 channels, or multiply-add | "
        + " | ".join(kinds)
        + " | loads in flight | registers | spills |"
    )
    print("|---|--:|" + "--:|" * (len(kinds) + 3))
    for name, row in found.items():
        each = " | ".join(f"{row.per_edge.get(k, 0):.3g}" for k in kinds)
        print(
            f"| `{name}` | {row.total:.3g} | {each} | {row.in_flight} | {row.registers} | {row.spills} |"
        )


if __name__ == "__main__":
    main()
