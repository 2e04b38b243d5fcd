"""Bad input, changed files, fresh processes: cases 21-30."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

openmm = pytest.importorskip("openmm")

from ase import Atoms  # noqa: E402
from openmm import app, unit  # noqa: E402
from support.arbiter import direct  # noqa: E402
from support.backends import OPENMM_BACKENDS, PLATFORMS, needs_openmm_plugin  # noqa: E402
from support.case_tables import readme_with_cases  # noqa: E402
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of  # noqa: E402
from support.processes import clean_environment  # noqa: E402
from support.students import make_student  # noqa: E402
from support.systems import ethanol, water  # noqa: E402

import mlff_distiller.openmm.native as native  # noqa: E402
from mlff_distiller.errors import InputError  # noqa: E402
from mlff_distiller.export import export_student  # noqa: E402
from mlff_distiller.openmm import keep_molecules_whole, painn_force  # noqa: E402

each_backend = pytest.mark.parametrize("backend", OPENMM_BACKENDS)
each_platform = pytest.mark.parametrize("platform", PLATFORMS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(make_student([1, 6, 8]), path)
    return path


def as_in_another_process():
    """A TorchForce names its model, and the models of a process are kept in memory."""
    from mlff_distiller.openmm import torch_force

    torch_force._restored.cache_clear()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@each_backend
def test_case_21_atoms_without_an_element(model, backend):
    topology = topology_of(ethanol())
    atoms = list(topology.atoms())
    atoms[2].element = atoms[5].element = None
    with pytest.raises(InputError, match=r"2 of the model's atoms have no element.*indices 2, 5"):
        painn_force(topology, model, backend=backend)
    painn_force(topology, model, [0, 1, 3], backend=backend)  # the nameless are left out


@each_backend
def test_case_22_unknown_species(model, backend):
    topology = topology_of(Atoms("CN", [[0] * 3, [0, 0, 1.2]]))
    with pytest.raises(InputError, match=r"knows H C O, got N \(Z=7\)") as error:
        painn_force(topology, model, backend=backend)
    one_line(error)


@each_backend
@each_platform
@pytest.mark.parametrize("count", [8, 10])
def test_case_23_another_number_of_particles(model, backend, platform, count):
    force = painn_force(topology_of(ethanol()), model, backend=backend)
    other = Atoms(f"C{count}", np.arange(3 * count).reshape(-1, 3))
    system = openmm_system(topology_of(other), force)
    with pytest.raises(openmm.OpenMMException, match=f"for 9 atoms, the System has {count}"):
        openmm_results(openmm_context(system, other.positions, platform))


@each_backend
def test_case_24_atoms_out_of_range_or_twice(model, backend):
    topology = topology_of(ethanol())
    for atoms, message in [
        ([0, 9], r"0\.\.8, got \[9\]"),
        ([-1, 3], r"0\.\.8, got \[-1\]"),
        ([3, 4, 3], r"got \[3\] more than once"),
        ([], "at least one"),
        ([0.5], "integers .*float"),
        (["a"], "integers .*str"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            painn_force(topology, model, atoms, backend=backend)
        one_line(error)


@each_backend
def test_case_25_missing_file(model, backend, tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "nowhere.pt"))):
        painn_force(topology_of(ethanol()), tmp_path / "nowhere.pt", backend=backend)
    (tmp_path / "short.pt").write_bytes(model.read_bytes()[:3000])
    with pytest.raises(InputError, match="truncated"):
        painn_force(topology_of(ethanol()), tmp_path / "short.pt", backend=backend)


def test_case_26_missing_library(model, monkeypatch):
    monkeypatch.setattr(native, "native_file", lambda name: None)
    native.load_plugin.cache_clear()
    topology = topology_of(ethanol())
    with pytest.raises(InputError, match=r"lib/openmm/libPainnOpenMM\.so, which was not built"):
        painn_force(topology, model, backend="native")
    assert isinstance(painn_force(topology, model), openmm.PythonForce)  # auto makes do
    native.load_plugin.cache_clear()


def test_case_26b_library_for_another_openmm(model, monkeypatch, tmp_path):
    library = tmp_path / "libPainnOpenMM.so"
    library.write_bytes(b"\x7fELF....MLFF_OPENMM_BUILD=8.5.0;\0")
    monkeypatch.setattr(native, "native_file", lambda name: library)
    native.load_plugin.cache_clear()
    running = openmm.Platform.getOpenMMVersion()
    message = rf"built for OpenMM 8\.5\.0, this is OpenMM {re.escape(running)}"
    with pytest.raises(InputError, match=message):
        painn_force(topology_of(ethanol()), model, backend="native")
    assert not native.plugin_is_built()
    native.load_plugin.cache_clear()


@each_backend
@each_platform
def test_case_27_changed_model(model, backend, platform, tmp_path):
    path = tmp_path / "student.pt"
    path.write_bytes(model.read_bytes())
    atoms = ethanol()
    force = painn_force(topology_of(atoms), path, backend=backend)
    system = openmm_system(topology_of(atoms), force)
    text = openmm.XmlSerializer.serialize(system)
    expected = openmm_results(openmm_context(system, atoms.positions, platform))[0]
    again = openmm.XmlSerializer.deserialize(text)
    assert openmm_results(openmm_context(again, atoms.positions, platform))[0] == expected

    export_student(make_student([1, 6, 8], scale=2.0), path)
    as_in_another_process()
    with pytest.raises(openmm.OpenMMException, match="SHA-256 differs"):
        openmm_results(
            openmm_context(openmm.XmlSerializer.deserialize(text), atoms.positions, platform)
        )
    path.unlink()
    with pytest.raises(openmm.OpenMMException, match="no such model file"):
        openmm_results(
            openmm_context(openmm.XmlSerializer.deserialize(text), atoms.positions, platform)
        )


@each_backend
def test_case_27b_xml_round_trip_keeps_all_options(model, backend):
    topology = topology_of(ethanol(), bonds=[(0, 1), (1, 2)])
    force = painn_force(
        topology,
        model,
        [4, 1, 2],
        backend=backend,
        precision="double",
        periodic=True,
        force_group=11,
        threads=1,
        skin=0.055 * unit.nanometer,
    )
    text = openmm.XmlSerializer.serialize(force)
    again = openmm.XmlSerializer.deserialize(text)
    # TorchScript is a zip file that names itself; test_openmm_torch.py looks inside.
    script = re.compile('encodedFileContents="[0-9a-f]*"')
    assert script.sub("", openmm.XmlSerializer.serialize(again)) == script.sub("", text)
    assert again.getForceGroup() == 11
    assert again.usesPeriodicBoundaryConditions()
    if backend == "native":
        assert "pickle" not in text
        for item in ('precision="double"', 'skin=".55"', 'p1="1" p2="2"', 'index="4"'):
            assert item in text.replace('skin="0.55"', 'skin=".55"')


@needs_openmm_plugin
def test_case_27c_mended_xml(model):
    """What the constructor of the C++ force and its Context check, as XML may come from anywhere."""
    atoms = ethanol()
    force = painn_force(topology_of(atoms), model, backend="native")
    text = openmm.XmlSerializer.serialize(force)
    for old, new, message in [
        (r'version="1"', 'version="2"', "expected version 1, got 2; upgrade"),
        (r'precision="single"', 'precision="half"', "single or double, got 'half'"),
        (r'index="4"', 'index="3"', "distinct, got 3 twice"),
        (r'index="4"', 'index="-4"', "got -4"),
        (r'index="8"', 'index="9"', "the System has 9 particles"),
        (r' z="6"', ' z="92"', "92|knows"),
        (r'threads="0"', 'threads="-3"', "threads must be .*got -3"),
        (r'skin="[.\d]*"', 'skin="-1"', "skin .*-1"),
    ]:
        broken = re.sub(old, new, text, count=0 if "z=" in old else 1)
        assert broken != text
        with pytest.raises(openmm.OpenMMException, match=message) as error:
            openmm_context(
                openmm_system(topology_of(atoms), openmm.XmlSerializer.deserialize(broken)),
                atoms.positions,
            ).getState(energy=True)
        one_line(error)


@each_backend
@each_platform
def test_case_28_nan(backend, platform, tmp_path):
    atoms = ethanol()
    topology = topology_of(atoms)
    # Finite weights whose products overflow single precision.
    student = make_student([1, 6, 8])
    with torch.no_grad():
        student.painn.embedding.weight.mul_(1e30)
    export_student(student, tmp_path / "wild.pt")
    force = painn_force(topology, tmp_path / "wild.pt", backend=backend, precision="single")
    context = openmm_context(openmm_system(topology, force), atoms.positions, platform)
    with pytest.raises(openmm.OpenMMException, match=r"NaN|finite"):
        context.getState(energy=True)
    with pytest.raises(openmm.OpenMMException, match=r"NaN|finite"):
        context.getState(forces=True)


@each_backend
@each_platform
def test_case_28b_nan_positions(model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)
    force = painn_force(topology, model, backend=backend)
    atoms.positions[3, 1] = np.nan
    context = openmm_context(openmm_system(topology, force), atoms.positions, platform)
    with pytest.raises(openmm.OpenMMException, match=r"NaN|finite"):
        context.getState(energy=True)


@each_backend
@each_platform
def test_case_29_no_grad(model, backend, platform):
    atoms = ethanol()
    topology = topology_of(atoms)

    def results():
        force = painn_force(topology, model, backend=backend, precision="double")
        return openmm_results(
            openmm_context(openmm_system(topology, force), atoms.positions, platform)
        )

    energy, forces = results()
    with torch.no_grad():
        other_energy, other_forces = results()
    with torch.inference_mode():
        last_energy, last_forces = results()
    assert energy == other_energy == last_energy
    np.testing.assert_array_equal(forces, other_forces)
    np.testing.assert_array_equal(forces, last_forces)


@each_platform
def test_openmm_that_chooses_no_particles(model, platform, monkeypatch):
    """Before 8.6 a PythonForce sees all of them."""
    monkeypatch.delattr(openmm.PythonForce, "setParticles", raising=False)
    atoms, chosen = ethanol(), [7, 2, 0, 5]
    force = painn_force(topology_of(atoms), model, chosen, backend="python", precision="double")
    text = openmm.XmlSerializer.serialize(openmm_system(topology_of(atoms), force))
    system = openmm.XmlSerializer.deserialize(text)
    energy, forces = openmm_results(openmm_context(system, atoms.positions, platform))
    expected, expected_forces, _ = direct(make_student([1, 6, 8]), atoms[chosen])
    assert energy == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(forces[chosen], expected_forces, atol=1e-7)
    assert np.all(np.delete(forces, chosen, axis=0) == 0)
    force = painn_force(topology_of(atoms), model, chosen, backend="python")
    small = atoms[:7]
    context = openmm_context(openmm_system(topology_of(small), force), small.positions, platform)
    with pytest.raises(openmm.OpenMMException, match=r"lie in 0\.\.6, got 7; the System has 7"):
        context.getState(energy=True)


def test_portable_backend_without_gradients(model):
    # The same through TorchScript, whichever engine the python backend has found.
    from mlff_distiller.students.portable import PortablePotential

    atoms = ethanol()
    arguments = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    expected = PortablePotential(model).compute(*arguments)["forces"]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = PortablePotential(model).compute(*arguments)["forces"]
        np.testing.assert_allclose(got, expected, atol=1e-12)


_RUN = """
import numpy, openmm, sys
from openmm.app import Topology, element
from mlff_distiller.openmm import painn_force
topology = Topology()
residue = topology.addResidue("CO", topology.addChain())
topology.addAtom("C", element.carbon, residue)
topology.addAtom("O", element.oxygen, residue)
system = openmm.System()
system.addParticle(12), system.addParticle(16)
system.addForce(painn_force(topology, sys.argv[1], backend=sys.argv[2]))
context = openmm.Context(system, openmm.VerletIntegrator(0.001))
context.setPositions(numpy.array([[0, 0, 0], [0, 0, 0.12]]))
print(context.getState(energy=True).getPotentialEnergy()._value)
"""


@pytest.mark.parametrize(
    ("imports", "backend"),
    [
        ("import openmm, torch, mlff_distiller.openmm", "auto"),
        ("import mlff_distiller.openmm, torch, openmm", "auto"),
        ("import openmmml; assert 'torch' not in __import__('sys').modules", "python"),
        (
            "import os, sys; sys.modules['openmmml'] = None; "
            "os.environ['CUDA_VISIBLE_DEVICES'] = ''",
            "auto",
        ),
    ],
)
def test_case_30_fresh_process(model, backend, imports):
    if "openmmml" in imports:
        pytest.importorskip("openmmml")
    run = subprocess.run(
        [sys.executable, "-P", "-c", imports + _RUN, str(model), backend],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])
    expected = direct(make_student([1, 6, 8]), atoms)[0] * 96.48533212331
    assert float(run.stdout.split()[-1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", [*OPENMM_BACKENDS, "auto"])
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"precision": "half"}, "'single' or 'double', got 'half'"),
        ({"precision": None}, "'single' or 'double', got None"),
        ({"force_group": 32}, r"integer 0\.\.31, got 32"),
        ({"force_group": "1"}, r"integer 0\.\.31, got '1'"),
        ({"threads": -1}, r"threads must be an integer 0\.\.1024, got -1; 0 is"),
        ({"threads": 10**9}, r"0\.\.1024, got 1000000000"),
        ({"threads": 1.5}, r"0\.\.1024, got 1\.5"),
        ({"threads": "two"}, r"0\.\.1024, got 'two'"),
        ({"skin": -0.1}, r"length >= 0 Å, got -0\.1"),
        ({"skin": float("nan")}, "length >= 0 Å, got nan"),
        ({"skin": "wide"}, "length >= 0 Å, got 'wide'"),
        ({"skin": 1 * unit.picosecond}, "length >= 0 Å, got "),
        ({"periodic": "x"}, "True, False or None .*got 'x'"),
        ({"periodic": 1}, "True, False or None .*got 1;"),
        ({"device": None}, "device must be a name such as 'cpu' or 'cuda:0', got None"),
        ({"model": None}, "path of an exported student, got None"),
        ({"model": 3.0}, "path of an exported student, got 3.0"),
        ({"model": "."}, "a model is a file, got the directory"),
        ({"topology": None}, "topology must be an openmm.app.Topology, got None"),
        ({"topology": "ethanol.pdb"}, "topology must be .*got 'ethanol.pdb'"),
        ({"topology": app.Topology()}, "at least one atom, got none"),
        ({"atoms": 3}, "atoms must be integers .*not iterable"),
        ({"atoms": [True] + [False] * 8}, "got True or False; of a mask pass"),
    ],
)
def test_bad_options(model, backend, keywords, message):
    arguments = {"topology": topology_of(ethanol()), "model": model, "backend": backend, **keywords}
    with pytest.raises(InputError, match=message) as error:
        painn_force(**arguments)
    one_line(error)


def test_bad_backends(model):
    topology = topology_of(ethanol())
    for keywords, message in [
        ({"backend": "fast"}, "auto, native, python, torch, got 'fast'"),
        ({"backend": None}, "auto, native, python, torch, got None"),
        ({"backend": "native", "device": "cuda:1"}, "GPU of the Context, got device 'cuda:1'"),
        ({"backend": "python", "device": "abacus"}, "cannot compute on device 'abacus'"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            painn_force(topology, model, **keywords)
        one_line(error)


def test_bad_molecules(model):
    topology = topology_of(ethanol(), bonds=[(0, 1)])
    for arguments, message in [
        ((None,), "topology must be"),
        ((topology, [0, 9]), r"0\.\.8, got \[9\]"),
        ((topology, ["a"]), "integers .*str"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            keep_molecules_whole(*arguments)
        one_line(error)
    assert keep_molecules_whole(topology, iter([1, 0])).getNumBonds() == 1
    assert keep_molecules_whole(topology, [0, 2]).getNumBonds() == 0


def test_torch_module_equals_the_model(model):
    """What TorchForce would call; openmm-torch itself is not needed for this."""
    from mlff_distiller.openmm.torch_force import scripted_module

    atoms = ethanol()
    student = make_student([1, 6, 8])
    for particles in (None, [7, 2, 0, 5]):
        chosen = atoms if particles is None else atoms[particles]
        module = scripted_module(
            model,
            atomic_numbers=chosen.numbers.tolist(),
            particles=particles,
            periodic=False,
            precision="double",
            device="cpu",
        )
        with torch.no_grad():
            energy, forces = module(torch.tensor(atoms.positions / 10))
        expected, expected_forces, _ = direct(student, chosen)
        assert energy.item() == pytest.approx(expected * 96.48533212331, rel=1e-9)
        assert forces.is_contiguous()
        own = forces if particles is None else forces[particles]
        np.testing.assert_allclose(own.numpy() / 964.8533212331, expected_forces, atol=1e-8)
        assert float(forces.abs().sum()) == pytest.approx(float(own.abs().sum()))


def test_torch_module_with_a_box(model):

    from mlff_distiller.openmm.torch_force import scripted_module

    atoms = water()
    module = scripted_module(
        model,
        atomic_numbers=atoms.numbers.tolist(),
        particles=None,
        periodic=True,
        precision="double",
        device="cpu",
    )
    energy, forces = module(torch.tensor(atoms.positions / 10), torch.tensor(atoms.cell.array / 10))
    expected, expected_forces, _ = direct(make_student([1, 6, 8]), atoms)
    assert energy.item() == pytest.approx(expected * 96.48533212331, rel=1e-9)
    np.testing.assert_allclose(forces.numpy() / 964.8533212331, expected_forces, atol=1e-7)


def test_readme_lists_every_case():
    readme = Path(__file__).parents[1] / "openmm_plugin" / "README.md"
    text = readme.read_text()
    assert text == readme_with_cases(readme), "run: python tests/support/case_tables.py"
    table = text.split("<!-- cases:")[1]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == [str(n) for n in range(1, 34)]
