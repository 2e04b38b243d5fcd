"""Builds and imports the GPU engine under host emulation (tests/cuda_engine)."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

from support.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
NAME = "_cuda_emulated"


def _build_folder() -> Path:
    """Environments of their own (`make cuda`) have another torch and keep their own builds."""
    folder, home = ROOT / "build", Path(sys.prefix)
    return home.parent if folder in home.parents else folder


def build(sanitize: bool = False, races: bool = False) -> Path:
    """The compiled module (LAMMPS plugin, torch operators); cmake does nothing where nothing changed."""
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
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
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
    """pair_style painn with ``device gpu`` under emulation."""
    return build().parent / "lammps_plugin" / "painnplugin.so"


def operators() -> Path:
    """Registers ``torch.ops.mlff_emulated``: the operators of a CUDA build, for CPU tensors."""
    return build().parent / "libmlff_ops_emulated.so"


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
