"""Looking at a running simulation: the uncertainty of each atom, and the limit above which to speak.

What runs the simulation need not know: frames are evaluated here, by the engine on the CPU where it
is built, without forces.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlff_distiller.constants import FRAME_UNCERTAINTY_MARGIN, UNCERTAINTY_MARGIN
from mlff_distiller.students.file import UNCERTAINTY, check_uncertainty, read_metadata
from mlff_distiller.students.potential import native_is_built, open_potential


class UncertaintyMonitor:
    """Uncertainties of atoms by an exported student.

    Args:
        path: the ``.pt`` file.
        limit: eV/Å, of an atom; None takes 3 times the largest uncertainty of a held-out atom, and for
            the root mean square over all atoms 1.5 times the largest of a held-out frame.
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
        fit = metadata[UNCERTAINTY]
        self.largest_held_out = float(fit["largest"])
        self.largest_frame = float(fit.get("largest_frame", fit["largest"]))
        self.limit = UNCERTAINTY_MARGIN * self.largest_held_out if limit is None else float(limit)
        self.frame_limit = (
            FRAME_UNCERTAINTY_MARGIN * self.largest_frame if limit is None else np.inf
        )
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

    def above(self, found: np.ndarray, name: Callable[[int], str] = str) -> str | None:
        """What is above a limit, in words, or None.

        Args:
            found: (n,), what a call returned.
            name: of the atom with an index.
        """
        worst = int(found.argmax())
        if found[worst] > self.limit:
            return (
                f"the uncertainty of the force on atom {name(worst)} is {found[worst]:.3g} eV/Å, above "
                f"the limit of {self.limit:.3g} (held-out atoms had up to {self.largest_held_out:.3g})"
            )
        together = float(np.sqrt(np.square(found).mean()))
        if together > self.frame_limit:
            return (
                f"the uncertainty of the forces is {together:.3g} eV/Å (root mean square of all atoms), "
                f"above the limit of {self.frame_limit:.3g} (held-out frames had up to "
                f"{self.largest_frame:.3g})"
            )
        return None


__all__ = ["UncertaintyMonitor"]
