"""`make test` (MLFF_NO_SKIPS=1) accepts only skips for what a machine can truly lack."""

import importlib.util
import os
import re
import sys
from types import SimpleNamespace

import pytest
from support.cuda_module import gpu_engine, on_the_card, openmm_on_gpu

#: The whole reason of a skip, not a part of it.
ALLOWED = [
    r"there is a GPU",
    r"built without the GPU engine: make cuda",
    r"no nvcc with nvdisasm: make cuda",
    r"torch that was built for a GPU has no autograd in a forked child",
    r"no \.\./shared/data",
    r"mounting a small disk needs root; RLIMIT_FSIZE is tested above",
    r"no network for lammps==.*",
]
if os.environ.get("MLFF_EXPECT_OPENMM_TORCH"):  # make openmm-torch, with releases of its own
    ALLOWED.append(r"link atoms came with OpenMM-ML 1\.8")
else:
    ALLOWED.append(r"openmm-torch is not installed: make openmm-torch")
if sys.version_info >= (3, 12):  # there are no wheels
    ALLOWED.append(r"could not import 'orb_models': No module named 'orb_models'")
if on_the_card():
    ALLOWED.append(r"asks the emulation: .*")
_unexpected: list[str] = []
#: Files that take minutes.
LONG = {
    f"test_{name}.py"
    for name in (
        "cuda_watched",
        "lammps_build",
        "limits",
        "cuda_messages",
        "rounds",
        "contract",
        "processes",
    )
}


@pytest.fixture
def gpu():
    """The GPU engine: under emulation, or on a card with MLFF_TEST_GPU=1."""
    module = gpu_engine()
    yield module
    module.set_schedule(0)
    module.set_device_count(1)
    module.set_memory_limit(0)


@pytest.fixture
def with_gpu(gpu, monkeypatch):
    """``gpu``, and the installed engine is one that was compiled with CUDA."""
    from mlff_distiller.ops import engine

    if not on_the_card():
        emulated = ("GpuPotential", "gpu_count", "gpu_name", "gpu_products")
        parts = {name: getattr(engine._native, name) for name in ("Potential", "available_isas")}
        parts |= {name: getattr(gpu, name) for name in emulated}
        monkeypatch.setattr(engine, "_native", SimpleNamespace(**parts))
    return gpu


@pytest.fixture(autouse=openmm_on_gpu())
def openmm_computes_there(with_gpu, monkeypatch):
    """painn_force of the python back end takes the GPU, unless the test names a device."""
    if importlib.util.find_spec("openmm") is None:
        return
    from mlff_distiller.openmm import force

    resolve = force._resolve

    def on_gpu(backend, device):
        if (backend, device) == ("python", "auto"):
            return "python", "cuda"
        return resolve(backend, device)

    monkeypatch.setattr(force, "_resolve", on_gpu)


@pytest.fixture(params=["lammps", "openmm", "ase"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine of ``md`` in turn; one that is not installed is a skip."""
    if request.param != "ase":
        pytest.importorskip(request.param)
    return request.param


def pytest_collection_modifyitems(items):
    """What takes minutes comes first, so that no process ends long after the others."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _note(report)


def pytest_collectreport(report):
    if report.skipped:
        _note(report)


def _note(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if os.environ.get("MLFF_NO_SKIPS") and not re.fullmatch("|".join(ALLOWED), reason):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):  # one of several processes, which says it on
        session.config.workeroutput["unexpected"] = _unexpected
    elif _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """With pytest-xdist: whole files that a process skipped are told by nothing else."""
    told = getattr(node, "workeroutput", {}).get("unexpected", ())
    _unexpected.extend(line for line in told if line not in _unexpected)


def pytest_terminal_summary(terminalreporter):
    if _unexpected:
        terminalreporter.section("skipped, though `make test` installs what is needed", sep="!")
        for line in _unexpected:
            terminalreporter.line(line)
