"""The torch backend: both forces of openmm-torch, what they are given, and which of it fits.

A stand-in for PythonTorchForce, and the TorchScript that TorchForce would call, run everywhere;
TorchForce itself in `make openmm-torch`, there in the other files too.
"""

import email.message
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

openmm = pytest.importorskip("openmm")

from support.arbiter import direct  # noqa: E402
from support.backends import PLATFORMS, needs_openmm_torch  # noqa: E402
from support.openmm import (  # noqa: E402
    EV,
    StandInForPythonTorchForce,
    openmm_context,
    openmm_results,
    openmm_system,
    topology_of,
)
from support.processes import clean_environment  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import ethanol, water  # noqa: E402

from mlff_distiller.errors import InputError  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import openmm_torch, painn_force, torch_force  # noqa: E402

each_platform = pytest.mark.parametrize("platform", PLATFORMS)


@pytest.fixture(scope="module")
def student():
    return make_student([1, 6, 8])


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


@pytest.fixture(params=["PythonTorchForce", pytest.param("TorchForce", marks=needs_openmm_torch)])
def kind(request, monkeypatch):
    """``painn_force(backend="torch")`` by either force of openmm-torch."""
    if request.param == "PythonTorchForce":
        stand_in = SimpleNamespace(PythonTorchForce=StandInForPythonTorchForce.force)
        monkeypatch.setattr(torch_force, "load_openmm_torch", lambda: stand_in)
    return request.param


def context_of(atoms, model, platform="Reference", chosen=None, precision="double"):
    force = painn_force(topology_of(atoms), model, chosen, backend="torch", precision=precision)
    return openmm_context(openmm_system(topology_of(atoms), force), atoms.positions, platform)


def module_of(atoms, model, particles=None, device="auto"):
    """What TorchForce is given."""
    chosen = atoms if particles is None else atoms[particles]
    return torch_force.scripted_module(
        model,
        atomic_numbers=chosen.numbers.tolist(),
        particles=particles,
        periodic=bool(atoms.pbc.all()),
        precision="double",
        device=device,
    )


def last_line(error):
    """TorchForce puts TorchScript's traceback before it."""
    return str(error.value).strip().splitlines()[-1]


@each_platform
@pytest.mark.parametrize("system", [ethanol, water])
@pytest.mark.parametrize(
    ("precision", "rel", "atol"), [("double", 1e-9, 1e-7), ("single", 1e-6, 1e-4)]
)
def test_equals_the_direct_model(student, model, kind, platform, system, precision, rel, atol):
    atoms = system()
    energy, forces, _ = direct(student, atoms)
    got, got_forces = openmm_results(context_of(atoms, model, platform, precision=precision))
    assert got == pytest.approx(energy, rel=rel)
    np.testing.assert_allclose(got_forces, forces, atol=atol)


@each_platform
def test_subset(student, model, kind, platform):
    atoms, chosen = ethanol(), [7, 2, 0, 5]
    energy, forces = openmm_results(context_of(atoms, model, platform, chosen))
    expected, expected_forces, _ = direct(student, atoms[chosen])
    assert energy == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(forces[chosen], expected_forces, atol=1e-7)
    assert np.all(np.delete(forces, chosen, axis=0) == 0)


@each_platform
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("chosen", [None, [5, 3, 1]])
def test_coordinates_that_are_not_numbers(model, kind, platform, value, chosen):
    atoms = ethanol()
    context = context_of(atoms, model, platform, chosen)
    good = openmm_results(context)
    atoms.positions[3, 1] = value
    context.setPositions(atoms.positions / 10)
    for wanted in ({"energy": True}, {"forces": True}):
        with pytest.raises(openmm.OpenMMException) as error:
            context.getState(**wanted)
        line = last_line(error)
        if platform == "Reference":  # the CPU platform may notice first
            assert "positions must be finite, got NaN or infinity for particle 3; " in line
        if kind == "PythonTorchForce":
            assert "\n" not in str(error.value)
    context.setPositions(ethanol().positions / 10)
    again = openmm_results(context)
    # TorchScript compiles what it runs for the second time: other bits.
    assert again[0] == pytest.approx(good[0], rel=1e-12)
    np.testing.assert_allclose(again[1], good[1], atol=1e-12)


