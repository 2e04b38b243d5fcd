"""``UncertaintyReporter``: the most uncertain atom of a running Simulation, in a table."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from mlff_distiller.elements import check_elements
from mlff_distiller.errors import InputError
from mlff_distiller.openmm.checks import (
    check_topology,
    checked_atoms,
    checked_integer,
    checked_model,
    checked_periodic,
)
from mlff_distiller.openmm.force import atomic_numbers
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor
from mlff_distiller.units import ANGSTROM_IN_NM

if TYPE_CHECKING:
    from openmm.app import Topology

_MOST_STEPS = 2**31 - 1


class UncertaintyReporter:
    """Writes step, time (ps), the largest uncertainty (eV/Å) and the index of its atom.

    Append it to ``simulation.reporters``. Any backend of ``painn_force`` or another force may run
    the simulation: positions are evaluated by the native engine on the CPU. Without periodic images
    in the force, set ``periodic`` as there.

    Args:
        file: path, or a text stream that is left open.
        interval: steps between two rows.
        model: exported student with data for uncertainties.
        topology: of the Simulation.
        atoms: particles that the model sees, as in ``painn_force``; None for all.
        periodic: as in ``painn_force``; None asks the topology.
        limit: eV/Å, of an atom; None takes 3 times the largest uncertainty of a held-out atom, and for
            the root mean square over all atoms 1.5 times the largest of a held-out frame.
        on_limit: ``warn``, once and with a Python warning, ``stop``, with an InputError, or
            ``ignore``.
        threads: of the native engine; 0 is OpenMP's default.

    Raises:
        InputError: unusable file, one without data for uncertainties, unknown option or value, a
            file that cannot be written.
    """

    def __init__(
        self,
        file: str | Path | TextIO,
        interval: int,
        model: str | Path,
        topology: Topology,
        atoms: Iterable[int] | None = None,
        *,
        periodic: bool | None = None,
        limit: float | None = None,
        on_limit: str = "warn",
        threads: int = 0,
    ) -> None:
        check_topology(topology)
        if on_limit not in ("warn", "stop", "ignore"):
            raise InputError(f"on_limit must be warn, stop or ignore, got {on_limit!r}")
        if limit is not None and not (np.isfinite(limit) and limit > 0):
            raise InputError(f"limit must be > 0 eV/Å, got {limit}; None takes that of the model")
        self._interval = checked_integer("interval", interval, _MOST_STEPS, "use e.g. 100")
        if self._interval < 1:
            raise InputError(f"interval must be >= 1 step, got {interval}; use e.g. 100")
        path = checked_model(model)
        self._atoms = None if atoms is None else checked_atoms(atoms, topology.getNumAtoms())
        self._numbers = np.asarray(atomic_numbers(topology, self._atoms), dtype=np.int64)
        check_elements(self._numbers, read_metadata(path)["elements"])
        self._pbc = np.full(3, checked_periodic(periodic, topology))
        self._monitor = UncertaintyMonitor(path, limit, threads=threads)
        self._on_limit, self._warned = on_limit, False
        self.limit = self._monitor.limit
        self._mine = isinstance(file, (str, Path))
        try:
            self._out: TextIO = open(file, "w", buffering=1) if self._mine else file  # type: ignore[arg-type,assignment]  # noqa: SIM115
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror or error}") from None
        print("step,time_ps,largest_uncertainty_ev_per_ang,atom", file=self._out)

    def describeNextReport(self, simulation: Any) -> tuple[int, bool, bool, bool, bool, bool]:
        """OpenMM asks when and of what the next report is."""
        steps = self._interval - simulation.currentStep % self._interval
        return steps, True, False, False, False, False

    def report(self, simulation: Any, state: Any) -> None:
        """OpenMM calls this every ``interval`` steps.

        Raises:
            InputError: an atom, or all together, are above the limit and ``on_limit`` is ``stop``.
        """
        positions = np.asarray(state.getPositions(asNumpy=True)._value) / ANGSTROM_IN_NM
        cell = np.zeros((3, 3))
        if self._pbc.any():
            cell = np.asarray(state.getPeriodicBoxVectors(asNumpy=True)._value) / ANGSTROM_IN_NM
        if self._atoms is not None:
            positions = positions[self._atoms]
        found = self._monitor(self._numbers, positions, cell, self._pbc)
        indices = range(len(found)) if self._atoms is None else self._atoms
        k = int(found.argmax())
        step, time = simulation.currentStep, state.getTime()._value
        print(f"{step},{time:.6g},{found[k]:.6g},{indices[k]}", file=self._out)
        text = self._monitor.above(found, lambda i: str(indices[i]))
        if text is None or self._on_limit == "ignore":
            return
        line = f"step {step}: {text}; the model extrapolates there"
        if self._on_limit == "stop":
            raise InputError(f"{line}: train on such frames, or raise the limit")
        if not self._warned:
            self._warned = True
            warnings.warn(line, stacklevel=2)

    def __del__(self) -> None:
        if getattr(self, "_mine", False) and hasattr(self, "_out"):
            self._out.close()


__all__ = ["UncertaintyReporter"]
