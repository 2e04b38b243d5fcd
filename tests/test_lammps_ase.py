"""LAMMPS from Python and ASE's two LAMMPS calculators, as lammps_plugin/README.md has them.

All run in a child that has not inherited the library path which ``import lammps`` sets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, diamond111, molecule
from ase.io import read
from support.backends import needs_lammps
from support.lammps import write_student
from support.processes import clean_environment

from mlff_distiller import StudentCalculator

pytestmark = needs_lammps


def run_python(folder: Path, program: str, **environment: str) -> str:
    """Standard output of ``program`` in a fresh Python."""
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=180,
        env=clean_environment(**environment), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_in_a_fresh_shell(tmp_path):
    assert "libmpi" not in clean_environment().get("LD_LIBRARY_PATH", "")
    write_student(tmp_path / "student.pt")
    output = run_python(
        tmp_path,
        'from lammps import lammps\nlmp = lammps(cmdargs=["-screen", "none", "-log", "none"])\n'
        'assert lmp.has_style("pair", "painn")\n'
        'lmp.commands_string("""units metal\nregion b block 0 9 0 9 0 9\ncreate_box 1 b\n'
        "create_atoms 1 single 1 1 1\ncreate_atoms 1 single 3 1 1\nmass 1 28\n"
        'pair_style painn\npair_coeff * * student.pt Si\nrun 0""")\n'
        'print(lmp.get_thermo("pe"))\n',
    )
    assert np.isfinite(float(output))


def structures() -> dict[str, Atoms]:
    crystal = bulk("Si", cubic=True) * (2, 1, 1)
    crystal.numbers[::3] = 8
    crystal.rattle(0.08, seed=1)
    crystal.set_cell(crystal.cell.array @ [[1, 0.1, 0], [0.05, 1, 0.1], [0, 0.02, 1]], True)
    slab = diamond111("Si", (2, 2, 3), a=5.43, vacuum=6.0)
    slab.pbc = (True, True, False)
    slab.rattle(0.05, seed=2)
    water = molecule("H2O")
    water.numbers[:] = [8, 14, 14]
    water.positions *= 1.7
    water.center(vacuum=6.0)
    return {"crystal": crystal, "slab": slab, "molecule": water}


COMMON = """
import json, sys
from ase.io import read
atoms = read("{name}.xyz")
{calculator}
frames = []
for k in range(2):
    stress = atoms.get_stress().tolist() if all(atoms.pbc) else None
    frames.append((atoms.get_potential_energy(), atoms.get_forces().tolist(), stress))
    atoms.positions += 0.01
    atoms.rattle(0.05, seed=8)
    if all(atoms.pbc):
        atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
print("RESULT", json.dumps(frames))
"""
LIB = """
from ase.calculators.lammpslib import LAMMPSlib
atoms.calc = LAMMPSlib(
    lmpcmds=["pair_style painn precision double", "pair_coeff * * student.pt O Si"],
    atom_types={"O": 1, "Si": 2},
    atom_type_masses={"O": 15.999, "Si": 28.085},
    log_file="lammps.log",
    keep_alive=True,
)
"""
RUN = """
import os
from ase.calculators.lammpsrun import LAMMPS
os.environ["ASE_LAMMPSRUN_COMMAND"] = os.path.join(os.path.dirname(sys.executable), "lmp")
atoms.calc = LAMMPS(
    pair_style="painn precision double",
    pair_coeff=["* * student.pt O Si"],
    specorder=["O", "Si"],
    boundary=" ".join("p" if p else "f" for p in atoms.pbc),
)
"""


@pytest.mark.parametrize("calculator", [LIB, RUN], ids=["lammpslib", "lammpsrun"])
@pytest.mark.parametrize("name", ["crystal", "slab", "molecule"])
def test_calculators_of_ase(tmp_path, name, calculator):
    """Twice: the second time atoms moved and the cell grew."""
    write_student(tmp_path / "student.pt")
    atoms = structures()[name]
    atoms.write(tmp_path / f"{name}.xyz")
    output = run_python(tmp_path, COMMON.format(name=name, calculator=calculator))
    line = next(x for x in output.splitlines() if x.startswith("RESULT "))
    atoms = read(tmp_path / f"{name}.xyz")
    atoms.calc = StudentCalculator(tmp_path / "student.pt", dtype="float64")
    for energy, forces, stress in json.loads(line.removeprefix("RESULT ")):
        assert abs(energy - atoms.get_potential_energy()) < 1e-8
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7)
        if stress is not None:
            np.testing.assert_allclose(stress, atoms.get_stress(), atol=1e-8)
        atoms.positions += 0.01
        atoms.rattle(0.05, seed=8)
        if all(atoms.pbc):
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
