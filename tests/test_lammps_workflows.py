"""Commands of LAMMPS that public reports name as trouble with pair styles of learned potentials.

Whatever they did to the box and the atoms, the energy, forces and virial at the end are the model's.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.backends import needs_lammps
from support.lammps import Run, reference, run_lmp, script_of, six, write_student
from support.systems import System
from test_lammps_correct import crystal

pytestmark = needs_lammps

START = "timestep 0.0005\nvelocity all create 300 4928 loop geom\n"
#: name -> commands before the last ``run 0``
COMMANDS = {
    # deepmodeling/deepmd-kit#2993, lammps/lammps#3506: strain until the box flips
    "deform": "change_box all triclinic\n" + START + "fix 1 all nve\n"
    "fix 2 all deform 1 xy final 5.5 units box remap x flip yes\nrun 20 post no\nunfix 2",
    "deform no flip": "change_box all triclinic\n" + START + "fix 1 all nve\n"
    "fix 2 all deform 1 xy final 6.0 units box remap x flip no\nrun 20 post no\nunfix 2",
    # deepmodeling/dpgen#631, pyiron/pyiron#1016
    "box/relax": "change_box all triclinic\nfix 1 all box/relax tri 0.0\nminimize 0 0 8 40\nunfix 1",
    "respa": START + "fix 1 all nve\nrun_style respa 2 2 pair 2\nrun 10 post no\nrun_style verlet",
    "respa levels": START + "fix 1 all nve\nrun_style respa 2 2 pair 1\nrun 10 post no\n"
    "run_style verlet",
    "replicate": "replicate 2 1 2",
    "reset": "group gone id 3 8\ndelete_atoms group gone compress no\nreset_atoms id",
    "change_box": "change_box all x scale 1.05 y volume remap triclinic xy final 1.2 remap",
    "restart": START + "fix 1 all nve\nrun 4 post no\nwrite_restart w.restart\nclear\n"
    "read_restart w.restart\npair_style painn precision double tabulate off\n"
    "pair_coeff * * {model} Si O\nrun 3 post no",
    "grid": "comm_modify cutoff 7.0\nbalance 1.1 shift xyz 5 1.1",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("soft") / "soft.pt"
    return path, write_student(path, num_interactions=2, zbl=True, seed=3)


LAST = """
run 0
compute last all pressure NULL pair
thermo_style custom step pe c_last[1] c_last[2] c_last[3] c_last[4] c_last[5] c_last[6]
run 0 post no
write_dump all custom last.dump id type x y z fx fy fz modify sort id format float %.17g
print "LAST $(pe:%.17g) $(lx:%.17g) $(ly:%.17g) $(lz:%.17g) $(xy:%.17g) $(xz:%.17g) $(yz:%.17g) &
$(xlo:%.17g) $(ylo:%.17g) $(zlo:%.17g) $(c_last[1]:%.17g) $(c_last[2]:%.17g) $(c_last[3]:%.17g) &
$(c_last[4]:%.17g) $(c_last[5]:%.17g) $(c_last[6]:%.17g)"
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_end_is_the_models(model, tmp_path, name, ranks):
    path, student = model
    run = Run("w", crystal(), path, centroid=False)
    head = script_of(run, tmp_path).split("compute ea all")[0]
    done = run_lmp(tmp_path, head + COMMANDS[name].replace("{model}", str(path)) + LAST, ranks)
    assert done.returncode == 0, done.output[-2500:]
    (line,) = re.findall(r"^LAST (.*)$", done.output, re.MULTILINE)
    energy, lx, ly, lz, xy, xz, yz, *rest = [float(v) for v in line.split()]
    cell = np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])
    if name == "deform":
        assert xy < 0.0  # it did flip
    table = np.loadtxt(tmp_path / "last.dump", skiprows=9)
    system = System(np.where(table[:, 1] == 1, 14, 8), table[:, 2:5] - np.array(rest[:3]), cell)
    want = reference(student, system)
    assert abs(energy - want.energy) < 1e-7
    np.testing.assert_allclose(table[:, 5:8], want.forces, atol=1e-7)
    virial = np.array(rest[3:]) * lx * ly * lz / 1.6021765e6
    np.testing.assert_allclose(virial, six(want.virial), atol=1e-6)


def test_neb_over_partitions(model, tmp_path):
    """mir-group/pair_nequip_allegro#33: two replicas, each with a rank and a model of its own."""
    path, _ = model
    system = crystal()
    run = Run("n", system, path, centroid=False)
    head = script_of(run, tmp_path).split("compute ea all")[0].replace("\nclear\n", "\n")
    moved = system.positions[0] + np.array([0.2, 0.1, 0.0])
    (tmp_path / "final.txt").write_text("1\n1 " + " ".join(f"{v:.10f}" for v in moved) + "\n")
    head = head.replace("read_data", "atom_modify map array\nread_data")
    done = run_lmp(
        tmp_path,
        head + "timestep 0.001\nthermo 5\nmin_style quickmin\nfix 1 all neb 1.0\n"
        "neb 0.0 0.01 5 5 5 final final.txt\n",
        2, "-partition", "2x1", "-plog", "none", "-pscreen", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.output[-2500:]
    row = next(x for x in done.output.splitlines() if re.match(r"^\s*0\s", x)).split()
    assert all(np.isfinite(float(v)) for v in row)
