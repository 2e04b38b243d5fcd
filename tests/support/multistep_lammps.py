"""fix painn/correct in input scripts: a server in a thread, and what ``lmp`` leaves."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ase import units

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.freedom import masses_of
from mlff_distiller.dynamics.lammps_files import Box, data_file
from mlff_distiller.multistep import Correction
from mlff_distiller.multistep.server import CorrectionServer
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.teachers import CalculatorTeacher
from support.lammps import Finished, run_lmp
from support.multistep import crystal, lennard_jones


@contextmanager
def serving(model: Path, path: Path, teacher=None) -> Iterator[CorrectionServer]:
    """A server in a thread, as `mlff-distiller correct-server` is one in a process."""
    surface = teacher
    if not isinstance(teacher, CalculatorTeacher):
        surface = CalculatorTeacher("Lennard-Jones", teacher or lennard_jones())
    correction = Correction(surface, ExportedModel(model, dtype="float64", threads=1))
    ended = threading.Event()
    with CorrectionServer(correction, path) as server:

        def answer() -> None:
            while not ended.is_set():
                server.wait(0.02)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            ended.set()
            thread.join(10)


def script(
    folder: Path, model: Path, lines: str, *, start: Structure | None = None, head: str = ""
) -> str:
    """Input of a run from ``start``; FIX stands for the fix with its address."""
    start = crystal() if start is None else start
    box = Box.around(start)
    assert start.momenta is not None
    velocities = start.momenta / masses_of(start) * units.fs
    (folder / "atoms.data").write_text(data_file(start, box, velocities))
    return f"""
units metal
{head}
atom_modify map array
read_data atoms.data
pair_style painn precision double
pair_coeff * * {model} Si
timestep 0.001
thermo 4
{lines.replace("FIX", "fix c all painn/correct socket every 4")}
write_dump all custom end.dump id xu yu zu vx vy vz modify sort id format float %.15g
"""


def run_script(
    folder: Path, model: Path, lines: str, ranks: int = 1, teacher=None, **more
) -> Finished:
    with serving(model, folder / "socket", teacher):
        return run_lmp(folder, script(folder, model, lines, **more), ranks, timeout=60)


def end_of(folder: Path) -> np.ndarray:
    """(n, 6), positions and velocities."""
    return np.loadtxt(folder / "end.dump", skiprows=9)[:, 1:]


def thermo_rows(output: str) -> list[list[float]]:
    """Rows of numbers of all thermo tables."""
    number = r"-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan)"
    pattern = rf"^ *({number}(?: +{number})+) *$"
    return [[float(v) for v in m.split()] for m in re.findall(pattern, output, re.MULTILINE)]