def test_boxes_and_places_that_nothing_can_be_made_of(model):
    """By the module itself: OpenMM notices some of it, some not."""
    atoms = water()
    module = module_of(atoms, model)
    positions, box = torch.tensor(atoms.positions / 10), torch.tensor(atoms.cell.array / 10)
    far, double = positions.clone(), positions.clone()
    far[2, 0] = 1e300
    double[7] = double[4]
    wrong = box.clone()
    wrong[1, 1] = float("nan")
    for given, message in [
        ((positions, wrong), "the box must be finite, got NaN"),
        ((positions, box * 1e-5), "reaches .* images of this cell; check the cell"),
        ((positions, box * 0), "the box: lattice vector 0 is periodic and must not be zero"),
        ((far, box), r"within 1e\+09 Å of the origin, got 1e\+301; wrap or centre"),
        ((double, box), r"atoms (7 and 4|4 and 7) are at one point \(0 Å apart\); remove"),
        ((positions[:5], box), "set up for 81 atoms, the System has 5 particles; make the"),
    ]:
        with pytest.raises(torch.jit.Error) as error:
            module(*given)
        assert re.search(message, last_line(error)), last_line(error)
    assert module(positions, box)[0].item() == module(positions, box)[0].item()


def test_a_system_that_is_too_small_for_the_subset(model, kind):
    force = painn_force(topology_of(ethanol()), model, [0, 8], backend="torch")
    atoms = ethanol()[:8]
    context = openmm_context(openmm_system(topology_of(atoms), force), atoms.positions)
    with pytest.raises(openmm.OpenMMException) as error:
        context.getState(energy=True)
    assert "atoms must lie in 0..7, got 8; the System has 8 particles" in last_line(error)


@pytest.mark.parametrize("inside", ["evaluated", "all"])
def test_in_inference_mode(student, model, kind, inside):
    """The first evaluation counts: later ones may run other code of TorchScript's."""
    atoms = ethanol()
    energy, forces, _ = direct(student, atoms)
    context = context_of(atoms, model) if inside == "evaluated" else None
    with torch.inference_mode():
        context = context or context_of(atoms, model)
        for _ in range(3):
            got, got_forces = openmm_results(context)
            assert got == pytest.approx(energy, rel=1e-9)
            np.testing.assert_allclose(got_forces, forces, atol=1e-7)
    got, got_forces = openmm_results(context)
    assert got == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(got_forces, forces, atol=1e-7)


def test_script_in_inference_mode(student, model):
    """What TorchForce is given, made and first run in there."""
    atoms = water()
    energy, forces, _ = direct(student, atoms)
    with torch.inference_mode():
        module = module_of(atoms, model)
        got, own = module(torch.tensor(atoms.positions / 10), torch.tensor(atoms.cell.array / 10))
    assert got.item() / EV == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(own.numpy() / (10 * EV), forces, atol=1e-7)


def test_positions_are_multiplied_in_double_precision(student, model):
    """A platform in single precision hands over float32: no more digits may go."""
    atoms = ethanol()
    atoms.translate([400, 300, -700])
    single = torch.tensor(atoms.positions / 10, dtype=torch.float32)
    atoms.positions = single.double().numpy() * 10
    energy, forces = module_of(atoms, model)(single)
    expected, expected_forces, _ = direct(student, atoms)
    assert energy.item() / EV == pytest.approx(expected, rel=1e-10)
    assert forces.dtype == torch.float32
    np.testing.assert_allclose(forces.numpy() / (10 * EV), expected_forces, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "expected"), [("auto", "meta"), ("cpu", "cpu"), ("abacus:1", "abacus:1")]
)
def test_device_of_the_network(model, monkeypatch, device, expected):
    """``auto`` is where the platform has the positions, whether torch has a GPU or not."""
    asked = []

    def on(self, name):
        asked.append(name)
        return SimpleNamespace(pbc=torch.zeros(3, dtype=torch.bool))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_force.TorchComputation, "_on", on)
    stand_in = SimpleNamespace(
        PythonTorchForce=lambda computation: computations.append(computation)
    )
    computations = []
    monkeypatch.setattr(torch_force, "load_openmm_torch", lambda: stand_in)
    with pytest.raises(AttributeError):  # None is no force
        painn_force(topology_of(ethanol()), model, backend="torch", device=device)
    assert asked == ["cpu" if device == "auto" else device]
    # The only other device of a machine without a GPU holds no numbers, which shows the move.
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        computations[0].evaluate(torch.zeros(9, 3, device="meta"))
    assert asked[1:] == [expected]


