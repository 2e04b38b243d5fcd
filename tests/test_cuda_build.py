"""A build with MLFF_CUDA=ON: what is in it. Needs no GPU; `make cuda` runs it on such a build."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import clean_environment
from support.students import export_to

from mlff_distiller.errors import InputError
from mlff_distiller.files import native_file
from mlff_distiller.ops import load_library
from mlff_distiller.ops.engine import NativePotential, gpu_count, native_module

HAS_CUDA = hasattr(native_module(), "GpuPotential")
EXPECTED = {80, 90, 100}

pytestmark = pytest.mark.skipif(
    not HAS_CUDA and not os.environ.get("MLFF_EXPECT_CUDA"),
    reason="built without the GPU engine: make cuda",
)


def architectures(library: bytes) -> set[int]:
    """Compute capabilities with machine code in the fat binaries of a library."""
    magic, found = struct.pack("<I", 0xBA55ED50), set()
    start = library.find(magic)
    while start >= 0:
        _, header, size = struct.unpack_from("<HHQ", library, start + 4)
        entry, end = start + header, start + header + size
        while entry < end <= len(library):
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
            (arch,) = struct.unpack_from("<I", library, entry + 28)
            if kind == 2:  # machine code; 1 is PTX
                found.add(arch)
            entry += entry_header + entry_size
        start = library.find(magic, start + 4)
    return found


def test_torch_and_engine_have_cuda() -> None:
    assert HAS_CUDA
    assert torch.version.cuda


@pytest.mark.parametrize("name", ["_native", "lib/lammps/painnplugin.so"])
def test_code_for_every_card(name: str) -> None:
    path = native_module().__file__ if name == "_native" else native_file(name)
    assert path is not None
    with open(path, "rb") as file:
        assert architectures(file.read()) >= EXPECTED


#: Training on a GPU is left to automatic differentiation, see ops/training.py.
ON_CPUS_ALONE = {
    "mlff::pair_repulsion",
    "mlff::radial_functions",
    "mlff::training_backward",
    "mlff::training_forward",
    "mlff::training_graph",
}


def test_every_operator_has_a_cuda_kernel() -> None:
    load_library()
    names = [
        name
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
        if name.startswith("mlff::")
    ]
    assert "mlff::neighbor_list" in names
    missing = [
        name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    ]
    assert set(missing) == ON_CPUS_ALONE


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(tmp_path: Path) -> None:
    assert gpu_count() == 0
    _, path = export_to(tmp_path, hidden_dim=32, num_interactions=1)
    with pytest.raises(InputError, match=r"number of GPUs, 0.* use device cpu"):
        NativePotential(path, device="cuda")


# --- the kernel for OpenMM's CUDA platform --------------------------------------------------------
KERNEL = "lib/openmm/libPainnOpenMMCUDA.so"


@pytest.fixture
def openmm_folder() -> Path:
    """Of an OpenMM that has a CUDA platform, which need not be able to run here."""
    openmm = pytest.importorskip("openmm")
    folder = Path(openmm.__file__).parents[1] / "OpenMM.libs" / "lib"
    if not (folder / "plugins" / "libOpenMMCUDA.so").exists():
        if os.environ.get("MLFF_EXPECT_CUDA"):
            pytest.fail("make cuda installs openmm-cuda")
        pytest.skip("this OpenMM has no CUDA platform")
    return folder


def names_of(library: Path, kind: str) -> set[str]:
    command = ["nm", "-D", f"--{kind}-only", "--format=posix", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0].split("@")[0] for line in lines}


def test_openmm_kernel_is_linked_to_what_openmm_has(openmm_folder: Path) -> None:
    path = native_file(KERNEL)
    assert path is not None
    with open(path, "rb") as file:
        assert architectures(file.read()) >= EXPECTED
    plugins = openmm_folder / "plugins"
    there = names_of(openmm_folder / "libOpenMM.so", "defined")
    there |= names_of(plugins / "libOpenMMCUDA.so", "defined")
    wanted = {name for name in names_of(path, "undefined") if "6OpenMM" in name}
    assert any("CudaContext" in name for name in wanted)
    assert wanted <= there


_LOAD = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # the driver, before OpenMM looks for it
import openmm
from mlff_distiller.openmm import native
native.load_plugin()
assert native.cuda_kernel_is_there(), openmm.Platform.getPluginLoadFailures()
"""


def test_openmm_loads_the_kernel(openmm_folder: Path, tmp_path: Path) -> None:
    """With a driver that has the names which OpenMM asks for, and no device."""
    wanted = names_of(openmm_folder / "plugins" / "libOpenMMCUDA.so", "undefined")
    source = "".join(
        f"int {name}(void) {{ return 100; }}\n"
        for name in sorted(wanted)
        if re.fullmatch(r"cu[A-Z]\w*", name)
    )
    (tmp_path / "driver.c").write_text(source)
    driver = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(driver)]
    subprocess.run([*command, str(tmp_path / "driver.c")], check=True)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(driver)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
