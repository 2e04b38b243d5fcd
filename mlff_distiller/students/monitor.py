"""Looking at a running simulation: the uncertainty of each atom, and the limit above which to speak.

What runs the simulation need not know: frames are evaluated here, by the engine on the CPU where it
is built, without forces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlff_distiller.constants import UNCERTAINTY_MARGIN
from mlff_distiller.students.file import UNCERTAINTY, check_uncertainty, read_metadata
from mlff_distiller.students.potential import native_is_built, open_potential


class UncertaintyMonitor:
    """Uncertainties of atoms by an exported student.

    Args:
        path: the ``.pt`` file.
        limit: eV/Å; None takes 3 times the largest uncertainty of a held-out atom.
        dtype: ``float32`` or ``float64``; None takes that of the file.
        threads: of the native engine; 0 is OpenMP's default.

    Raises:
        InputError: the file cannot be used or has no data for uncertainties.
    """

    def __init__(
        self,
        path: str | Path,
        limit: float | None = None,
        *,
        dtype: str | None = None,
        threads: int = 0,
    ) -> None:
        metadata = read_metadata(path)
        check_uncertainty(metadata, path)
        self.largest_held_out = float(metadata[UNCERTAINTY]["largest"])
        self.limit = UNCERTAINTY_MARGIN * self.largest_held_out if limit is None else float(limit)
        backend = "native" if native_is_built() else "portable"
        self._potential = open_potential(path, backend=backend, dtype=dtype, threads=threads)
        self._options = {"forces": False} if backend == "native" else {}

    def __call__(
        self, atomic_numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> np.ndarray:
        """(n,), eV/Å; arguments and errors as of ``Potential.compute``."""
        out = self._potential.compute(
            atomic_numbers, positions, cell, pbc, uncertainties=True, **self._options
        )
        found: np.ndarray = out["uncertainties"]
        return found


__all__ = ["UncertaintyMonitor"]
