"""The student inside LAMMPS: writes a data file and an input script, runs ``lmp``, reads along.

Canonical ensembles come from ``fix langevin`` with noise that is independent from atom to atom,
and ``fix momentum`` in each step, which projects the motion of the centre of mass out. That is
exact for any number of atoms and any masses; ``zero yes`` of fix langevin is not (Issue H).

A corrected run has ``fix painn/correct`` before all others. It asks this process, which owns the
teacher and answers between two looks at what LAMMPS has written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ase import units
from ase.data import chemical_symbols

from mlff_distiller.cpus import usable_cpus
from mlff_distiller.data import Structure
from mlff_distiller.dynamics.freedom import masses_of, still_directions
from mlff_distiller.dynamics.lammps_files import (
    MARKER,
    Box,
    Records,
    boundary,
    data_file,
    group_commands,
    kinds_of,
)
from mlff_distiller.dynamics.record import Begin, Recorder
from mlff_distiller.dynamics.settings import MDSettings, exact_settings
from mlff_distiller.dynamics.trajectory import Trajectory
from mlff_distiller.errors import InputError
from mlff_distiller.lammps import lammps_command
from mlff_distiller.lattice import stress_volume
from mlff_distiller.multistep.server import CorrectionServer
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

_BAR_IN_EV_PER_ANGSTROM3 = 1e-4 / EV_PER_ANGSTROM3_IN_GPA
_LARGEST_SEED = 900_000_000
_LARGEST_COORDINATE = 1e6  # Å
_DAMPING = 0.1  # ps
# s, between two looks at what LAMMPS has written.
_LOOK = 0.1
_SOCKET = "teacher"
_RECORDS = [
    "compute virial all pressure NULL virial",
    f"thermo_style custom step pe vol {' '.join(f'c_virial[{i}]' for i in range(1, 7))}",
    'thermo_modify format float "%24.16e" flush yes lost error',
]

OnRecord = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def single_point(model: Path, structure: Structure, dtype: str) -> Structure:
    """See :func:`mlff_distiller.dynamics.single_point`."""
    box = Box.around(structure)
    commands = [
        *_RECORDS,
        "dump frames all custom 1 frames.dump id x y z fx fy fz",
        'dump_modify frames sort id format float "%24.16e"',
        f'print "{MARKER}"',
        "run 0",
    ]
    found: list[Structure] = []

    def record(row: np.ndarray, cell: np.ndarray, values: np.ndarray) -> None:
        forces = values[:, 3:6] @ box.rotation.T
        labels = float(row[1]), forces, _stress(row, box, structure.cell, structure.pbc)
        found.append(structure.with_labels(*labels, engine="lammps"))

    with tempfile.TemporaryDirectory(prefix="mlff-lammps-") as folder:
        script = _Script(model, structure, box, dtype, 0, 1)
        script.run(Path(folder), commands, None, record)
    return found[-1]


def run_md(model: Path, structure: Structure, settings: MDSettings, begin: Begin) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    s, box = settings, Box.around(structure)
    masses = masses_of(structure)
    commands = [*_groups(structure, box), f"timestep {s.timestep / 1000.0}"]
    if s.warmup_steps and not begin.resumed:
        warm = _fixes(structure, s, "nvt", _seed(s))
        commands += [*warm, f"run {s.warmup_steps}"]
        commands += [f"unfix {line.split()[1]}" for line in reversed(warm)]
    commands.append("reset_timestep 0")
    if begin.correction is not None:
        commands.append(f"fix correct all painn/correct {_SOCKET} every {s.every}")
    commands += [
        *_fixes(structure, s, s.ensemble, _seed(s, begin.step)),
        f"thermo {s.interval}",
        *_RECORDS,
        f"dump frames all custom {s.interval} frames.dump id xu yu zu vx vy vz "
        "f_student[1] f_student[2] f_student[3]",
        'dump_modify frames sort id flush yes format float "%24.16e"',
        f'print "{MARKER}"',
        f"run {s.steps}",
    ]
    recorder = Recorder("lammps", structure, s, begin)

    def record(row: np.ndarray, cell: np.ndarray, values: np.ndarray) -> None:
        if int(row[0]) % s.interval:
            return  # LAMMPS prints the last step, whatever the interval
        lattice = cell @ box.rotation.T if structure.pbc.all() else structure.cell
        momenta = masses * (values[:, 3:6] @ box.rotation.T) / 1000.0 / units.fs
        frame = Structure(
            atomic_numbers=structure.atomic_numbers,
            positions=values[:, :3] @ box.rotation.T,
            cell=lattice,
            pbc=structure.pbc,
            energy=row[1],
            forces=values[:, 6:9] @ box.rotation.T,
            stress=_stress(row, box, lattice, structure.pbc),
            momenta=momenta,
            fixed=structure.fixed,
            info=dict(structure.info),
        )
        recorder.add(frame, settings=exact_settings(s))

    with (
        tempfile.TemporaryDirectory(prefix="mlff-lammps-") as folder,
        _server(begin, structure, box, Path(folder)) as server,
        recorder.interruptible(),
    ):
        script = _Script(model, structure, box, s.dtype, s.threads, s.ranks)
        records = script.run(Path(folder), commands, begin.velocities, record, server)
    for line in records.warnings:
        text = f"LAMMPS: {line.removeprefix('WARNING:').strip()}"
        recorder.warnings.append(text)
        begin.say(f"warning: {text}")
    return recorder.trajectory(records.seconds, s.steps)


@contextlib.contextmanager
def _server(
    begin: Begin, structure: Structure, box: Box, folder: Path
) -> Iterator[CorrectionServer | None]:
    """Who answers fix painn/correct; None of a plain run."""
    if begin.correction is None:
        yield None
        return
    with CorrectionServer(
        begin.correction,
        folder / _SOCKET,
        like=structure,
        rotation=box.rotation,
        first_step=begin.step,
    ) as server:
        yield server


def _seed(settings: MDSettings, step: int = 0) -> int:
    """Of the noise; another one for each part of a run that is gone on with."""
    return (settings.seed + step - 1) % _LARGEST_SEED + 1  # LAMMPS wants 1.._LARGEST_SEED


def _stress(row: np.ndarray, box: Box, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """(3, 3), eV/Å^3, from step, pe, vol, and the virial pressure xx yy zz xy xz yz in bar."""
    volume = stress_volume(cell, pbc)
    if not volume:
        return None
    xx, yy, zz, xy, xz, yz = -row[3:9] * _BAR_IN_EV_PER_ANGSTROM3 * row[2] / volume
    stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    turned: np.ndarray = box.rotation @ stress @ box.rotation.T
    return turned


def _groups(structure: Structure, box: Box) -> list[str]:
    """``mobile``: atoms that are integrated; ``held...``: those with single coordinates held."""
    if structure.fixed is None:
        return ["group mobile union all"]
    rigid = structure.fixed.all(axis=1)
    commands = [*group_commands("rigid", np.flatnonzero(rigid)), "group mobile subtract all rigid"]
    if not rigid.any():
        commands = ["group mobile union all"]
    partly = structure.fixed.any(axis=1) & ~rigid
    if partly.any() and box.is_turned:
        raise InputError(
            f"LAMMPS turns this cell, so it cannot hold single coordinates of atom "
            f"{int(np.argmax(partly))}; put the first lattice vector along x and the second into "
            "the xy plane, hold whole atoms, or use --engine ase"
        )
    for number, mask in enumerate(_partial_masks(structure)):
        atoms = np.flatnonzero((structure.fixed == mask).all(axis=1))
        commands += group_commands(f"held{number}", atoms)
    return commands


def _partial_masks(structure: Structure) -> list[np.ndarray]:
    if structure.fixed is None:
        return []
    masks = np.unique(structure.fixed, axis=0)
    return [mask for mask in masks if mask.any() and not mask.all()]


def _fixes(structure: Structure, settings: MDSettings, ensemble: str, seed: int) -> list[str]:
    """In the order in which LAMMPS has to apply them."""
    s = settings
    temperature, step = s.temperature, s.timestep / 1000.0
    move = "fix move mobile nve"
    if ensemble == "npt":
        move = f"fix move mobile nph iso {s.pressure} {s.pressure} {1000 * step}"
    # Of the student alone: the fixes below add the noise of the thermostat and hold atoms.
    fixes = [move, "fix student all store/force"]
    if ensemble != "nve":
        fixes.append(f"fix heat mobile langevin {temperature} {temperature} {_DAMPING} {seed}")
    for number, mask in enumerate(_partial_masks(structure)):
        zero = " ".join("0.0" if held else "NULL" for held in mask)
        fixes.append(f"fix hold{number} held{number} setforce {zero}")
    still = still_directions(structure)
    if ensemble != "nve" and still.any():
        flags = " ".join(str(int(flag)) for flag in still)
        fixes.append(f"fix still mobile momentum 1 linear {flags}")
    return fixes


class _Script:
    """Input of one ``lmp``.

    Args:
        model: exported student.
        structure: where it starts.
        box: of the structure.
        dtype: arithmetic of the network.
        threads: of each process; 0 leaves it to the engine.
        ranks: MPI processes.
    """

    def __init__(
        self, model: Path, structure: Structure, box: Box, dtype: str, threads: int, ranks: int
    ) -> None:
        farthest = float(np.abs(structure.positions).max())
        if farthest > _LARGEST_COORDINATE:  # LAMMPS moves atoms into the cell period by period
            raise InputError(
                f"LAMMPS needs coordinates within {_LARGEST_COORDINATE:g} Å, got {farthest:g} Å; "
                "wrap the atoms into the cell"
            )
        self._structure, self._box = structure, box
        symbols = " ".join(chemical_symbols[z] for z, _ in kinds_of(structure))
        # As from Python: in double precision the filters are computed, not looked up in a table.
        precision = "double" if dtype == "float64" else "single"
        if ranks > 1 and not threads:
            threads = max(1, usable_cpus() // ranks)
        self._threads = threads
        extra = f" threads {threads}" if threads else ""
        self._head = [
            "units metal",
            "atom_style atomic",
            "atom_modify map array",
            f"boundary {boundary(structure.pbc)}",
            "read_data atoms.data",
            f"pair_style painn precision {precision}{extra}",
            f'pair_coeff * * "{model.resolve()}" {symbols}',
        ]
        self._command = [
            *lammps_command(ranks), "-in", "in.lammps", "-log", "log.lammps", "-screen", "none",
        ]  # fmt: skip

    def run(
        self,
        folder: Path,
        commands: list[str],
        velocities: np.ndarray | None,
        record: OnRecord,
        server: CorrectionServer | None = None,
    ) -> Records:
        """Run ``commands`` and hand each record on as it comes; what ``record`` raises ends it.
        Every record is handed on before ``server`` answers for the next step."""
        text = data_file(self._structure, self._box, velocities)
        (folder / "atoms.data").write_text(text)
        (folder / "in.lammps").write_text("\n".join([*self._head, *commands]) + "\n")
        environment = dict(os.environ)
        if self._threads:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        records = Records(folder)
        try:
            status = _follow(self._command, folder, environment, records, record, server)
        finally:
            records.close()
        if status != 0:
            if server is not None and server.failure is not None:
                raise server.failure
            printed = (folder / "screen").read_text(errors="replace").splitlines()
            lines = [line for line in (*records.log, *printed) if line.strip()]
            reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "")
            raise InputError(f"LAMMPS stopped: {reason.strip()}")
        return records


def _follow(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    records: Records,
    record: OnRecord,
    server: CorrectionServer | None = None,
) -> int:
    """Exit status. On Ctrl-C, or when ``record`` raises, nothing of the program stays behind:
    ``lmp`` may be a script that starts the real one, so the whole group is ended."""

    def hand_on() -> None:
        for found in records.new():
            record(*found)

    with (
        (folder / "screen").open("w") as screen,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait = 0.005
            while process.poll() is None:
                hand_on()
                wait = min(_LOOK, 1.5 * wait)
                if server is None:
                    time.sleep(wait)
                elif server.wait(wait, hand_on):
                    wait = 0.005
            hand_on()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode
