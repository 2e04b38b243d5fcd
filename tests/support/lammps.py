"""Students and systems for LAMMPS, and running the real ``lmp`` on them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from mlff_distiller.export import export_student
from mlff_distiller.lammps import lammps_command
from mlff_distiller.models import StudentForceField
from mlff_distiller.units import BOHR_IN_ANGSTROM, ELEMENTARY_CHARGE, HARTREE_IN_EV, energy_in_ev
from support.arbiter import arbiter
from support.processes import clean_environment
from support.students import make_student
from support.systems import PERIODIC, System, random_system

#: Exact filters: what double precision is compared with at 1e-8.
EXACT = "precision double tabulate off"
#: LAMMPS' pressure unit times volume in its energy unit, as LAMMPS has it (nktv2p).
NKTV2P = {"metal": 1.6021765e6, "real": 68568.415, "si": 1.0, "electron": 2.94210108e13}
#: (length, energy) of each unit style in Å and eV.
UNITS = {
    "metal": (1.0, 1.0),
    "real": (1.0, energy_in_ev("kcal/mol")),
    "si": (1e10, 1.0 / ELEMENTARY_CHARGE),
    "electron": (BOHR_IN_ANGSTROM, HARTREE_IN_EV),
}
#: MPICH's ranks wait in a busy loop; with more ranks than cores they must sleep instead, or each
#: message costs a time slice (4 ranks on 2 cores: 34 s became 2.5 s).
OVERSUBSCRIBED = {
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "4",
}
_VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_NINE = (*_VOIGT, (1, 0), (2, 0), (2, 1))


def write_student(
    path: Path, elements: tuple[int, ...] = (14, 8), *, metadata: dict | None = None, **changes: Any
) -> StudentForceField:
    """Export a student whose forces are of the order of 1 eV/Å, and return it."""
    changes = {"seed": 0, "num_interactions": 3, "zbl": False, **changes}
    student = make_student(elements, scale=2.0, **changes)
    export_student(student, path, metadata or {})
    return student


def glass_of(n_atoms: int, cell: Any, pbc: Any = PERIODIC, **keywords: Any) -> System:
    """Silicon and oxygen at random, 1.4 Å apart; see ``random_system``."""
    return random_system(n_atoms, cell, pbc, **{"elements": (14, 8), "distance": 1.4, **keywords})


# --- the reference ----------------------------------------------------------------------------
@dataclass
class Values:
    """Energy eV, forces (n, 3) eV/Å, virial (3, 3) eV, and per-atom arrays by atom id."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray
    energies: np.ndarray
    atom_virials: np.ndarray | None = None  # (n, 6), LAMMPS' order
    centroid_virials: np.ndarray | None = None  # (n, 9), LAMMPS' order
    positions: np.ndarray | None = None
    extra: dict[str, float] = field(default_factory=dict)


def reference(student: StudentForceField, system: System) -> Values:
    """Energy, forces and virial from autograd, float64."""
    want = arbiter(student, *system)
    return Values(want["energy"], want["forces"], want["virial"], want["energies"])


# --- lmp ----------------------------------------------------------------------------------------
@dataclass
class Finished:
    """What a finished ``lmp`` left: its screen and its status."""

    returncode: int
    output: str

    @property
    def error(self) -> str:
        """The one error line, without its prefix."""
        lines = [line for line in self.output.splitlines() if line.startswith("ERROR")]
        return lines[0] if lines else ""