def test_unknown_device(model, kind):
    with pytest.raises(InputError, match="cannot compute on device 'abacus'"):
        painn_force(topology_of(ethanol()), model, backend="torch", device="abacus")


def test_saved_systems(model, kind, tmp_path):
    """Neither force holds the model."""
    path, atoms = tmp_path / "student.pt", ethanol()
    path.write_bytes(model.read_bytes())
    force = painn_force(topology_of(atoms), path, backend="torch")
    system = openmm_system(topology_of(atoms), force)
    expected = openmm_results(openmm_context(system, atoms.positions))[0]
    text = openmm.XmlSerializer.serialize(system)
    assert len(text) < 20_000
    export_student(make_student([1, 6, 8], scale=2.0), path)
    torch_force._restored.cache_clear()  # as in another process
    context = openmm_context(openmm.XmlSerializer.deserialize(text), atoms.positions)
    with pytest.raises(openmm.OpenMMException) as error:
        context.getState(energy=True)
    assert "SHA-256 differs" in last_line(error)
    path.write_bytes(model.read_bytes())
    assert openmm_results(context)[0] == expected


@needs_openmm_torch
def test_openmm_imported_before_torch(model, tmp_path):
    """The order of the README: OpenMM could not load the kernels when it was imported."""
    atoms = ethanol()
    np.save(tmp_path / "positions.npy", atoms.positions)
    code = f"""
import openmm
assert not any("libOpenMMTorchReference" in name for name in openmm.pluginLoadedLibNames)
import sys, numpy
from ase import Atoms
from mlff_distiller.openmm import painn_force
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
atoms = Atoms({atoms.get_chemical_symbols()!r}, numpy.load(sys.argv[2]))
for platform in {PLATFORMS!r}:
    force = painn_force(topology_of(atoms), sys.argv[1], backend="torch", precision="double")
    context = openmm_context(openmm_system(topology_of(atoms), force), atoms.positions, platform)
    print(openmm_results(context)[0])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "positions.npy")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        cwd=str(openmm_torch.Path(__file__).parent),
    )
    assert run.returncode == 0, run.stderr
    expected = direct(make_student([1, 6, 8]), atoms)[0]
    assert np.array(run.stdout.split(), dtype=float) == pytest.approx(expected, rel=1e-9)


@needs_openmm_torch
def test_saved_system_in_another_process(model, tmp_path):
    """As openmm_plugin/README.md says."""
    atoms = ethanol()
    system = openmm_system(
        topology_of(atoms), painn_force(topology_of(atoms), model, backend="torch")
    )
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    code = """
import sys, openmm
from mlff_distiller.openmm.torch_force import load_openmm_torch; load_openmm_torch()
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
openmm.Context(system, openmm.VerletIntegrator(0.001))
print(system.getNumForces(), openmm.XmlSerializer.serialize(system).count("TorchForce"))
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "system.xml")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1", "1"]
    assert not run.stderr  # simtk.openmm has nothing to say


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A folder of plugins, of which OpenMM has loaded the first."""
    for name in ("libOpenMMTorchOpenCL.so", "libOpenMMTorchReference.so", "libOpenMMCPU.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(openmm, "pluginLoadedLibNames", (str(tmp_path / "libOpenMMCPU.so"),))
    monkeypatch.setattr(
        openmm.Platform, "getDefaultPluginsDirectory", staticmethod(lambda: str(tmp_path))
    )
    monkeypatch.setattr(openmm.version, "openmm_library_path", str(tmp_path / "nowhere"))
    loaded = []

    def load(name):
        loaded.append(name.rpartition("/")[2])
        if not (tmp_path / "good").exists() or "OpenCL" in name:
            raise openmm.OpenMMException(f"Error loading library {name}:\nno such symbol")

    monkeypatch.setattr(openmm.Platform, "loadPluginLibrary", staticmethod(load))
    return tmp_path, loaded


def test_kernels_are_loaded_after_torch(plugins, monkeypatch):
    folder, loaded = plugins
    with pytest.raises(
        InputError, match=r"libOpenMMTorchReference\.so: no such symbol\); ins"
    ) as e:
        openmm_torch._load_kernels()
    assert "\n" not in str(e.value)
    (folder / "good").touch()
    loaded.clear()
    openmm_torch._load_kernels()  # those of OpenCL may fail
    assert loaded == ["libOpenMMTorchOpenCL.so", "libOpenMMTorchReference.so"]
    monkeypatch.setattr(openmm, "pluginLoadedLibNames", tuple(folder.glob("*.so")))
    loaded.clear()
    openmm_torch._load_kernels()
    assert not loaded


class Installed(metadata.Distribution):
    """A package as the package index or somebody's compiler leaves it."""

    def __init__(self, name, version, requires=(), **files):
        self._metadata = email.message.Message()
        self._metadata["Name"], self._metadata["Version"] = name, version
        self._requires = list(requires)
        self.files_inside = files

    metadata = property(lambda self: self._metadata)
    requires = property(lambda self: self._requires)
    version = property(lambda self: self._metadata["Version"])

    def read_text(self, filename):
        return self.files_inside.get(filename.partition(".")[0])

    def locate_file(self, path):
        return path


