"""Matrix products on a GPU: our kernel, cuBLAS, and which of its libraries is taken."""

import os
import pickle
import re
import subprocess
import warnings

import numpy as np
import pytest
from ase import Atoms
from support.cuda_models import compute, cpu, export_models
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
from support.systems import SYSTEMS
from typer.testing import CliRunner

from mlff_distiller import cuda_libraries
from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.cli import app
from mlff_distiller.constants import MATHS
from mlff_distiller.errors import InputError
from mlff_distiller.ops.engine import NativePotential


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return export_models(tmp_path_factory.mktemp("models"))


def rounded(x, bits):
    """To nearest, ties to even, of float32 numbers with ``bits`` fewer bits of fraction."""
    i = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    i = (i + (1 << (bits - 1)) - 1 + ((i >> bits) & 1)) >> bits << bits
    return i.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("cublas", [False, True], ids=["own", "cublas"])
@pytest.mark.parametrize("shape", [(1, 16, 32), (65, 130, 40), (200, 64, 256), (0, 32, 32)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(gpu, shape, dtype, cublas):
    m, n, k = shape
    rng = np.random.default_rng(0)
    a = rng.normal(size=(m, k + 3)).astype(dtype)  # a leading dimension of its own
    b = rng.normal(size=(k, n)).astype(dtype)
    c = rng.normal(size=(m, n + 5)).astype(dtype)
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    for accumulate in (False, True):
        got = gpu.multiply(a, k, b, c, accumulate, "float32", cublas)
        want = c.copy()
        want[:, :n] = a[:, :k] @ b + (c[:, :n] if accumulate else 0)
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_mixed_precision_rounds_the_factors(gpu):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(33, 48)).astype(np.float32)
    b = rng.normal(size=(48, 32)).astype(np.float32)
    got = gpu.multiply(a, 48, b, np.zeros((33, 32), np.float32), False, "tf32", False)
    want = rounded(a, 13).astype(float) @ rounded(b, 13).astype(float)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(got - a.astype(float) @ b).max() > 1e-3


def test_mixed_precision_of_a_whole_step(gpu, models):
    system = SYSTEMS["skewed"]()
    want = cpu(models["default"], system)
    error = {}
    for math in MATHS:
        got = compute(gpu.GpuPotential(models["default"], math=math), system)
        error[math] = np.abs(got["forces"] - want["forces"]).max()
    scale = np.abs(want["forces"]).max()
    assert error["float32"] < 1e-5 * scale < error["half"] < 1e-3 * scale
    assert 1e-5 * scale < error["tf32"] < 1e-2 * scale


# --- which cuBLAS ---------------------------------------------------------------------------------

FUNCTIONS = ("cublasCreate_v2", "cublasDestroy_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2",
             "cublasGemmEx")  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Something with the functions of cuBLAS 13.4.2, and something without all of them."""
    folder = tmp_path_factory.mktemp("cublas")
    source = "int cublasGetProperty(int part, int* value) { *value = part == 0 ? 13 : 6 - part * 2; return 0; }\n"
    for name, kept in (("libcublas.so.13", FUNCTIONS), ("broken.so", FUNCTIONS[:-1])):
        (folder / "x.c").write_text(
            source + "".join(f"int {f}(void) {{ return 1; }}\n" for f in kept)
        )
        command = ["cc", "-shared", "-fPIC", "-o", name, "x.c"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "libcublas.so.13"


def test_a_library_is_opened_and_named(gpu, library, tmp_path):
    assert gpu.open_cublas([str(library)]) == f"cuBLAS 13.4.2 ({library})"
    wanted = ["libcublas-that-is-nowhere.so", str(library.with_name("broken.so")), str(library)]
    assert gpu.open_cublas(wanted).startswith("cuBLAS 13.4.2")
    with pytest.raises(InputError, match="nowhere"):
        gpu.open_cublas(wanted[:1])
    with pytest.raises(InputError, match=r"broken\.so has not all functions of cuBLAS"):
        gpu.open_cublas(wanted[:2])


def test_where_it_is_looked_for(gpu, tmp_path):
    """The loader's path, wheels beside us, the toolkit; or what MLFF_CUBLAS says and nothing else."""
    site, toolkit = tmp_path / "site-packages", tmp_path / "cuda"
    wheels = [site / "nvidia" / part / "lib" for part in ("cu13", "cublas")]
    for folder in (*wheels, toolkit / "lib64", site / "mlff_distiller" / "lib" / "lammps"):
        folder.mkdir(parents=True)
    plugin = str(site / "mlff_distiller" / "lib" / "lammps" / "painnplugin.so")
    found = gpu.cublas_candidates("", plugin, ["", str(toolkit), str(tmp_path / "none")])
    names = ["libcublas.so.13", "libcublas.so.12"]
    folders = [str(folder) for folder in (*wheels, toolkit / "lib64")]
    assert found == names + [f"{folder}/{name}" for folder in folders for name in names]
    module = str(site / "mlff_distiller" / "_native.so")
    assert gpu.cublas_candidates("", module, [str(toolkit)]) == found
    wish = f"{wheels[1]}:/somewhere/libmine.so"
    wanted = [f"{wheels[1]}/{name}" for name in names] + ["/somewhere/libmine.so"]
    assert gpu.cublas_candidates(wish, plugin, [str(toolkit)]) == wanted


def test_wheels_are_found_from_python(tmp_path, monkeypatch):
    folders = [tmp_path / "nvidia" / part / "lib" for part in ("cu13", "cublas", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / f"lib{folder.parent.name}.so.1").touch()
    for folder in folders[:2]:
        (folder / "libcublas.so.12").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cuda_libraries.cublas_folders()[:2] == folders[:2]
    monkeypatch.delenv("MLFF_CUBLAS", raising=False)
    cuda_libraries.name_cublas()
    assert os.environ["MLFF_CUBLAS"].startswith(f"{folders[0]}:{folders[1]}")
    monkeypatch.setenv("MLFF_CUBLAS", "off")
    cuda_libraries.name_cublas()
    assert os.environ["MLFF_CUBLAS"] == "off"


def test_lammps_is_told(tmp_path, monkeypatch):
    """``lmp`` calls plugin_directory() before it starts the program, with no torch in the process."""
    from mlff_distiller.lammps import plugin_directory

    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.13").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MLFF_CUBLAS", raising=False)
    plugin_directory()
    assert os.environ["MLFF_CUBLAS"].split(":")[0] == str(folder)
    broken = lambda name: (_ for _ in ()).throw(ValueError("nvidia.__spec__ is None"))  # noqa: E731
    monkeypatch.setattr(cuda_libraries.importlib.util, "find_spec", broken)
    monkeypatch.delenv("MLFF_CUBLAS")
    plugin_directory()
    assert "MLFF_CUBLAS" not in os.environ


def test_a_handle_is_of_its_own_device(gpu, models):
    """... in its constructor and destructor, and the caller's device is current after every call."""
    gpu.set_device_count(2)
    numbers, positions, _, _ = SYSTEMS["molecule"]()
    found = gpu.devices_of_a_potential(models["one"], 1, numbers.astype(np.int64), positions)
    assert found["error"] == ""
    assert found["made"] == found["destroyed"] == [1]
    assert set(found["after"]) == {0}


def test_no_handle_is_left_behind_without_memory(gpu, models):
    numbers, positions, _, _ = SYSTEMS["molecule"]()
    gpu.set_memory_limit(gpu.memory_in_use() + (8 << 20))  # the workspace alone takes 32 MB
    found = gpu.devices_of_a_potential(models["one"], 0, numbers.astype(np.int64), positions)
    assert "out of memory" in found["error"]
    assert len(found["made"]) == len(found["destroyed"])


def test_what_is_assigned_is_there_for_every_stream(gpu):
    for seed in range(6):
        gpu.set_schedule(seed)
        assert gpu.assigned_before_a_kernel()


# --- math -----------------------------------------------------------------------------------------


def test_math_of_the_ase_calculator(with_gpu, models):
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    forces = {}
    for math in ("float32", "half", "tf32"):
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        atoms.calc = StudentCalculator(models["zbl"], "cuda", "float32", math=math)
        forces[math] = atoms.get_forces()
        assert atoms.calc.todict()["math"] == math
        copied = pickle.loads(pickle.dumps(atoms.calc))
        assert copied.math == math
    for math in ("half", "tf32"):
        deviation = np.abs(forces[math] - forces["float32"]).max()
        assert 1e-7 < deviation / np.abs(forces["float32"]).max() < 1e-2


def test_math_of_openmm(with_gpu, models):
    pytest.importorskip("openmm")
    from mlff_distiller.openmm import painn_force

    numbers, positions, _, _ = SYSTEMS["molecule"]()
    atoms = Atoms(numbers, positions)
    topology = topology_of(atoms)
    forces = {}
    for math in ("float32", "tf32"):
        force = painn_force(topology, models["zbl"], backend="python", device="cuda", math=math)
        context = openmm_context(openmm_system(topology, force), positions)
        forces[math] = openmm_results(context)[1]
    deviation = np.abs(forces["tf32"] - forces["float32"]).max()
    assert 1e-7 < deviation / np.abs(forces["float32"]).max() < 1e-2
    with pytest.raises(InputError, match=r"math='tf32' is for the native engine on a GPU"):
        painn_force(topology, models["zbl"], math="tf32")


@pytest.mark.parametrize("backend", ["auto", "native", "portable"])
def test_math_without_a_gpu_is_refused(models, backend):
    with pytest.raises(InputError, match=r"math='tf32' is for the native engine on a GPU"):
        StudentCalculator(models["one"], backend=backend, math="tf32")
    with pytest.raises(InputError, match="math must be float32, half or tf32, got 'full'"):
        StudentCalculator(models["one"], backend=backend, math="full")


def test_rounding_without_cublas_is_a_warning(with_gpu, models):
    if with_gpu.GpuPotential(models["one"]).cublas:
        pytest.skip("asks the emulation: a machine without cuBLAS")
    with pytest.warns(UserWarning, match=r"math='tf32' needs cuBLAS to be faster"):
        potential = NativePotential(models["one"], device="cuda", math="tf32")
    assert potential.products == "own kernel, without cuBLAS"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for math in ("float32", "half"):
            NativePotential(models["one"], device="cuda", math=math)


def test_rounding_of_double_precision_is_refused(with_gpu, models):
    """It would do nothing: in ASE, in OpenMM, of the bare engine, where the file says float64."""
    said = "math half and tf32 round single precision, and this is double"
    for math in MATHS[1:]:
        with pytest.raises(InputError, match=said):
            with_gpu.GpuPotential(models["one"], dtype="float64", math=math)
        with pytest.raises(InputError, match=said):
            NativePotential(models["one"], device="cuda", math=math, dtype="float64")
        with pytest.raises(InputError, match=said):
            StudentCalculator(models["one"], "cuda", "float64", math=math)
        with pytest.raises(InputError, match=said):
            StudentCalculator(models["one"], "cuda", math=math)  # of float64
    pytest.importorskip("openmm")
    from mlff_distiller.openmm import painn_force

    numbers, positions, _, _ = SYSTEMS["molecule"]()
    topology = topology_of(Atoms(numbers, positions))
    options = {"backend": "python", "device": "cuda", "math": "tf32"}
    with pytest.raises(InputError, match=said):
        painn_force(topology, models["one"], precision="double", **options)


def test_info_names_the_gpu(with_gpu, models):
    done = CliRunner().invoke(app, ["info", models["one"]])
    assert done.exit_code == 0, done.output
    name = re.escape(with_gpu.gpu_name(0))
    assert re.search(rf"GPU +{name}; products by (cuBLAS|own kernel)", done.output)
    with_gpu.set_device_count(0)
    done = CliRunner().invoke(app, ["info", models["one"]])
    assert "finds no GPU here" in done.output
