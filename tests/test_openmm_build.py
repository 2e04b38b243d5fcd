"""openmm_plugin by CMake alone, without pip, and its use where there is no mlff_distiller."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")

from support.arbiter import direct  # noqa: E402
from support.backends import needs_openmm_plugin  # noqa: E402
from support.openmm import EV, openmm_context, openmm_system, topology_of  # noqa: E402
from support.processes import clean_environment  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import ethanol  # noqa: E402

import mlff_distiller.openmm.native as native  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import painn_force  # noqa: E402

PLUGIN = Path(__file__).parents[1] / "openmm_plugin"

_RUN = """
import sys
import numpy, openmm
if sys.argv[1] != "found by OpenMM":
    openmm.Platform.loadPluginLibrary(sys.argv[1])
system = openmm.XmlSerializer.deserialize(open(sys.argv[2]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.001))
context.setPositions(numpy.load(sys.argv[3]))
print(context.getState(energy=True).getPotentialEnergy()._value)
assert "mlff_distiller" not in sys.modules
"""


def cmake():
    found = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
    if not Path(found).exists():
        pytest.skip("no cmake")
    return found


def energy_of(library, folder, **environment):
    """eV, in a process that knows nothing of mlff_distiller."""
    run = subprocess.run(
        [sys.executable, "-c", _RUN, library, folder / "system.xml", folder / "positions.npy"],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout.split()[-1]) / EV


@needs_openmm_plugin
@pytest.mark.slow
def test_stand_alone_build(tmp_path, monkeypatch):
    build = tmp_path / "build"
    configure = [cmake(), "-S", PLUGIN, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    running = openmm.Platform.getOpenMMVersion()
    assert f"PainnOpenMM for OpenMM {running} (" in done.stdout
    done = subprocess.run(
        [cmake(), "--build", build, "-j", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    library = build / "libPainnOpenMM.so"
    assert native.built_for(library) == running

    model, atoms = tmp_path / "student.pt", ethanol()
    student = make_student([1, 6, 8])
    export_student(student, model)
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend="native", precision="double")
    system = openmm_system(topology, force)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    np.save(tmp_path / "positions.npy", atoms.positions / 10)
    expected = direct(student, atoms)[0]
    assert energy_of(library, tmp_path) == pytest.approx(expected, rel=1e-9)

    # Installed, OpenMM finds it by itself.
    prefix = tmp_path / "openmm"
    subprocess.run(
        [cmake(), "--install", build, "--prefix", prefix], capture_output=True, check=True
    )
    plugins = str(prefix / "lib" / "plugins")
    got = energy_of("found by OpenMM", tmp_path, OPENMM_PLUGIN_DIR=plugins)
    assert got == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(native, "native_file", lambda name: None)
    assert native.find_plugin() is None
    installed = f"{plugins}/libPainnOpenMM.so"
    monkeypatch.setattr(openmm, "pluginLoadedLibNames", ("other.so", installed))
    assert native.find_plugin() == Path(installed)
    assert native.plugin_is_built()

    # A second copy in a process that has loaded that of the package is harmless.
    openmm.Platform.loadPluginLibrary(str(library))
    again = openmm.XmlSerializer.deserialize((tmp_path / "system.xml").read_text())
    for one in (system, again):
        state = openmm_context(one, atoms.positions).getState(energy=True)
        assert state.getPotentialEnergy()._value / EV == pytest.approx(expected, rel=1e-9)
    text = openmm.XmlSerializer.serialize(again)
    assert text == openmm.XmlSerializer.serialize(system)


def test_stand_alone_build_without_openmm(tmp_path):
    done = subprocess.run(
        [cmake(), "-S", PLUGIN, "-B", tmp_path, f"-DMLFF_OPENMM_ROOT={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert (
        f"expected OpenMM's include/OpenMM.h and lib/libOpenMM.so, found none in '{tmp_path}'"
        in (message)
    )
    assert "-DMLFF_OPENMM_ROOT=" in message
