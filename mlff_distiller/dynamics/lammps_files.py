"""What LAMMPS reads and writes: the box, the data file, and dump and log while they grow.

LAMMPS wants the first lattice vector along x and the second in the xy plane. The rotation there
is undone in everything that is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.freedom import masses_of

# Å beyond the outermost atoms in open directions. LAMMPS lets such walls follow the atoms.
_ROOM = 10.0
#: Printed before the run whose records count.
MARKER = "records from here"


@dataclass(frozen=True)
class Box:
    """The cell as LAMMPS wants it: ``cell @ rotation`` is lower triangular.

    Open directions are at right angles to the periodic ones, whatever vector the file has there
    (LAMMPS allows no tilt towards them), and hold all atoms.
    """

    cell: np.ndarray
    rotation: np.ndarray
    low: np.ndarray
    """(3,), Å, the lower corner; 0 in periodic directions."""

    @classmethod
    def around(cls, structure: Structure) -> Box:
        """The box of a structure."""
        full = _at_right_angles(structure.cell, structure.pbc)
        lower = np.linalg.cholesky(full @ full.T)
        rotation = np.linalg.solve(full, lower)
        along = structure.positions @ rotation
        low = np.zeros(3)
        for axis in np.flatnonzero(~structure.pbc):
            low[axis] = along[:, axis].min() - _ROOM
            lower[axis] = 0.0
            lower[axis, axis] = np.ptp(along[:, axis]) + 2 * _ROOM
        return cls(lower, rotation, low)

    @property
    def is_turned(self) -> bool:
        """Whether x, y and z of LAMMPS are others than those of the structure."""
        return not np.allclose(self.rotation, np.eye(3), atol=1e-9)


def _at_right_angles(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The lattice with unit vectors at right angles to the periodic ones in open directions."""
    if pbc.all():
        return np.array(cell)
    if not pbc.any():
        return np.eye(3)
    full = np.array(cell, dtype=np.float64)
    _, _, directions = np.linalg.svd(full[pbc])
    full[~pbc] = directions[int(pbc.sum()) :]
    if np.linalg.det(full) < 0:
        full[np.flatnonzero(~pbc)[0]] *= -1
    return full


def boundary(pbc: np.ndarray) -> str:
    """``m``: walls that follow the atoms, but no nearer than in the data file."""
    return " ".join("p" if periodic else "m" for periodic in pbc)


def kinds_of(structure: Structure) -> list[tuple[int, float]]:
    """Atomic number and mass, amu, of each atom type."""
    masses = masses_of(structure)[:, 0].round(9).tolist()
    return sorted(set(zip(structure.atomic_numbers.tolist(), masses, strict=True)))


def data_file(structure: Structure, box: Box, velocities: np.ndarray | None) -> str:
    """Text for ``read_data``, types as in :func:`kinds_of`; velocities (n, 3) in Å/fs."""
    cell, kinds = box.cell, kinds_of(structure)
    masses = masses_of(structure)[:, 0].round(9).tolist()
    lines = ["written by mlff_distiller", f"{len(structure)} atoms", f"{len(kinds)} atom types"]
    for axis, name in enumerate("xyz"):
        low = box.low[axis]
        lines.append(f"{low:.16e} {low + cell[axis, axis]:.16e} {name}lo {name}hi")
    if np.abs(cell[np.tril_indices(3, -1)]).max() > 1e-12:
        lines.append(f"{cell[1, 0]:.16e} {cell[2, 0]:.16e} {cell[2, 1]:.16e} xy xz yz")
    lines += ["", "Masses", ""]
    lines += [f"{i} {mass:.10g}" for i, (_, mass) in enumerate(kinds, start=1)]
    lines += ["", "Atoms # atomic", ""]
    types = {kind: i for i, kind in enumerate(kinds, start=1)}
    for i, (z, mass, (x, y, zc)) in enumerate(
        zip(
            structure.atomic_numbers.tolist(),
            masses,
            structure.positions @ box.rotation,
            strict=True,
        ),
        start=1,
    ):
        lines.append(f"{i} {types[z, mass]} {x:.16e} {y:.16e} {zc:.16e}")
    if velocities is not None:
        lines += ["", "Velocities", ""]
        for i, row in enumerate(velocities @ box.rotation * 1000.0, start=1):  # Å/ps
            lines.append(f"{i} {row[0]:.16e} {row[1]:.16e} {row[2]:.16e}")
    return "\n".join(lines) + "\n"


