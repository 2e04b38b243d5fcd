"""Energy, forces and virial of one system from an exported student, whatever does the work.

``native``    the C++ engine: fused kernels, analytic gradients, no torch. CPU, and NVIDIA GPUs
              where it was compiled with CUDA.
``portable``  the exported TorchScript with autograd. Any device that torch knows; slower. It
              shares no code with the engine, so tests compare the two.

The ASE calculator and the OpenMM force stand on :func:`open_potential`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlff_distiller.constants import DEFAULT_SKIN, PRECISIONS
from mlff_distiller.errors import InputError
from mlff_distiller.students.file import read_metadata

BACKENDS = ("auto", "native", "portable")


class Potential(Protocol):
    """What both backends offer."""

    def compute(
        self,
        atomic_numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        *,
        uncertainties: bool = False,
    ) -> dict[str, Any]:
        """Evaluate one structure.

        Args:
            atomic_numbers: (n,) int64.
            positions: (n, 3) float64, Å; atoms may lie outside of the cell.
            cell: (3, 3) float64, Å, rows are lattice vectors; ignored in open directions.
            pbc: (3,) bool.
            uncertainties: also of each atom.

        Returns:
            ``energy`` float, eV; ``energies`` (n,), eV; ``forces`` (n, 3), eV/Å; ``virial``
            (3, 3), eV, minus the strain derivative of the energy; where asked for,
            ``uncertainties`` (n,), eV/Å, see :mod:`mlff_distiller.students.uncertainty`.

        Raises:
            InputError: NaN positions, unknown element, flat or left-handed periodic cell,
                uncertainties of a file that has no data for them.
            DeviceError: the GPU failed, e.g. its memory is full.
        """
        ...


def open_potential(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "cpu",
    dtype: str | None = None,
    threads: int = 0,
    skin: float = DEFAULT_SKIN,
    math: str = "float32",
) -> Potential:
    """Load an exported student.

    Args:
        path: the ``.pt`` file.
        backend: ``native``, ``portable`` or ``auto``: native where it is built for the device.
        device: ``cpu``, ``cuda``, ``cuda:1``; the portable backend takes any torch device.
        dtype: ``float32`` or ``float64``; None takes that of the file.
        threads: of the native engine; 0 is OpenMP's default.
        skin: Å, see :data:`mlff_distiller.constants.DEFAULT_SKIN`.
        math: of the native engine on a GPU, see :class:`mlff_distiller.ops.engine.NativePotential`.

    Raises:
        InputError: missing, truncated or foreign file, unknown option, native engine not built.
    """
    from mlff_distiller.ops.engine import NativePotential, check_math

    backend = resolve_backend(backend, device)
    check_math(math, on_gpu=backend == "native" and device != "cpu")
    if dtype is None:
        dtype = str(read_metadata(path)["dtype"])
    if backend == "portable":
        from mlff_distiller.students.portable import PortablePotential

        return PortablePotential(path, device=device, dtype=dtype, skin=skin)

    # Whoever asks for double precision wants every digit, not an interpolated filter.
    # (GPUs have the table only, whose error in double precision is 1e-10.)
    tabulate = dtype == "float32" or device != "cpu"
    return NativePotential(
        str(path),
        dtype=dtype,
        threads=threads,
        tabulate=tabulate,
        skin=skin,
        device=device,
        math=math,
    )


def resolve_backend(backend: str, device: str = "cpu") -> str:
    """``native`` or ``portable``; arguments and errors as in :func:`open_potential`."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    kind = str(device).split(":")[0]
    built = native_is_built() and (kind == "cpu" or (kind == "cuda" and native_has_gpu()))
    if backend == "portable" or (backend == "auto" and not built):
        return "portable"
    if kind != "cpu" and not built:
        raise InputError(
            f"the native backend of this installation runs on the CPU, got device {device!r}; "
            "use backend='portable' or device='cpu', or reinstall with MLFF_CUDA=ON"
        )
    if not native_is_built():
        raise InputError(
            "the native engine is not built in this installation; use backend='portable' or "
            "reinstall with `pip install --no-build-isolation .`"
        )
    return "native"


def native_is_built() -> bool:
    """True if the compiled engine can be imported."""
    try:
        from mlff_distiller import _native  # noqa: F401
    except ImportError:
        return False
    return True


def native_has_gpu() -> bool:
    """True if the compiled engine has CUDA inside and finds a GPU."""
    from mlff_distiller.ops.engine import gpu_count

    return gpu_count() > 0


def dtype_name(dtype: Any) -> str | None:
    """``float32`` or ``float64`` from a name, a torch or numpy dtype or a precision; None stays.

    Raises:
        InputError: anything else.
    """
    if dtype is None:
        return None
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype).removeprefix("torch.")
    name = {"single": "float32", "double": "float64"}.get(name, name)
    if name not in PRECISIONS:
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}; choose one of them")
    return name


__all__ = ["Potential", "dtype_name", "open_potential", "resolve_backend"]
