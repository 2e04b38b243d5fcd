"""Every script of examples/ runs at small size and ends with its table or picture."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import clean_environment
from support.students import make_student

from mlff_distiller.export import export_student
from mlff_distiller.potential import native_is_built

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(make_student([1, 6, 7, 8, 14], scale=0.2), path)
    return path


def run_example(name, folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        env=clean_environment(OPENMM_CPU_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    return done.stdout


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def table_of(output, columns):
    """Rows of ``columns`` numbers."""
    number = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    pattern = rf"^\s*{number}(?:\s+{number}){{{columns - 1}}}\s*$"
    return [[float(v) for v in line.split()] for line in re.findall(pattern, output, re.MULTILINE)]


def test_ase_nve(model, tmp_path):
    output = run_example("ase/nve.py", tmp_path, model, "--steps", 40)
    assert len(table_of(output, 4)) >= 8
    assert is_picture(tmp_path / "nve.png")
    assert abs(float(re.search(r"drift (\S+) eV", output).group(1))) < 0.1


def test_ase_relax_and_equation_of_state(model, tmp_path):
    output = run_example("ase/relax_eos.py", tmp_path, model, "--steps", 10)
    rows = table_of(output, 3)
    assert len(rows) == 9
    volumes, energies, pressures = zip(*rows, strict=True)
    # The pressure is -dE/dV: the middle of the table against a difference quotient.
    slope = -(energies[5] - energies[3]) / (volumes[5] - volumes[3]) * 160.2176634
    assert pressures[4] == pytest.approx(slope, abs=0.05 * max(1.0, abs(slope)))
    assert is_picture(tmp_path / "eos.png")


def test_ase_multiple_time_steps(model, tmp_path):
    output = run_example("ase/multiple_time_steps.py", tmp_path, model, "--steps", 24)
    rows = table_of(output, 4)
    assert [row[0] for row in rows] == [1, 2, 4, 6]
    assert [row[2] for row in rows] == [25, 13, 7, 5]
    assert is_picture(tmp_path / "multiple_time_steps.png")


openmm_too = pytest.mark.skipif(not native_is_built(), reason="needs the engine to be quick")


@openmm_too
def test_openmm_molecule(model, tmp_path):
    pytest.importorskip("openmm")
    output = run_example("openmm/molecule.py", tmp_path, model, "--steps", 100)
    rows = table_of(output, 5)
    assert len(rows) >= 9
    assert all(-180 <= row[3] <= 180 for row in rows)
    assert is_picture(tmp_path / "molecule.png")


@openmm_too
def test_openmm_time_step(model, tmp_path):
    pytest.importorskip("openmm")
    output = run_example("openmm/time_step.py", tmp_path, model, "--steps", 50)
    assert output.count("natural") == 2
    assert len(table_of(output, 4)) == 2
    assert is_picture(tmp_path / "time_step.png")


@openmm_too
def test_openmm_mixed(model, tmp_path):
    pytest.importorskip("openmmml")
    output = run_example("openmm/mixed.py", tmp_path, model, "--steps", 20, "--padding", 0.5)
    found = re.search(r"(\d+) atoms from the student, (\d+) from TIP3P, (\d+) molecules", output)
    solute, water, molecules = map(int, found.groups())
    assert solute == 22
    assert molecules == 1 + water // 3
    assert len(table_of(output, 4)) == 10
    assert is_picture(tmp_path / "mixed.png")


@openmm_too
def test_openmm_multiple_time_steps(model, tmp_path):
    pytest.importorskip("openmm")
    output = run_example(
        "openmm/multiple_time_steps.py",
        tmp_path,
        model,
        "--teacher",
        "emt",
        "--steps",
        40,
        "--every",
        2,
    )
    assert len(table_of(output, 3)) == 20
    assert re.search(r"^20 calls of emt, ", output, re.MULTILINE)


@openmm_too
def test_openmm_npt_water(model, tmp_path):
    pytest.importorskip("openmm")
    output = run_example("openmm/npt_water.py", tmp_path, model, "--steps", 40, "--box", 1.2)
    rows = table_of(output, 3)
    assert len(rows) == 20
    assert 0.5 < rows[0][2] < 1.5
    molecules, moved = map(int, re.search(r"(\d+) molecules, (\d+) for", output).groups())
    assert molecules == moved
    assert is_picture(tmp_path / "density.png")