def run_lmp(
    folder: Path,
    script: str,
    ranks: int = 1,
    *arguments: str,
    threads: int = 1,
    timeout: float = 120.0,
    command: list[str] | None = None,
) -> Finished:
    """Run the real ``lmp`` in ``folder`` on an input script. Raises when it hangs."""
    path = folder / "in.lammps"
    path.write_text(script)
    environment = clean_environment(**OVERSUBSCRIBED, OMP_NUM_THREADS=str(threads))
    done = subprocess.run(
        [*(command or lammps_command(ranks)), "-in", path.name, "-log", "none", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


@dataclass(frozen=True)
class Run:
    """One energy evaluation: ``lmp`` input from a system, a model and lines of your own.

    ``types`` are the elements of the LAMMPS types; an element listed twice is given to its types
    in turn. ``pair`` replaces the pair lines; ``{model}`` and ``{names}`` are filled in.
    """

    name: str
    system: System
    model: Path
    types: tuple[int, ...] = (14, 8)
    style: str = EXACT
    pair: str = "pair_style painn {style}\npair_coeff * * {model} {names}"
    names: str = ""
    units: str = "metal"
    newton: str = "on"
    atom_style: str = "atomic"
    before: str = ""  # ahead of read_data
    after: str = ""  # behind pair_coeff
    steps: str = "run 0 post no"
    skin: float = 0.3  # Å
    ids: tuple[int, ...] | None = None
    charges: tuple[float, ...] | None = None
    centroid: bool = True


def write_data(path: Path, run: Run) -> np.ndarray:
    """Write the data file of a run; returns the ids of its atoms in the system's order."""
    length = UNITS[run.units][0]
    system = run.system
    cell, positions = system.cell / length, system.positions / length
    n_atoms = len(system.numbers)
    ids = np.arange(1, n_atoms + 1) if run.ids is None else np.array(run.ids)
    candidates = {z: [k + 1 for k, t in enumerate(run.types) if t == z] for z in set(run.types)}
    lines = [
        "data file of the tests",
        "",
        f"{n_atoms} atoms",
        f"{len(run.types)} atom types",
        f"0.0 {float(cell[0, 0])!r} xlo xhi",
        f"0.0 {float(cell[1, 1])!r} ylo yhi",
        f"0.0 {float(cell[2, 2])!r} zlo zhi",
    ]
    if np.any(cell != np.diag(np.diag(cell))):
        lines.append(f"{float(cell[1, 0])!r} {float(cell[2, 0])!r} {float(cell[2, 1])!r} xy xz yz")
    lines += ["", "Masses", ""]
    lines += [f"{k + 1} {atomic_masses[z]}" for k, z in enumerate(run.types)]
    lines += ["", f"Atoms # {run.atom_style}", ""]
    for i in range(n_atoms):
        kinds = candidates[int(system.numbers[i])]
        columns = [str(ids[i])]
        if run.atom_style in ("full", "molecular", "bond"):
            columns.append("1")
        columns.append(str(kinds[i % len(kinds)]))
        if run.atom_style in ("charge", "full"):
            columns.append(repr(float(run.charges[i])) if run.charges else "0.0")
        columns += [repr(float(v)) for v in positions[i]]
        lines.append(" ".join(columns))
    path.write_text("\n".join(lines) + "\n")
    return ids


def script_of(run: Run, folder: Path) -> str:
    """Input script of a run; writes its data file into ``folder``."""
    write_data(folder / f"{run.name}.data", run)
    names = run.names or " ".join(chemical_symbols[z] for z in run.types)
    pair = run.pair.format(style=run.style, model=run.model, names=names)
    boundary = " ".join("p" if periodic else "f" for periodic in run.system.pbc)
    skin = run.skin / UNITS[run.units][0]
    nine = (
        "compute ca all centroid/stress/atom NULL pair\n"
        "compute sumca all reduce sum c_ca[1] c_ca[2] c_ca[3] c_ca[4] c_ca[5] c_ca[6] c_ca[7] "
        "c_ca[8] c_ca[9]\n"
        if run.centroid
        else ""
    )
    nine_columns = " c_ca[*]" if run.centroid else ""
    nine_sums = " c_sumca[*]" if run.centroid else ""
    return f"""
clear
units {run.units}
newton {run.newton}
atom_style {run.atom_style}
boundary {boundary}
{run.before}
read_data {run.name}.data
{pair}
{run.after}
neighbor {skin!r} bin
compute ea all pe/atom pair
compute sa all stress/atom NULL pair
compute pr all pressure NULL pair
compute sumea all reduce sum c_ea
compute sumsa all reduce sum c_sa[1] c_sa[2] c_sa[3] c_sa[4] c_sa[5] c_sa[6]
{nine}thermo_style custom step pe etotal vol c_pr[*] c_sumea c_sumsa[*]{nine_sums}
thermo 100000
thermo_modify lost error norm no
{run.steps}
write_dump all custom {run.name}.dump id type xu yu zu fx fy fz c_ea c_sa[*]{nine_columns} &
  modify sort id format float %.17g
print "RESULT {run.name} pe=$(pe:%.17g) etotal=$(etotal:%.17g) vol=$(vol:%.17g) &
natoms=$(atoms:%.17g) sumea=$(c_sumea:%.17g) pxx=$(c_pr[1]:%.17g) pyy=$(c_pr[2]:%.17g) &
pzz=$(c_pr[3]:%.17g) pxy=$(c_pr[4]:%.17g) pxz=$(c_pr[5]:%.17g) pyz=$(c_pr[6]:%.17g)"
"""


def read_result(run: Run, folder: Path, output: str) -> Values:
    """Values of a run in eV and Å, atoms in the order of the system (of ids if some are gone)."""
    found = re.search(rf"^RESULT {re.escape(run.name)} (.*)$", output, re.MULTILINE)
    if found is None:
        raise AssertionError(f"lmp did not finish {run.name}:\n{output[-3000:]}")
    extra = {k: float(v) for k, v in (item.split("=") for item in found.group(1).split())}
    length, energy = UNITS[run.units]
    table = np.loadtxt(folder / f"{run.name}.dump", skiprows=9, ndmin=2)
    table = table.reshape(-1, 24 if run.centroid else 15)
    if run.ids is not None and len(run.ids) == len(table):
        table = table[np.argsort(np.argsort(run.ids))]
    to_virial = energy / NKTV2P[run.units]
    pressure = [extra[k] for k in ("pxx", "pyy", "pzz", "pxy", "pxz", "pyz")]
    virial = np.zeros((3, 3))
    for (a, b), p in zip(_VOIGT, pressure, strict=True):
        virial[a, b] = virial[b, a] = p * extra["vol"] * to_virial
    return Values(
        extra["pe"] * energy,
        table[:, 5:8] * energy / length,
        virial,
        table[:, 8] * energy,
        -table[:, 9:15] * to_virial,
        -table[:, 15:24] * to_virial if run.centroid else None,
        table[:, 2:5] * length,
        extra,
    )


def evaluate(
    runs: list[Run], folder: Path, ranks: int = 1, *, threads: int = 1, prefix: str = ""
) -> dict[str, Values]:
    """All runs in one ``lmp`` process (per rank): name -> values."""
    script = prefix + "".join(script_of(run, folder) for run in runs)
    done = run_lmp(folder, script, ranks, threads=threads)
    assert done.returncode == 0, done.output[-3000:]
    return {run.name: read_result(run, folder, done.output) for run in runs}


def six(virial: np.ndarray) -> np.ndarray:
    """(3, 3) -> LAMMPS' xx yy zz xy xz yz."""
    return np.array([virial[a, b] for a, b in _VOIGT])


def nine(virial: np.ndarray) -> np.ndarray:
    """(3, 3) -> LAMMPS' xx yy zz xy xz yz yx zx zy."""
    return np.array([virial[a, b] for a, b in _NINE])


def assert_same(
    got: Values,
    expected: Values,
    *,
    energy: float = 1e-8,
    forces: float = 1e-8,
    virial: float | None = 1e-7,
) -> None:
    """Energy relative, forces in eV/Å, virial in eV."""
    assert abs(got.energy - expected.energy) <= energy * max(1.0, abs(expected.energy))
    assert np.abs(got.forces - expected.forces).max(initial=0.0) <= forces
    if virial is not None:
        np.testing.assert_allclose(got.virial, expected.virial, atol=virial, rtol=0)
