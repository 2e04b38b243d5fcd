"""fix painn/correct in input scripts of one's own: what it prints, refuses and survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.backends import needs_lammps
from support.lammps import run_lmp
from support.multistep import corrected, crystal, lennard_jones, write_model
from support.multistep_lammps import end_of, run_script, script, serving, thermo_rows

from mlff_distiller.data import Structure
from mlff_distiller.dynamics import run_md
from mlff_distiller.dynamics.lammps_files import Box
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.teachers import CalculatorTeacher
from mlff_distiller.units import EV_PER_ANGSTROM3_IN_GPA

pytestmark = needs_lammps
BAR = 1e-4 / EV_PER_ANGSTROM3_IN_GPA  # eV/Å³


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("fix") / "si.pt")


# -- ranks ------------------------------------------------------------------------------------------


def test_any_number_of_ranks(model) -> None:
    start = crystal((2, 2, 2))
    runs = [
        run_md("lammps", model, start, corrected(steps=40, interval=8, ranks=ranks))
        for ranks in (1, 2, 3)
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(other.total_energy, runs[0].total_energy, atol=1e-8)
        for one, two in zip(runs[0].frames, other.frames, strict=True):
            np.testing.assert_allclose(one.momenta, two.momenta, atol=1e-8)


def test_a_rank_without_atoms(model, tmp_path) -> None:
    start = crystal()
    ends = []
    for ranks, head in ((4, "processors 4 1 1"), (1, "")):
        done = run_script(tmp_path, model, "FIX\nfix m all nve\nrun 8", ranks, head=head)
        assert done.returncode == 0, done.output
        ends.append(end_of(tmp_path))
    np.testing.assert_allclose(*ends, atol=1e-8)
    assert Box.around(start).is_turned


# -- what it says -----------------------------------------------------------------------------------


def test_energies_pressures_and_forces_are_those_of_the_teacher(model, tmp_path) -> None:
    lines = """
