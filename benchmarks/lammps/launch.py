"""Running the stock ``lmp`` of an environment on one structure, and what it tells afterwards."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols

#: MPICH's ranks wait in a busy loop; with more ranks than cores they must sleep instead.
OVERSUBSCRIBED = {
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "4",
}


class LammpsError(RuntimeError):
    """``lmp`` ended with an error; the message is its own line."""


@dataclass(frozen=True)
class Case:
    """A structure and the pair style that moves it. ``{names}`` in ``pair`` are the elements."""

    name: str
    atoms: Atoms
    pair: str
    command: tuple[str, ...]
    """Starts ``lmp``; see :func:`mlff_distiller.lammps.lammps_command`."""
    threads: int = 1
    skin: float = 1.0  # Å
    timestep: float = 0.0005  # ps
    temperature: float = 300.0  # K
    seed: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables on top of those of this process."""

    @property
    def numbers(self) -> list[int]:
        """Elements of the LAMMPS types, in order."""
        return sorted(set(self.atoms.numbers.tolist()))


@dataclass(frozen=True)
class Outcome:
    """What a finished run left."""

    output: str

    @property
    def seconds_per_step(self) -> float:
        """Of the last ``run``: LAMMPS' own loop time."""
        seconds, steps = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+)", self.output)[-1]
        return float(seconds) / int(steps)

    @property
    def cpu_share(self) -> float:
        """CPU time over wall time of the last ``run``: well below 1 on a busy machine."""
        return float(re.findall(r"([\d.]+)% CPU use", self.output)[-1]) / 100

    @property
    def exchange_share(self) -> float:
        """Part of the last ``run`` in exchanges of features, waiting for other ranks included:
        mean over ranks."""
        share = re.findall(r"painn: ([\d.]+)% of its time exchanging", self.output)[-1]
        pair = re.findall(r"^Pair +\|[^|]+\|[^|]+\|[^|]+\|[^|]+\| *([\d.]+)", self.output, re.M)[-1]
        return float(share) / 100 * float(pair) / 100

    @property
    def bytes_per_atom(self) -> int:
        """Exchanged per atom and step, as the banner has it."""
        return int(re.findall(r"(\d+) bytes per atom and step", self.output)[-1])

    @property
    def peak_bytes(self) -> list[float]:
        """Peak resident memory of the first rank, each time that ``info memory`` was asked."""
        mebibytes = re.findall(r"Maximum resident set size:\s+([\d.]+) Mbyte", self.output)
        return [float(x) * 2**20 for x in mebibytes]

    def printed(self, name: str) -> list[list[float]]:
        """Numbers of all lines that begin with ``name``."""
        lines = re.findall(rf"^{name} (.+)$", self.output, re.M)
        return [[float(x) for x in line.split()] for line in lines]


def start_of_input(case: Case, data: str) -> str:
    """Everything up to the first ``run``: structure, pair style, velocities."""
    names = " ".join(chemical_symbols[z] for z in case.numbers)
    return f"""
units metal
atom_style atomic
read_data {data}
{case.pair.replace("{names}", names)}
neighbor {case.skin} bin
neigh_modify every 1 delay 0 check yes
velocity all create {case.temperature} {case.seed} mom yes rot no dist gaussian
timestep {case.timestep}
thermo 1000000
thermo_modify norm no
"""


def write_data(case: Case, path: Path) -> None:
    """LAMMPS data file; ids in the order of the atoms, which lie in an upright box."""
    cell = case.atoms.cell.array
    if np.any(cell != np.diag(np.diag(cell))):
        raise ValueError("an upright cell is expected")
    numbers = case.numbers
    types = [numbers.index(z) + 1 for z in case.atoms.numbers.tolist()]
    lines = [case.name, "", f"{len(types)} atoms", f"{len(numbers)} atom types"]
    lines += [f"0.0 {float(cell[k, k])!r} {x}lo {x}hi" for k, x in enumerate("xyz")]
    lines += ["", "Masses", ""]
    lines += [f"{k + 1} {atomic_masses[z]}" for k, z in enumerate(numbers)]
    lines += ["", "Atoms # atomic", ""]
    rows = zip(types, case.atoms.positions.tolist(), strict=True)
    lines += [f"{k + 1} {t} {x!r} {y!r} {z!r}" for k, (t, (x, y, z)) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def run(case: Case, commands: str, folder: Path, ranks: int = 1) -> Outcome:
    """Run ``commands`` on a case. Raises :class:`LammpsError`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = f"{case.name}.data"
    write_data(case, folder / data)
    script, log = folder / f"{case.name}.in", folder / f"{case.name}.out"
    script.write_text(start_of_input(case, data) + commands)
    cores = len(os.sched_getaffinity(0))
    crowded = OVERSUBSCRIBED if ranks * case.threads > cores else {}
    environment = {**os.environ, **crowded, **case.variables, "OMP_NUM_THREADS": str(case.threads)}
    with log.open("w") as file:
        done = subprocess.run(
            [*case.command, "-in", script.name, "-log", "none"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = log.read_text()
    if done.returncode:
        errors = [x for x in output.splitlines() if x.startswith(("ERROR", "Traceback"))]
        last = output.strip().splitlines()[-1:] or ["no output"]
        raise LammpsError(f"lmp ended with {done.returncode}: {(errors or last)[0]}"[:300])
    return Outcome(output)


def timed(case: Case, steps: int, folder: Path, ranks: int = 1, warm_up: int = 3) -> Outcome:
    """NVE of ``steps`` steps after a few to warm up."""
    commands = f"fix move all nve\nrun {warm_up} post no\nrun {steps}\n"
    return run(case, commands, folder, ranks)
