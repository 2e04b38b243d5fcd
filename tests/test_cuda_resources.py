"""benchmarks/cuda_resources.py reads ptxas and computes occupancies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/cuda_resources.py"
spec = importlib.util.spec_from_file_location("cuda_resources", SCRIPT)
cuda_resources = importlib.util.module_from_spec(spec)
sys.modules["cuda_resources"] = cuda_resources  # dataclasses look their module up
spec.loader.exec_module(cuda_resources)

A100, H100, _ = cuda_resources.GPUS

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fPf' for 'sm_80'
ptxas info    : Function properties for _Z1fPf
    256 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 17408 bytes smem, 544 bytes cmem[0]
ptxas info    : Compile time = 49.902 ms
ptxas info    : Function properties for _Z6helperPf
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z1gPf' for 'sm_80'
ptxas info    : Function properties for _Z1gPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""
PTX = """\
.visible .entry _Z1fPf(
	.param .u64 _Z1fPf_param_0
)
.maxntid 64, 2, 1
{
	ret;
}
.visible .entry _Z1gPf(
	.param .u64 _Z1gPf_param_0
)
{
	ret;
}
"""


def usage(registers: int, block: int | None, shared: int = 0) -> cuda_resources.Usage:
    return cuda_resources.Usage(registers, shared, stack=0, spills=0, block=block)


def test_reads_ptxas() -> None:
    usages = cuda_resources.parse(REPORT, PTX)
    assert usages == {
        "_Z1fPf": cuda_resources.Usage(80, 17408, stack=256, spills=20, block=128),
        "_Z1gPf": cuda_resources.Usage(20, 0, stack=0, spills=0, block=None),
    }


@pytest.mark.parametrize(
    ("registers", "block", "shared", "expected"),
    [
        # From the occupancy tables of NVIDIA's calculator for compute capability 8.0.
        (32, 128, 0, 1.0),
        (33, 128, 0, 0.75),
        (64, 256, 0, 0.5),
        (255, 256, 0, 0.125),
        (255, 288, 0, 0.0),  # 8 warps fit, 9 do not
        (16, 32, 0, 0.5),  # 32 blocks of one warp
        (32, 1024, 0, 1.0),
        (32, 128, 48 * 1024, 3 * 4 / 64),  # 164 kB hold 3 of 49 kB
    ],
)
def test_occupancy(registers: int, block: int, shared: int, expected: float) -> None:
    assert cuda_resources.occupancy(usage(registers, block, shared), A100) == expected


def test_more_shared_memory_on_the_newer_card() -> None:
    taken = usage(32, 128, 48 * 1024)
    assert cuda_resources.occupancy(taken, H100) == 4 * 4 / 64


def test_names_are_readable() -> None:
    mangled = "_ZN4mlff3gpu40_GLOBAL__N__1b35aecc_8_edges_cu_6af6864a15backward_kernelIdLb0EEEvPd"
    assert cuda_resources.readable([mangled]) == {mangled: "backward_kernel<double, false>"}
