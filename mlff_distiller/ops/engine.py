"""Python face of the native engine: numpy in, numpy out, no torch.

The work is done by ``csrc/core`` (potential.h, engine.h); this module checks arguments, documents
units and shapes, and says what to do when the compiled module is missing.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.constants import DEFAULT_SKIN, MATHS, ROUNDED_PRODUCTS
from mlff_distiller.cuda_libraries import name_cublas
from mlff_distiller.errors import InputError

try:
    from mlff_distiller import _native
except ImportError as error:  # not built: portable installations stay importable
    _native = None
    _import_error = str(error)


def native_module() -> Any:
    """The compiled module.

    Raises:
        InputError: it is not built, or cannot be loaded.
    """
    if _native is None:
        raise InputError(
            f"the native engine cannot be loaded ({_import_error}); reinstall with "
            "`pip install --no-build-isolation .` or choose the portable backend"
        )
    return _native


def cpu_quota() -> int:
    """CPUs that the control group of this process allows it, 0 without a limit or when not built."""
    return int(_native.cpu_quota()) if _native is not None else 0


class NativePotential:
    """Energy, forces and virial of one system from an exported student.

    Keeps a neighbour list with a skin between calls, and every buffer: repeated calls on one
    system allocate nothing but their results. Safe to call from several threads (calls queue; the
    GIL is released meanwhile).

    Args:
        path: exported student (``.pt``).
        dtype: ``float32`` or ``float64`` for features; positions, energies and sums are double.
        threads: OpenMP threads; 0 takes OpenMP's default. Results are the same bits for any
            fixed number.
        tabulate: filters from a spline table whose error was checked at load (see
            :attr:`table`), or exact and several times slower.
        skin: Å; the list is rebuilt when an atom has moved more than half of it.
        isa: ``auto``, or one of :func:`available_isas` (tests).
        device: ``cpu``, or ``cuda`` or ``cuda:1`` where the engine was compiled with CUDA (see
            :func:`gpu_count`). On a GPU, ``threads`` and ``isa`` have no meaning, and
            :attr:`threads`, :attr:`isa`, :attr:`neighbor_seconds` and profiling do not exist.
        math: on a GPU, what is rounded further in float32: nothing (``float32``), slopes of the
            filter table to float16 (``half``; forces stay exact derivatives of the energy), and
            factors of matrix products too (``tf32``; faster with cuBLAS only, else there is a
            warning). Errors of forces: docs/gpu.md. In float64 these are refused.
        graph: on a GPU, launch repeated steps as one CUDA graph.

    Raises:
        InputError: missing, truncated, foreign or newer file; unknown option; table bound missed;
            no such device, or the engine was compiled without CUDA.
        DeviceError: the GPU failed, e.g. its memory is full.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: str = "float32",
        threads: int = 0,
        tabulate: bool = True,
        skin: float = DEFAULT_SKIN,
        isa: str = "auto",
        device: str = "cpu",
        math: str = "float32",
        graph: bool = True,
    ) -> None:
        index = device_index(device)
        check_math(math, on_gpu=index is not None)
        if index is None:
            self._potential = native_module().Potential(
                str(path), dtype=dtype, threads=threads, tabulate=tabulate, skin=skin, isa=isa
            )
        else:
            if not tabulate:
                raise InputError("exact filters run on the CPU only; use tabulate=True or cpu")
            self._potential = gpu_module().GpuPotential(
                str(path), dtype=dtype, skin=skin, math=math, device=index, graph=graph
            )
            if math in ROUNDED_PRODUCTS and not self._potential.cublas:
                warnings.warn(
                    f"math={math!r} needs cuBLAS to be faster, and none was found: it only rounds; "
                    "install nvidia-cublas, name libcublas in MLFF_CUBLAS, or use math='float32'",
                    stacklevel=2,
                )
        self.dtype = dtype
        self.device = device

    def compute(
        self,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        *,
        forces: bool = True,
        atom_virials: bool = False,
        uncertainties: bool = False,
    ) -> dict[str, Any]:
        """Evaluate one structure.

        Args:
            atomic_numbers: (n,) integers.
            positions: (n, 3), Å; atoms may lie outside of the cell.
            cell: (3, 3), Å, rows are lattice vectors; ignored in open directions.
            pbc: (3,) bool.
            forces: also compute forces and the virial.
            atom_virials: also compute per-atom virials.
            uncertainties: also compute the uncertainty of each atom.

        Returns:
            ``energy`` float, eV; ``energies`` (n,), eV, reference energies included; ``forces``
            (n, 3), eV/Å; ``virial`` (3, 3), eV, minus the strain derivative of the energy, so
            stress = -virial / volume; ``atom_virials`` (n, 3, 3), eV: every edge gives half of
            its share to either end, which is a convention; their sum is the virial;
            ``uncertainties`` (n,), eV/Å.

        Raises:
            InputError: wrong shapes, NaN positions, unknown element, flat or left-handed periodic
                cell, two atoms at one point; uncertainties of a file without data for them.
            DeviceError: the GPU failed, e.g. its memory is full.
        """
        return self._potential.compute(
            atomic_numbers,
            positions,
            cell,
            pbc,
            forces=forces,
            atom_virials=atom_virials,
            uncertainties=uncertainties,
        )

    @property
    def table(self) -> dict[str, Any]:
        """Filter table: ``tabulated``, ``intervals``, ``value_error`` and ``derivative_error``
        (largest deviations from the exact filters, relative to the largest value and slope) and
        ``bytes``."""
        return self._potential.table

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self._potential.isa

    @property
    def threads(self) -> int:
        """OpenMP threads that :meth:`compute` uses."""
        return self._potential.threads

    @property
    def cutoff(self) -> float:
        """Å."""
        return self._potential.cutoff

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that the model knows."""
        return self._potential.elements

    @property
    def num_builds(self) -> int:
        """Neighbour lists built so far."""
        return self._potential.num_builds

    @property
    def num_edges(self) -> int:
        """Directed edges of the present list, those in the skin included."""
        return self._potential.num_edges

    @property
    def memory_bytes(self) -> int:
        """Bytes held by weights, tables, neighbour list and work buffers."""
        return self._potential.memory_bytes

    @property
    def products(self) -> str:
        """What multiplies matrices on the GPU: cuBLAS with its version and path, or our own kernel."""
        return self._potential.products

    @property
    def neighbor_seconds(self) -> float:
        """Wall time spent so far on neighbour lists and edge vectors, s."""
        return self._potential.neighbor_seconds

    @property
    def profile(self) -> dict[str, float]:
        """Seconds by phase, summed over threads, since :meth:`set_profiling`."""
        return self._potential.profile

    def set_profiling(self, on: bool) -> None:
        """Start (and reset) or stop the phase timers."""
        self._potential.set_profiling(on)


def device_index(device: str) -> int | None:
    """The GPU's number in ``cuda``, ``cuda:1``; None for ``cpu``.

    Raises:
        InputError: another name.
    """
    kind, colon, number = str(device).partition(":")
    if kind == "cpu" and not colon:
        return None
    if kind == "cuda" and (number.isdecimal() or not colon):
        return int(number or 0)
    raise InputError(f"device must be cpu, cuda or cuda:N, got {device!r}")


def gpu_module() -> Any:
    """The compiled module with CUDA inside.

    Raises:
        InputError: it was compiled without.
    """
    module = native_module()
    if not hasattr(module, "GpuPotential"):
        raise InputError(
            "the native engine was compiled without CUDA; reinstall with `MLFF_CUDA=ON pip install "
            "--no-build-isolation .` where nvcc is, or use device='cpu'"
        )
    name_cublas()
    return module


def check_math(math: str, on_gpu: bool) -> None:
    """Raise InputError for another name, and for rounding where there is no GPU."""
    if math not in MATHS:
        raise InputError(f"math must be {', '.join(MATHS[:-1])} or {MATHS[-1]}, got {math!r}")
    if math != "float32" and not on_gpu:
        raise InputError(
            f"math={math!r} is for the native engine on a GPU; use device='cuda' or math='float32'"
        )


def gpu_count() -> int:
    """GPUs that the native engine can use; 0 if it was compiled without CUDA."""
    return int(getattr(_native, "gpu_count", int)())


def gpu_report() -> dict[str, Any] | None:
    """``devices``, names of the GPUs, and ``products``, what multiplies matrices there (see
    :attr:`NativePotential.products`); None if the engine was compiled without CUDA.

    Raises:
        InputError: ``MLFF_CUBLAS`` names no cuBLAS.
    """
    if not hasattr(_native, "GpuPotential"):
        return None
    module = gpu_module()
    devices = [str(module.gpu_name(index)) for index in range(module.gpu_count())]
    return {"devices": devices, "products": str(module.gpu_products())}


def available_isas() -> list[str]:
    """Instruction sets that this machine runs: ``portable``, ``avx2``, ``avx512``."""
    return list(native_module().available_isas())


__all__ = [
    "NativePotential",
    "available_isas",
    "check_math",
    "gpu_count",
    "gpu_report",
    "native_module",
]