def group_commands(name: str, atoms: np.ndarray) -> list[str]:
    """``group NAME id ...`` of indices from 0, in lines that LAMMPS can take."""
    ids = [int(i) + 1 for i in atoms]
    return [
        f"group {name} id {' '.join(map(str, ids[k : k + 100]))}" for k in range(0, len(ids), 100)
    ]


class _Lines:
    """Complete lines of a file that another process is writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._rest = ""

    def read(self) -> list[str]:
        """Those that came since the last call."""
        if self._file is None:
            if not self._path.exists():
                return []
            self._file = self._path.open(errors="replace")
        text = self._rest + self._file.read()
        lines = text.split("\n")
        self._rest = lines.pop()
        return lines

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()


class Records:
    """Follows log and dump of a run; ``new()`` gives each record once, as soon as it is whole.

    Attributes:
        seconds: loop time of the last finished run.
        warnings: lines of the log that warn, each once.
        log: all lines.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds = 0.0
        self.warnings: list[str] = []
        self.log: list[str] = []
        self._log, self._dump = _Lines(folder / "log.lammps"), _Lines(folder / "frames.dump")
        self._pending: list[str] = []
        self._rows: dict[int, np.ndarray] = {}
        self._frames: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._counting = self._table = False

    def new(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Thermo row, cell (3, 3) and values (n, k) by atom, without the id, of whole records."""
        for line in self._log.read():
            self._log_line(line)
        self._pending += self._dump.read()
        self._take_frames()
        for step in sorted(self._rows.keys() & self._frames.keys()):
            row = self._rows.pop(step)
            cell, values = self._frames.pop(step)
            yield row, cell, values

    def close(self) -> None:
        """Give the files back."""
        self._log.close()
        self._dump.close()

    def _log_line(self, line: str) -> None:
        self.log.append(line)
        words = line.split()
        if line.startswith("WARNING") and line not in self.warnings:
            self.warnings.append(line)
        elif line.strip() == MARKER:
            self._counting = True
        elif self._counting and words[:1] == ["Step"]:
            self._table = True
        elif words[:2] == ["Loop", "time"]:
            self.seconds, self._table = float(words[3]), False
        elif self._table:
            try:
                row = np.array([float(word) for word in words])
            except ValueError:
                return  # a warning printed between two records
            if len(row) > 1:
                self._rows[int(row[0])] = row

    def _take_frames(self) -> None:
        head = 9  # timestep, number of atoms, bounds and names of columns, each with its title
        while len(self._pending) >= head:
            count = int(self._pending[3])
            if len(self._pending) < head + count:
                return
            block, self._pending = self._pending[: head + count], self._pending[head + count :]
            bounds = np.array([[float(w) for w in line.split()] for line in block[5:8]])
            values = np.array([[float(w) for w in line.split()[1:]] for line in block[head:]])
            self._frames[int(block[1])] = (_cell_of(bounds), values)


def _cell_of(bounds: np.ndarray) -> np.ndarray:
    xy, xz, yz = bounds[:, 2] if bounds.shape[1] == 3 else (0.0, 0.0, 0.0)
    low, high = bounds[:, 0].copy(), bounds[:, 1].copy()
    low[0] -= min(0.0, xy, xz, xy + xz)
    high[0] -= max(0.0, xy, xz, xy + xz)
    low[1] -= min(0.0, yz)
    high[1] -= max(0.0, yz)
    size = high - low
    return np.array([[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]])
