"""[7] StudentCalculator: an exported student as an ASE calculator.

from mlff_distiller import StudentCalculator

atoms.calc = StudentCalculator("student.pt")
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.constants import DEFAULT_SKIN
from mlff_distiller.elements import check_elements
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import right_handed, stress_volume, volume_of
from mlff_distiller.students.file import UNCERTAINTY, check_uncertainty, read_metadata
from mlff_distiller.students.potential import (
    Potential,
    dtype_name,
    open_potential,
    resolve_backend,
)

UNCERTAINTIES = "uncertainties"


class StudentCalculator(Calculator):
    """Energy, forces and stress of an exported student.

    Stress exists for structures that are periodic in some direction and have three lattice vectors
    (ASE's convention: of slabs it is that of the cell, vacuum included); elsewhere asking for it
    raises ASE's ``PropertyNotImplementedError``. Copies, pickles and forked processes load the
    model again from its path.

    Args:
        model_path: file written by ``mlff-distiller export``.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...
        dtype: ``float32`` or ``float64`` (names, torch or numpy dtypes); None takes that of the
            file. Energies are summed in float64 in either case.
        backend: ``native`` (C++ engine, CPU), ``portable`` (TorchScript) or ``auto``.
        threads: of the native engine; 0 is OpenMP's default. Forked children use one, since the
            thread pool does not survive a fork.
        skin: Å; neighbour lists live until an atom has moved half of this.
        math: of the native engine on a GPU in float32, what is rounded to be faster: nothing
            (``float32``), the filter table (``half``), or factors of matrix products as well
            (``tf32``); see docs/gpu.md.
        uncertainty: also compute ``uncertainties`` (n,), the expected error of the force on each
            atom, eV/Å (:mod:`mlff_distiller.students.uncertainty`). Left out, they are computed
            where :meth:`get_property` asks for them.

    Raises:
        InputError: missing, truncated or foreign file, unknown option, uncertainties of a file
            without data for them. Later, from calculations: no atoms, unknown element, NaN
            positions, flat or left-handed periodic cell.
        DeviceError: the GPU failed, e.g. its memory is full.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model_path: str | Path,
        device: str = "cpu",
        dtype: Any = None,
        *,
        backend: str = "auto",
        threads: int = 0,
        skin: float = DEFAULT_SKIN,
        math: str = "float32",
        uncertainty: bool = False,
    ) -> None:
        self._snapshot: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
        super().__init__()
        self.metadata = read_metadata(model_path)
        self.model_path = Path(model_path).absolute()
        self.device = str(device)
        self.dtype = dtype_name(dtype) or str(self.metadata["dtype"])
        self.backend = resolve_backend(backend, self.device)
        self.threads = int(threads)
        self.skin = float(skin)
        self.math = str(math)
        self.uncertainty = bool(uncertainty)
        if self.uncertainty:
            check_uncertainty(self.metadata, self.model_path)
        if self.metadata.get(UNCERTAINTY):
            self.implemented_properties = [*type(self).implemented_properties, UNCERTAINTIES]
        self._checked_numbers: np.ndarray | None = None
        self._potential: Potential
        self._open()

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that the model knows."""
        return list(self.metadata["elements"])

    @property
    def cutoff(self) -> float:
        """Å."""
        return float(self.metadata["cutoff"])

    @property
    def atoms(self) -> Atoms | None:
        """The atoms of the last calculation.

        ASE's own base class copies the whole Atoms object in every step, which costs more than
        the network for a small molecule; here it is put together when somebody asks.
        """
        if self._snapshot is None:
            return None
        numbers, positions, cell, pbc = self._snapshot
        return Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc)

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._snapshot = None if atoms is None else _arrays(atoms, copy=True)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the last calculation; momenta, charges and the like do not matter."""
        if self._snapshot is None:
            return list(all_changes)
        names = ("numbers", "positions", "cell", "pbc")
        pairs = zip(names, self._snapshot, _arrays(atoms), strict=True)
        return [name for name, old, new in pairs if not _equal(old, new, tol)]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """ASE's entry point; computes only when the atoms have changed."""
        if name == UNCERTAINTIES:
            check_uncertainty(self.metadata, self.model_path)
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name} property not implemented")
        if atoms is not None and self._changed(atoms):
            self.reset()
            if not allow_calculation:
                return None
            self.calculate(atoms, [name])
        if name == UNCERTAINTIES and name not in self.results and allow_calculation:
            self.calculate(atoms, [name])
        if name not in self.results:
            if not allow_calculation:
                return None
            if self._snapshot is None:
                raise InputError("no atoms to calculate; pass some or set atoms.calc")
            if not self.results:
                self.calculate(self.atoms)
            if name not in self.results:
                raise PropertyNotImplementedError(
                    "stress needs a periodic structure whose cell has a volume, got "
                    f"pbc={self._snapshot[3].tolist()} and {self._volume():.3g} Å^3; set atoms.pbc "
                    "and three lattice vectors"
                )
        result = self.results[name]
        return result.copy() if isinstance(result, np.ndarray) else result

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties at once: forces cost little on top of an energy.

        Raises:
            InputError: see the class.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None or len(atoms) == 0:
            raise InputError("a calculation needs at least one atom, got none; add atoms")
        if os.getpid() != self._pid:
            self._reopen_after_fork()
        numbers, positions, cell, pbc = snapshot = _arrays(atoms, copy=True)
        if self._checked_numbers is None or not np.array_equal(numbers, self._checked_numbers):
            check_elements(numbers, self.elements)
            self._checked_numbers = numbers
        self._snapshot, self.results = None, {}  # nothing stale is left if the next line raises
        cell, pbc = right_handed(cell, pbc)  # the same lattice, as the engines want it
        uncertain = self.uncertainty or UNCERTAINTIES in properties
        out = self._potential.compute(numbers, positions, cell, pbc, uncertainties=uncertain)
        _check_finite(out["energy"], out["forces"])
        self._snapshot = snapshot
        self.results = {
            "energy": out["energy"],
            "free_energy": out["energy"],
            "energies": out["energies"],
            "forces": out["forces"],
        }
        if uncertain:
            self.results[UNCERTAINTIES] = out[UNCERTAINTIES]
        volume = stress_volume(cell, pbc)
        if volume > 0:
            stress = out["virial"] / -volume
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)

    def __reduce__(self) -> tuple[Any, ...]:
        # A loaded model is no use to another process, and a shared one none to a copy.
        keywords = {
            "backend": self.backend,
            "threads": self.threads,
            "skin": self.skin,
            "math": self.math,
            "uncertainty": self.uncertainty,
        }
        return _rebuild, (str(self.model_path), self.device, self.dtype, keywords)

    def __deepcopy__(self, memo: dict[int, Any]) -> StudentCalculator:
        rebuild, arguments = self.__reduce__()
        return rebuild(*arguments)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """Settings, as ASE's databases and trajectories record them."""
        return {
            "model_path": str(self.model_path),
            "device": self.device,
            "dtype": self.dtype,
            "backend": self.backend,
            "math": self.math,
            "uncertainty": self.uncertainty,
        }

    def get_spin_polarized(self) -> bool:
        """False; without this method ASE's base class makes each calculator a reference cycle."""
        return False

    def _open(self) -> None:
        self._pid = os.getpid()
        self._potential = open_potential(
            self.model_path,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            skin=self.skin,
            math=self.math,
        )

    def _volume(self) -> float:
        return 0.0 if self._snapshot is None else abs(volume_of(self._snapshot[2].tolist()))

    def _reopen_after_fork(self) -> None:
        self.threads = 1
        if self.backend == "portable":
            import torch

            torch.set_num_threads(1)
        self._open()

    def _changed(self, atoms: Atoms) -> bool:
        if self._snapshot is None:
            return True
        numbers, positions, cell, pbc = self._snapshot
        return not (
            _equal(positions, atoms.positions)
            and _equal(numbers, atoms.numbers)
            and _equal(cell, atoms.cell.array)
            and _equal(pbc, atoms.pbc)
        )


def _rebuild(path: str, device: str, dtype: str, keywords: dict[str, Any]) -> StudentCalculator:
    return StudentCalculator(path, device, dtype, **keywords)


def _arrays(
    atoms: Atoms, copy: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    arrays = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    if not copy:
        return arrays
    numbers, positions, cell, pbc = arrays
    return numbers.astype(np.int64), positions.astype(np.float64), cell.copy(), pbc.copy()


def _equal(a: np.ndarray, b: np.ndarray, tol: float = 0.0) -> bool:
    if a.shape != b.shape:
        return False
    if tol and a.dtype.kind == "f":
        return bool((np.abs(a - b) <= tol).all())
    return bool((a == b).all())


def _check_finite(energy: float, forces: np.ndarray) -> None:
    """Raise InputError for a result that no dynamics or fit could go on with."""
    if math.isfinite(energy) and np.isfinite(forces.sum()):  # two numbers, where all is well
        return
    atoms = np.flatnonzero(~np.isfinite(forces).all(axis=1))
    what = f"force on atom {atoms[0]}" if len(atoms) else "energy"
    if math.isfinite(energy) and not len(atoms):
        return
    raise InputError(
        f"the model gave a NaN or infinite {what}; check the structure, the time step and the model"
    )
