"""The python backend: what ``openmm.PythonForce`` calls in each step.

OpenMM takes any number for an energy and any array for forces: a wrong type turns into -1.0 or
garbage without a word, and NaN passes. So everything is checked here.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from mlff_distiller.errors import InputError
from mlff_distiller.openmm.checks import check_count, check_unchanged
from mlff_distiller.students.potential import Potential, open_potential
from mlff_distiller.units import ANGSTROM_IN_NM, EV_IN_KJ_PER_MOL

ANGSTROM_PER_NM = 1.0 / ANGSTROM_IN_NM
_FORCE_UNIT = EV_IN_KJ_PER_MOL * ANGSTROM_PER_NM


class PainnComputation:
    """Energy (kJ/mol) and forces (kJ/mol/nm) of an OpenMM State.

    Pickles hold the path, the hash and the options, never the model. Any number of Contexts and
    threads may share one object: each call takes an idle evaluator or makes one.

    Args:
        path: exported student.
        digest: its SHA-256; a file that has changed since is refused.
        atomic_numbers: of the particles that the State will hold.
        periodic: whether there are periodic images.
        dtype: ``float32`` or ``float64``.
        device: ``cpu`` and ``cuda`` take the native engine where it is built for them, anything else
            TorchScript.
        threads: of the native engine.
        skin: Å.
        math: of the native engine on a GPU.
        particles: which of the State's particles these are, where OpenMM does not choose them.

    Raises:
        InputError: the file cannot be used.
    """

    #: Pickles of former versions have none.
    particles: list[int] | None = None

    def __init__(
        self,
        path: str,
        digest: str,
        atomic_numbers: list[int],
        *,
        periodic: bool,
        dtype: str,
        device: str,
        threads: int,
        skin: float,
        math: str = "float32",
        particles: list[int] | None = None,
    ) -> None:
        self.path = path
        self.digest = digest
        self.atomic_numbers = np.asarray(atomic_numbers, dtype=np.int64)
        self.periodic = periodic
        self.particles = particles
        self.options: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "skin": skin,
            "math": math,
        }
        self._prepare()
        self._idle.append(self._open())  # errors now, not in the first step

    def _prepare(self) -> None:
        self._idle: list[Potential] = []
        self._lock = threading.Lock()
        self._pbc = np.full(3, self.periodic)
        self._cell = np.zeros((3, 3))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The file is looked at in the first step: an exception in here would not reach the user.
        vars(self).update(state)
        self._prepare()

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Called by OpenMM.

        Args:
            state: ``openmm.State`` with positions and, if periodic, a box.

        Returns:
            energy, kJ/mol, and forces (n, 3), kJ/mol/nm, C-contiguous float64.

        Raises:
            InputError: another number of particles, NaN, or a model that has changed; OpenMM
                passes the message on as OpenMMException.
        """
        positions = np.asarray(state.getPositions(asNumpy=True)._value) * ANGSTROM_PER_NM
        n, count = len(self.atomic_numbers), len(positions)
        check_count(count, n, self.particles)
        if self.particles is not None:
            positions = positions[self.particles]
        cell = self._cell
        if self.periodic:
            cell = np.asarray(state.getPeriodicBoxVectors(asNumpy=True)._value) * ANGSTROM_PER_NM
        with self._lock:
            potential = self._idle.pop() if self._idle else None
        if potential is None:
            potential = self._open()
        try:
            out = potential.compute(self.atomic_numbers, positions, cell, self._pbc)
        finally:
            with self._lock:
                self._idle.append(potential)
        energy = float(out["energy"]) * EV_IN_KJ_PER_MOL
        forces = np.ascontiguousarray(out["forces"], dtype=np.float64) * _FORCE_UNIT
        if forces.shape != (n, 3):
            raise InputError(f"forces must have shape {(n, 3)}, got {forces.shape}; report this")
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise InputError(
                f"the model gave a NaN or infinite energy or force (energy {energy} kJ/mol); "
                "minimise, shorten the time step, or check the model"
            )
        if self.particles is not None:
            everywhere = np.zeros((count, 3))
            everywhere[self.particles] = forces
            forces = everywhere
        return energy, forces

    def _open(self) -> Potential:
        check_unchanged(self.path, self.digest)
        return open_potential(self.path, **self.options)