FIX
fix m all nve
compute s all pressure NULL pair
thermo_style custom step pe press f_c f_c[*] c_s[*] vol ke
thermo_modify format float %20.14g
dump d all custom 4 run.dump id xu yu zu f_c[*] fx fy fz
dump_modify d sort id format float %.15g
run 8
"""
    done = run_script(tmp_path, model, lines, 2)
    assert done.returncode == 0, done.output
    assert "fix painn/correct: Lennard-Jones minus si.pt" in done.output
    assert "WARNING" not in done.output
    rows = [row for row in thermo_rows(done.output) if len(row) == 18]
    assert [int(row[0]) for row in rows] == [0, 4, 8]
    start = crystal()
    box = Box.around(start)
    blocks = (tmp_path / "run.dump").read_text().split("ITEM: TIMESTEP\n")[1:]
    for row, block in zip(rows, blocks, strict=True):
        table = np.loadtxt(block.splitlines()[8:])[:, 1:]
        frame = Structure(start.atomic_numbers, table[:, :3], box.cell, [True] * 3)
        teacher = CalculatorTeacher("", lennard_jones()).compute(frame)
        student = ExportedModel(model, dtype="float64").compute(frame)
        assert row[1] == pytest.approx(teacher.energy, abs=1e-7)
        assert row[3] == pytest.approx(teacher.energy - student.energy, abs=1e-7)
        volume, kinetic = row[16], row[17]
        assert teacher.stress is not None
        pressure = (-np.trace(teacher.stress) / 3 + 2 * kinetic / (3 * volume)) / BAR
        assert row[2] == pytest.approx(pressure, rel=1e-5)
        added = np.array(row[4:10]) + np.array(row[10:16])
        expected = -teacher.stress[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] / BAR
        np.testing.assert_allclose(added, expected, rtol=1e-6, atol=0.1)
        np.testing.assert_allclose(table[:, 3:6], teacher.forces - student.forces, atol=1e-8)
        # What acts is the impulse.
        np.testing.assert_allclose(table[:, 6:], student.forces + 4 * table[:, 3:6], atol=1e-7)


def test_output_between_outer_steps_warns(model, tmp_path) -> None:
    done = run_script(tmp_path, model, "thermo 2\nFIX\nfix m all nve\nrun 8")
    assert "thermo 2 prints steps between two outer ones" in done.output
    done = run_script(tmp_path, model, "FIX\nfix m all nve\nrun 6")
    assert "the run ends at step 6, between two outer steps" in done.output


# -- runs after runs --------------------------------------------------------------------------------

WHOLE = "FIX\nfix m all nve\nrun 16"
PARTS = {
    "run after run, cut within an outer step": "FIX\nfix m all nve\nrun 6\nrun 2\nrun 8",
    "without setup": "FIX\nfix m all nve\nrun 6\nrun 10 pre no",
    "run every": 'FIX\nfix m all nve\nrun 16 every 3 "print hello"',
    "another start of the count": "FIX\nfix m all nve\nrun 8\nreset_timestep 100\nrun 8",
    "run 0": "FIX\nfix m all nve\nrun 0\nrun 16",
    "defined anew": "FIX\nfix m all nve\nrun 8\nunfix m\nunfix c\nFIX\nfix m all nve\nrun 8",
    "restart at an outer step": (
        "FIX\nfix m all nve\nrun 8\nwrite_restart r\nclear\nread_restart r\n"
        "pair_style painn precision double\npair_coeff * * MODEL Si\nFIX\nfix m all nve\nrun 8"
    ),
    "restart within an outer step": (
        "FIX\nfix m all nve\nrun 6\nwrite_restart r\nclear\nread_restart r\n"
        "pair_style painn precision double\npair_coeff * * MODEL Si\nFIX\nfix m all nve\nrun 10"
    ),
}


def test_runs_in_parts_are_one_run(model, tmp_path) -> None:
    done = run_script(tmp_path, model, WHOLE)
    assert done.returncode == 0, done.output
    whole = end_of(tmp_path)
    for name, lines in PARTS.items():
        done = run_script(tmp_path, model, lines.replace("MODEL", str(model)))
        assert done.returncode == 0, name + done.output
        np.testing.assert_allclose(end_of(tmp_path), whole, atol=1e-9, err_msg=name)


# -- what it refuses --------------------------------------------------------------------------------

REFUSED = {
    "FIX\nfix m all nve\nminimize 0 1e-4 10 10": "minimize before this fix is defined",
    "run_style respa 2 2\nFIX\nfix m all nve\nrun 8": "needs run_style verlet, got respa",
    "fix m all nve\nFIX\nrun 8": "must be defined before fix m (nve)",
    "fix h all setforce 0 0 0\nFIX\nfix m all nve\nrun 8": "must be defined before fix h (setforce)",
    "FIX\nfix m all nve\nfix p all press/berendsen iso 1 1 1\nrun 8": "use fix nph or npt",
    "FIX\nfix_modify c virial no\nfix m all nph iso 1 1 1\nrun 8": "leave 'fix_modify virial no' out",
    "reset_timestep 3\nFIX\nfix m all nve\nrun 8": "must begin at a multiple of 4 steps, got step 3",
    "FIX\nfix m all nve\nrun 6\ntimestep 0.002\nrun 8": "at multiples of 4 steps only, got step 6",
    "group g id 1\nfix c g painn/correct socket every 4": "the group must be all",
    "fix c all painn/correct socket every 0": "N >= 1 steps",
    "fix c all painn/correct socket": "expected 'fix ID all painn/correct SOCKET every N",
    "fix c all painn/correct socket evry 4": "unknown keyword 'evry'; known are every, timeout",
    "fix c all painn/correct socket every 4 timeout": "keyword 'timeout' lacks its value",
    "fix c all painn/correct socket every 4 timeout -1": "timeout must be >= 0 s",
    "fix c all painn/correct nobody every 4": "no server answers at nobody (No such file",
    "pair_style lj/cut 5\npair_coeff * * 0.1 2\nFIX\nfix m all nve\nrun 8": "needs one pair_style painn",
    "FIX\nfix m all nve\ndump d all custom 4 d id x y z\nrun 4\nrerun d dump x y z": "rerun is not available",
}


def test_refuses_with_one_line(model, tmp_path) -> None:
    for lines, message in REFUSED.items():
        done = run_script(tmp_path, model, lines)
        assert done.returncode != 0, lines
        assert message in done.error, f"{lines}\n{done.output[-1500:]}"


def test_refuses_on_all_ranks(model, tmp_path) -> None:
    for lines in ("fix c all painn/correct nobody every 4", "fix m all nve\nFIX\nrun 8"):
        done = run_script(tmp_path, model, lines, 3)
        assert done.returncode != 0
        assert done.output.count("ERROR") == 1, done.output


def test_another_student_in_the_server(model, tmp_path) -> None:
    other = write_model(tmp_path / "other.pt", scale=0.11)
    done = run_script(tmp_path, other, "FIX\nfix m all nve\nrun 8", 2)
    assert done.returncode == 0
    with serving(model, tmp_path / "socket"):
        done = run_lmp(
            tmp_path, script(tmp_path, other, "FIX\nfix m all nve\nrun 8"), 2, timeout=60
        )
    assert done.returncode != 0
    assert "start the server with the model of pair_coeff" in done.error


def test_a_type_without_an_element(model, tmp_path) -> None:
    text = script(tmp_path, model, "FIX\nfix m all nve\nrun 8")
    data = (tmp_path / "atoms.data").read_text().replace("1 atom types", "2 atom types")
    data = data.replace("Masses\n\n", "Masses\n\n2 1.0\n").replace("\n3 1 ", "\n3 2 ")
    (tmp_path / "atoms.data").write_text(data)
    with serving(model, tmp_path / "socket"):
        done = run_lmp(tmp_path, text.replace(f"{model} Si", f"{model} Si NULL"), timeout=60)
    assert done.returncode != 0
    assert "atom 3 is of a type that pair_coeff of painn leaves out" in done.error
