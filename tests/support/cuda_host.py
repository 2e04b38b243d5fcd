"""Compiles kernels for the host emulation in tests/cuda_host, once per content.

Objects and programs lie under build/cuda_host, named by a hash of everything that goes into them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests/cuda_host"
CSRC = ROOT / "mlff_distiller/csrc"
CACHE = ROOT / "build/cuda_host"
# For kernels, not for the emulation itself: every access calls racecheck.cpp.
INSTRUMENT = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]

FLAGS = [
    "-std=c++17",
    "-g1",
    "-fno-gnu-unique",  # two builds in one process keep their own __shared__ variables
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DMLFF_CUDA_HOST",
    f"-I{EMULATION}",
    f"-I{CSRC}",
]
MODES = {
    "plain": ["-O1"],
    "races": ["-O1"],
    "sanitized": [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def _common() -> str:
    """What every object depends on: the compiler and all headers."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    state = hashlib.sha256(version.encode())
    for folder in (EMULATION, CSRC / "core", CSRC / "cuda"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cuh"):
                state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def _cached(key: str, suffix: str, make) -> Path:
    """build/cuda_host/KEY.SUFFIX, made by make(path) unless it is there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / f"{key}{suffix}"
    if not target.exists():
        partial = CACHE / f"{key}.{os.getpid()}{suffix}"
        make(partial)
        partial.replace(target)
    return target


def compile_object(source: Path, flags: Iterable[str]) -> Path:
    flags = [*FLAGS, *flags]
    key = hashlib.sha256("\0".join([_common(), source.read_text(), *flags]).encode()).hexdigest()
    command = [str(compiler()), *flags, "-x", "c++", "-c", str(source), "-o"]
    return _cached(f"{source.stem}-{key[:20]}", ".o", lambda path: _run([*command, str(path)]))


def build_program(
    name: str, sources: Iterable[Path], mode: str = "plain", flags: Iterable[str] = ()
) -> Path:
    """A program of `sources` (.cu or .cpp) and the emulation; returns its path.

    Raises:
        RuntimeError: with the compiler's output, when it does not compile.
    """
    flags = [*MODES[mode], *flags]
    instrument = INSTRUMENT if mode == "races" else []
    objects = [str(compile_object(Path(source), [*flags, *instrument])) for source in sources]
    objects += [str(compile_object(source, flags)) for source in sorted(EMULATION.glob("*.cpp"))]
    key = hashlib.sha256("\0".join([*objects, *flags]).encode()).hexdigest()
    command = [str(compiler()), *flags, *objects, "-o"]
    return _cached(f"{name}-{key[:20]}", "", lambda path: _run([*command, str(path)]))
