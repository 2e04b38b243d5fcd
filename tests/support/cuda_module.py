"""The GPU engine that tests ask: compiled under host emulation (tests/cuda_engine), or the card.

``MLFF_TEST_GPU=1`` takes the card: what only the emulation has (schedules, counters, limits of memory,
sanitizers) is skipped then, and says so. See docs/testing.md.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
NAME = "_cuda_emulated"


#: "1": on a GPU. "emulation": as without, but OpenMM's python back end is emulated as well.
SWITCH = os.environ.get("MLFF_TEST_GPU", "0")


def on_the_card() -> bool:
    """Whether tests run on a GPU."""
    return SWITCH not in ("", "0", "emulation")


def openmm_on_gpu() -> bool:
    """Whether the tests of OpenMM compute on the GPU where they do not say on what."""
    return SWITCH not in ("", "0")


#: Of tensors that operators() takes.
DEVICE = "cuda" if on_the_card() else "cpu"


class Card:
    """The installed engine in the emulation's place. What it lacks skips the test that asks."""

    def __init__(self) -> None:
        from mlff_distiller.ops.engine import gpu_module

        native = gpu_module()
        if native.gpu_count() == 0:
            raise RuntimeError("MLFF_TEST_GPU is set, but the native engine finds no GPU; unset it")
        self.GpuPotential = native.GpuPotential
        self.GpuSystem = native.testing.GpuSystem
        self.GpuParticles = native.testing.GpuParticles
        self.cublas_candidates = native.testing.cublas_candidates
        self.open_cublas = native.testing.open_cublas
        self.gpu_count, self.gpu_name = native.gpu_count, native.gpu_name
        self.gpu_products = native.gpu_products

    def set_schedule(self, seed: int) -> None:
        """Nothing: results have to be the same bits in every run, too."""

    def set_device_count(self, count: int) -> None:
        """Only what it is reset to."""
        if count != 1:
            self.__getattr__("set_device_count")

    def set_memory_limit(self, count: int) -> None:
        """Only what it is reset to."""
        if count:
            self.__getattr__("set_memory_limit")

    def __getattr__(self, name: str) -> Any:
        return pytest.skip(f"asks the emulation: {name}")


@functools.cache
def gpu_engine() -> Any:
    """What tests of the GPU engine ask: the emulation, or the card."""
    return Card() if on_the_card() else emulated()


def _build_folder() -> Path:
    """Environments of their own (`make cuda`) have another torch and keep their own builds."""
    folder, home = ROOT / "build", Path(sys.prefix)
    return home.parent if folder in home.parents else folder


def build(sanitize: bool = False, races: bool = False) -> Path:
    """The compiled module (LAMMPS plugin, torch operators); cmake does nothing where nothing changed."""
    if on_the_card():
        pytest.skip("asks the emulation: a build of its own")
    kind = "_sanitized" if sanitize else "_races" if races else ""
    folder = _build_folder() / f"cuda_emulated{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    commands = [
        [
            *("cmake", "-S", str(ROOT / "tests" / "cuda_engine"), "-B", str(folder)),
            *("-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-DMLFF_SANITIZE={'ON' if sanitize else 'OFF'}",
            f"-DMLFF_RACES={'ON' if races else 'OFF'}",
        ],
        ["cmake", "--build", str(folder), "-j2"],
    ]
    with (folder / "lock").open("w") as lock:  # the processes of one run share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(
                    f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
                )
    (module,) = folder.glob(f"{NAME}*.so")
    return module


@functools.cache
def emulated():
    """The module, built if need be."""
    spec = importlib.util.spec_from_file_location(NAME, build())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plugin() -> Path:
    """pair_style painn with ``device gpu``."""
    if not on_the_card():
        return build().parent / "lammps_plugin" / "painnplugin.so"
    from mlff_distiller.lammps import plugin_path

    path = plugin_path()
    if path is None:
        raise RuntimeError("painnplugin.so was not built: no lammps package when it was compiled")
    return path


@functools.cache
def openmm_cuda_platform() -> str:
    """Name of OpenMM's CUDA platform: the emulated one, or on a card its own, with PainnForce's kernel."""
    import openmm

    from mlff_distiller.openmm.native import cuda_kernel_is_there, load_plugin

    load_plugin()
    if not on_the_card():
        openmm.Platform.loadPluginLibrary(str(build().parent / "libopenmm_cuda_emulated.so"))
    if not cuda_kernel_is_there():
        pytest.skip("OpenMM has no CUDA platform, or the plugin was built without its kernel")
    return "CUDA"


def operators() -> Any:
    """The operators of a CUDA build: ``torch.ops.mlff``, or under emulation, for CPU tensors."""
    import torch

    if on_the_card():
        from mlff_distiller.ops import load_library

        load_library()
        return torch.ops.mlff
    torch.ops.load_library(str(build().parent / "libmlff_ops_emulated.so"))
    return torch.ops.mlff_emulated


def sanitizer_environment() -> dict[str, str]:
    """For a Python that imports the sanitized module: the runtimes have to be loaded first."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return clean_environment(
        LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
