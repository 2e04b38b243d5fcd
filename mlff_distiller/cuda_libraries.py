"""cuBLAS of NVIDIA's wheels, for processes that have no torch in them.

The native engine looks for cuBLAS when it first uses a GPU: in the process and the loader's path, in the
site-packages that it is installed in, in the toolkit's folder (csrc/cuda/cublas.h). ``lmp`` has no
torch, and wheels may lie in other site-packages: those are found here and handed over in the
environment variable ``MLFF_CUBLAS``, which users set to choose another library, or ``off``.

Nothing is imported here, neither torch nor numpy: :mod:`mlff_distiller.lammps` calls it in every rank.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

VARIABLE = "MLFF_CUBLAS"


def cublas_folders() -> list[Path]:
    """Folders of NVIDIA's wheels with a libcublas, newest CUDA first."""
    spec = importlib.util.find_spec("nvidia")
    found = []
    for place in (spec.submodule_search_locations or []) if spec else []:
        for part in ("cu13", "cu12", "cublas"):
            folder = Path(place) / part / "lib"
            if any(folder.glob("libcublas.so.*")):
                found.append(folder)
    return found


def name_cublas() -> None:
    """Set ``MLFF_CUBLAS`` for this process and its children, unless it is set. Never raises."""
    if VARIABLE in os.environ:
        return
    try:
        folders = cublas_folders()
    except Exception:  # a broken package `nvidia` is no reason not to start LAMMPS
        return
    if folders:
        os.environ[VARIABLE] = ":".join(map(str, folders))


__all__ = ["cublas_folders", "name_cublas"]
