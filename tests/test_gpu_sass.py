"""benchmarks/gpu_sass.py reads machine code; the counts that the prediction uses are those of the code."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: As nvdisasm -c prints: a loop within a loop, predicated instructions, the branch that ends all.
DISASSEMBLY = """\
	.section	.text._Z14forward_kernelIfLb0EEvi,"ax",@progbits
.text._Z14forward_kernelIfLb0EEvi:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_3:
        /*0010*/                   MOV R2, R1 ;
.L_x_1:
        /*0020*/              @P0  LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   FFMA R8, R4, R5, R8 ;
        /*0040*/                   FADD.FTZ R9, R4, R5 ;
        /*0050*/             @!P1  SHFL.BFLY PT, R0, R0, 0x10, 0x1f ;
        /*0060*/                   STG.E desc[UR4][R2.64], R9 ;
        /*0070*/              @P2  BRA `(.L_x_1) ;
        /*0080*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0090*/              @P2  BRA `(.L_x_2) ;
.L_x_2:
        /*00a0*/                   EXIT ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4) ;
"""


@pytest.fixture
def sass(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.gpu_sass")


def test_loops_are_found_and_kinds_told_apart(sass):
    usage = importlib.import_module("benchmarks.cuda_resources").Usage(40, 0, 0, 0, 128)
    name = "_Z14forward_kernelIfLb0EEvi"
    found = sass.count(DISASSEMBLY, {name: usage}, {name: "forward_kernel<float, false>"})
    (row,) = found.values()
    turn = {"loads": 1, "float32": 2, "shuffles": 1, "stores": 1, "other": 1}
    assert row.per_edge == {kind: n / sass.EDGES_A_TURN for kind, n in turn.items()}
    assert (row.total, row.registers, row.spills, row.in_flight) == (1.5, 40, 0, 1)


def test_loads_in_flight(sass):
    code = [
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "LDG.E R9, desc[UR4][R20.64]",
        "LDG.E.64 R10, desc[UR4][R20.64+0x10]",
        "FADD R12, R7, 1",  # waits for the first, whose last register it reads
        "LDG.E R13, desc[UR4][R20.64]",
        "LDG.E R14, desc[UR4][R10.64]",  # its address is loaded: waits for what came before, too
        "FFMA R15, R14, R14, R13",
    ]
    assert sass.in_flight(code) == 3
    assert sass.in_flight(code[5:]) == 1


def test_the_prediction_counts_what_the_code_has(sass):
    """Compiles two files with nvcc; so that a bound does not outlive the kernel that it was made for."""
    missing = [name for name in ("nvcc", "ptxas", "nvdisasm", "c++filt") if sass.tool(name) is None]
    if missing:
        pytest.skip("no nvcc with nvdisasm: make cuda")
    kernels = importlib.import_module("benchmarks.gpu_kernels")
    found = sass.measure()
    assert len(found) == len(kernels.SASS) + len(sass.MULTIPLY_ADDS)
    for name, row in found.items():
        atoms = sass.MULTIPLY_ADDS.get(name, 0) // 32
        expected = kernels.PER_FMA[atoms] if atoms else kernels.SASS[name.replace("float", "T")]
        assert row.total == pytest.approx(expected, rel=0.05), sass.__doc__
        assert row.spills == 0