@pytest.mark.parametrize(
    ("package", "running", "message"),
    [
        (Installed("openmmtorch", "1.5"), "2.9.1+cu128", None),
        (Installed("openmmtorch", "1.5"), "2.9.0", None),
        (Installed("openmmtorch", "1.5", INSTALLER="pip\n"), "2.8.0", "openmmtorch 1.5 was made for torch 2.9, got"),
        (Installed("openmmtorch", "1.5"), "2.10.0+cpu", r"got torch 2\.10\.0\+cpu, with which"),
        (Installed("openmmtorch", "1.5"), "2.90.0", r"pip install 'torch==2\.9\.\*'`, or use"),
        (Installed("openmmtorch", "1.5", direct_url="{}", INSTALLER="pip\n"), "2.13.0", None),
        (Installed("openmmtorch", "1.5", INSTALLER="conda\n"), "2.13.0", None),
        (Installed("another", "1.6", ["torch==2.10.*", 'torch==2.9; extra == "x"']), "2.10.2", None),
        (Installed("another", "1.6", ["torch==2.10.*"]), "2.9.1", "another 1.6 was made for torch"),
        (Installed("another", "1.6", ["torch (==2.9.1) ; x"]), "2.9.10", "made for torch 2.9.1, got"),
        (Installed("another", "1.6", ["torch>=2.1", "OpenMM==8.1.0"]), "2.9.1",
         r"made for openmm 8\.1\.0, got openmm 8\."),
    ],
)  # fmt: skip
def test_versions_are_read_before_anything_is_imported(monkeypatch, package, running, message):
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {"openmmtorch": [package.metadata["Name"]]}
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: package)
    monkeypatch.setattr(torch, "__version__", running)
    if message is None:
        openmm_torch.check_versions()
        return

    def imported(name):
        raise AssertionError("imported before the versions were looked at")

    monkeypatch.setattr(openmm_torch, "import_module", imported)
    openmm_torch.load_openmm_torch.cache_clear()
    with pytest.raises(InputError, match=message) as error:
        openmm_torch.load_openmm_torch()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError(), "(ImportError)"),
        (OSError(" \n "), "(OSError)"),
        (ImportError("libtorch_cuda.so: not there\nand more"), "(libtorch_cuda.so: not there)"),
    ],
)
def test_case_26c_openmm_torch_that_does_not_load(model, monkeypatch, error, reason):
    def fail(name):
        raise error

    monkeypatch.setattr(openmm_torch, "check_versions", lambda: None)
    monkeypatch.setattr(openmm_torch, "import_module", fail)
    openmm_torch.load_openmm_torch.cache_clear()
    with pytest.raises(InputError) as caught:
        painn_force(topology_of(ethanol()), model, backend="torch")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
