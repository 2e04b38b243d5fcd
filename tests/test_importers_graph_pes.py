"""Import of graph-pes' PaiNN: exact, in every engine, and without running what a file asks for.

graph-pes is not installed. Files are written under its class names, from the weights of a ``Spec`` (see
``support.graph_pes_files``); the arbiter computes the published formulas from the same weights and shares nothing with
the package: not its network, nor its neighbour list.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from support.graph_pes_files import (
    NAMES,
    ZBL,
    GraphPes,
    Spec,
    model_of,
    offset_of,
    painn_of,
    sum_of,
    write,
    zbl_of,
)
from torch import nn
from typer.testing import CliRunner

from mlff_distiller import StudentCalculator
from mlff_distiller.cli import app
from mlff_distiller.errors import InputError
from mlff_distiller.export import read_metadata
from mlff_distiller.importers import convert_model, import_model
from mlff_distiller.units import energy_in_ev, length_in_angstrom

SHARED = Path(__file__).parents[2] / "shared" / "data" / "graph_pes_painn"

# --- the files of its authors -------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize("backend", ["native", "portable"])
@pytest.mark.parametrize(("name", "elements"), [("water", [1, 8]), ("silica", [8, 14])])
def test_published_students(tmp_path, name, elements, backend):
    metadata = convert_model(SHARED / f"{name}.pt", tmp_path / "s.pt", "eV", dtype="float64")
    assert metadata["elements"] == elements
    reference = np.load(SHARED / f"reference_{name}_float64.npz")
    calculator = StudentCalculator(tmp_path / "s.pt", backend=backend)
    for i in range(int(reference["n"])):
        z, p, c, pbc = (reference[f"{x}{i}"] for x in ("z", "p", "c", "pbc"))
        atoms = Atoms(z, p, cell=c, pbc=pbc, calculator=calculator)
        assert atoms.get_potential_energy() == pytest.approx(float(reference[f"e{i}"]), rel=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), reference[f"f{i}"], rtol=0, atol=1e-10)
        if pbc.all():
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(stress, reference[f"s{i}"], rtol=0, atol=1e-13)


# --- the arbiter --------------------------------------------------------------------------------


def _pairs(positions, cell, pbc, cutoff):
    """Receivers, senders and lattice shifts of all pairs below the cutoff, image by image."""
    reach = [int(6 * periodic) for periodic in pbc]
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    shifts = np.stack(grids, axis=-1).reshape(-1, 3)
    vectors = positions[None, None] - positions[None, :, None] + (shifts @ cell)[:, None, None]
    distances = np.linalg.norm(vectors, axis=-1)
    image, i, j = np.nonzero((distances < cutoff) & (distances > 1e-9))
    return torch.tensor(i), torch.tensor(j), torch.tensor(shifts[image], dtype=torch.float64)


def _mlp(w, name, x):
    hidden = x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
    hidden = hidden * torch.sigmoid(hidden)  # SiLU
    return hidden @ w[f"{name}.1.weight"].T + w[f"{name}.1.bias"]


def _painn(spec, numbers, vectors, i, j):
    """Energies of the atoms, before their scale."""
    w = {name: value.double() for name, value in spec.weights.items()}
    n, f, p = len(numbers), spec.channels, spec.p
    d = vectors.norm(dim=1)
    unit, x = vectors / d[:, None], d / spec.cutoff
    envelope = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1)
    envelope = envelope - p * (p + 1) / 2 * x ** (p + 2)
    factor = float(torch.tensor(2.0 / spec.cutoff).sqrt())  # float32, as in the file
    s, v = w["embedding"][numbers], torch.zeros(n, 3, f, dtype=torch.float64)
    for k in range(spec.layers):
        bessel = factor * torch.sin(d[:, None] * w[f"{k}.frequencies"]) / d[:, None]
        filters = bessel @ w[f"{k}.filter.weight"].T + w[f"{k}.filter.bias"]
        message = _mlp(w, f"{k}.phi", s)[j] * filters * envelope[:, None]
        along = message[:, None, f : 2 * f] * unit[:, :, None]
        passed = message[:, None, 2 * f :] * v[j]
        s = s.index_add(0, i, message[:, :f])
        v = v.index_add(0, i, along + passed)
        u, q = v @ w[f"{k}.U.weight"].T, v @ w[f"{k}.V.weight"].T
        norm = torch.sqrt((q * q).sum(1) + 1e-8)
        a = _mlp(w, f"{k}.mlp", torch.cat([s, norm], dim=1))
        v = v + a[:, None, :f] * u
        s = s + a[:, f : 2 * f] + a[:, 2 * f :] * (u * q).sum(1)
    return _mlp(w, "readout", s)[:, 0]


def _zbl(zbl, numbers, vectors, i, j):
    """Sum over pairs of nuclei, each counted twice in i and j."""
    near = vectors.norm(dim=1) < np.float32(zbl["cutoff"])
    d, zi, zj = vectors.norm(dim=1)[near], numbers[i[near]].double(), numbers[j[near]].double()
    exponent, pre_factor = (float(np.float32(zbl[x])) for x in ("exponent", "pre_factor"))
    x = d * (zi**exponent + zj**exponent) / (pre_factor * 0.529177249)
    coefficients = np.float32([0.1818, 0.5099, 0.2802, 0.02817]).astype(float)
    decays = np.float32([3.2, 0.9423, 0.4029, 0.2016]).astype(float)
    screening = sum(c * torch.exp(-b * x) for c, b in zip(coefficients, decays, strict=True))
    return (14.3996 * zi * zj / d * screening).sum() / 2


def arbiter(spec, atoms):
    """Energy, forces and stress of the published formulas, in the units of the model."""
    numbers = torch.tensor(atoms.numbers)
    x = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    cell = np.array(atoms.cell.array)
    i, j, shifts = _pairs(atoms.positions, cell, atoms.pbc, spec.cutoff)
    deform = torch.eye(3, dtype=torch.float64) + (strain + strain.T) / 2
    vectors = (x[j] - x[i] + shifts @ torch.tensor(cell)) @ deform
    scales = torch.ones(119, dtype=torch.float64)
    offsets = torch.zeros(119, dtype=torch.float64)
    for z, scale in spec.scales.items():
        scales[z] = float(np.float32(scale))
    for part in spec.offsets:
        for z, offset in part.items():
            offsets[z] += float(np.float32(offset))
    energy = (scales[numbers] * _painn(spec, numbers, vectors, i, j) + offsets[numbers]).sum()
    if spec.zbl:
        energy = energy + _zbl(spec.zbl, numbers, vectors, i, j)
    gradient, slope = torch.autograd.grad(energy, (x, strain), allow_unused=True)
    zeros = torch.zeros_like(x) if gradient is None else gradient
    stress = slope.numpy() / atoms.get_volume() if atoms.pbc.all() else None
    return energy.item(), -zeros.numpy(), stress


# --- every option -------------------------------------------------------------------------------


@pytest.fixture
def graph_pes(monkeypatch):
    assert "graph_pes" not in sys.modules
    return GraphPes(monkeypatch)


RANDOM = np.random.default_rng(3)
CORNERS = np.stack(np.meshgrid(*[[0.1, 0.6]] * 3), axis=-1).reshape(-1, 3)
CELL = np.array([[3.6, 0, 0], [0.9, 3.9, 0], [-0.6, 0.7, 4.2]])
CRYSTAL = Atoms("CH2OCH2O", (CORNERS + 0.1 * RANDOM.random((8, 3))) @ CELL, cell=CELL, pbc=True)
MOLECULE = Atoms("COHHCOH", CRYSTAL.positions[:7] * 0.8)
FULL = Spec(zbl=ZBL, offsets=({1: -3.0, 6: 4.0}, {6: -9.5, 8: 7.25}))


def in_units(atoms, length):
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell * length, scale_atoms=False)
    scaled.positions = atoms.positions * length
    return scaled


def assert_same(spec, calculator, systems=(MOLECULE, CRYSTAL), energy=1.0, length=1.0):
    """All of a calculator in eV and Å is what the arbiter says in the units of the model."""
    for atoms in systems:
        expected, forces, stress = arbiter(spec, atoms)
        ours = in_units(atoms, length)
        ours.calc = calculator
        assert ours.get_potential_energy() == pytest.approx(expected * energy, rel=1e-11)
        unit = energy / length
        tolerance = 1e-11 * unit * max(1.0, np.abs(forces).max())
        np.testing.assert_allclose(ours.get_forces(), forces * unit, rtol=0, atol=tolerance)
        if stress is not None:
            unit = energy / length**3
            tolerance = 1e-12 * unit * max(1.0, np.abs(stress).max())
            np.testing.assert_allclose(
                ours.get_stress(voigt=False), stress * unit, rtol=0, atol=tolerance
            )


def imported(tmp_path, source, elements=None, energy_unit="eV", length_unit="Ang", backend="auto"):
    target = tmp_path / "student.pt"
    convert_model(source, target, energy_unit, length_unit, elements, "float64")
    return StudentCalculator(target, backend=backend)


@pytest.mark.parametrize(
    "spec",
    [
        FULL,
        Spec(layout="bare"),
        replace(FULL, layout="nested"),
        replace(FULL, layout="reversed", offsets=({1: 1.0}, {6: 2.0}, {8: 3.0})),
        replace(FULL, channels=13),  # padded to 16
        replace(FULL, channels=8, layers=1, radial=1),
        replace(FULL, layers=4, radial=9, p=3),
        replace(FULL, p=9, cutoff=5.3, zbl={**ZBL, "cutoff": 5.3}),
        replace(FULL, cutoff=4.8, zbl={**ZBL, "cutoff": 4.8}),  # float32 of it is larger
        replace(FULL, zbl={"cutoff": 2.3, "pre_factor": 0.8854, "exponent": 0.23}),
    ],
    ids=lambda s: f"{s.layout}-F{s.channels}-{s.layers}x{s.radial}-p{s.p}-{s.cutoff}-{bool(s.zbl)}",
)
def test_every_shape(tmp_path, graph_pes, spec):
    source = write(graph_pes, spec, tmp_path / "model.pt")
    student = import_model(source, energy_unit="eV")
    assert student.elements == [1, 6, 8]
    assert student.config.hidden_dim % 8 == 0
    assert student.cutoff == spec.cutoff
    for backend in ("native", "portable"):
        assert_same(spec, imported(tmp_path, source, backend=backend))


@pytest.mark.parametrize(("energy", "length"), [("Hartree", "Bohr"), ("kJ/mol", "nm")])
def test_units(tmp_path, graph_pes, energy, length):
    source = write(graph_pes, FULL, tmp_path / "model.pt")
    calculator = imported(tmp_path, source, energy_unit=energy, length_unit=length)
    units = energy_in_ev(energy), length_in_angstrom(length)
    assert calculator.cutoff == pytest.approx(FULL.cutoff * units[1], rel=1e-15)
    assert_same(FULL, calculator, energy=units[0], length=units[1])


@pytest.mark.parametrize("backend", ["native", "portable"])
def test_few_atoms(tmp_path, graph_pes, backend):
    """Without edges, of one element, and alone: what is left are readout, scale and offset."""
    far = Atoms("HO", [[0, 0, 0], [0, 0, 9.0]])
    source = write(graph_pes, FULL, tmp_path / "model.pt")
    calculator = imported(tmp_path, source, backend=backend)
    assert_same(FULL, calculator, (far, Atoms("C"), Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])))
    box = Atoms("H", cell=[30.0] * 3, pbc=True)
    assert_same(FULL, calculator, (box,))
    single = replace(FULL, scales={14: 1.25}, offsets=({14: -100.0},))
    source = write(graph_pes, single, tmp_path / "model.pt")
    calculator = imported(tmp_path, source, backend=backend)
    assert calculator.elements == [14]
    crystal = Atoms("Si8", CRYSTAL.positions, cell=CRYSTAL.cell, pbc=True)
    assert_same(single, calculator, (crystal, Atoms("Si")))


@pytest.mark.parametrize("backend", ["native", "portable"])
def test_the_repulsion_ends_with_its_jump(tmp_path, graph_pes, backend):
    spec = replace(FULL, zbl={"cutoff": 2.5, "pre_factor": 2.0, "exponent": 0.1})
    calculator = imported(tmp_path, write(graph_pes, spec, tmp_path / "m.pt"), backend=backend)
    inside, outside = (Atoms("CO", [[0, 0, 0], [0, 0, 2.5 + d]]) for d in (-1e-7, 1e-7))
    assert_same(spec, calculator, (inside, outside))
    assert arbiter(spec, inside)[0] - arbiter(spec, outside)[0] > 1.0


@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "bare"])
def test_state_dicts(tmp_path, graph_pes, kind):
    """They lack envelope radius and factors, which follow from the cutoff; elements as ever."""
    spec = replace(FULL, channels=13, layout="bare" if kind == "bare" else "nested")
    if kind == "bare":
        spec = replace(spec, zbl=None, offsets=())
    state = dict(model_of(graph_pes, spec).state_dict())
    state["_extra_state"] = {"_GRAPH_PES_VERSION": "1.0.2", "extra": {}}
    if kind == "checkpoint":
        state = {f"model.{name}": value for name, value in state.items()}
        state = {"epoch": 3, "state_dict": {**state, "loss.weight": torch.ones(1)}}
    torch.save(state, tmp_path / "state.pt")
    assert_same(spec, imported(tmp_path, tmp_path / "state.pt"))
    assert read_metadata(tmp_path / "student.pt")["imported_from"]["version"] == "1.0.2"


# --- elements -----------------------------------------------------------------------------------


def test_elements(tmp_path, graph_pes):
    def read(spec, elements=None):
        source = write(graph_pes, spec, tmp_path / "model.pt")
        return import_model(source, energy_unit="eV", elements=elements).elements

    plain = Spec(scales={})
    assert read(replace(plain, registered=frozenset({8, 1}))) == [1, 8]
    # graph-pes often loses what it registered: the marks that training left are next
    assert read(replace(plain, scales={14: 1.1}, offsets=({14: 1.0, 8: 2.0},))) == [14]
    assert read(replace(plain, offsets=({14: 1.0}, {8: 2.0}))) == [8, 14]
    with pytest.warns(UserWarning, match="--elements"):
        assert read(plain) == list(range(1, 119))
    assert read(plain, ["Og", 1, "o"]) == [1, 8, 118]
    assert read(FULL, "O,H") == [1, 8]
    for wrong in ("H,N", [7], "Xx", [0], [119]):
        with pytest.raises(InputError, match="is not among those of the model, H C O; pass"):
            read(FULL, wrong)
    with pytest.raises(InputError, match="at least one"):
        read(FULL, [])


def test_fewer_elements_are_the_same_model(tmp_path, graph_pes):
    source = write(graph_pes, FULL, tmp_path / "model.pt")
    water = Atoms("OHH", [[0, 0, 0], [0, 0, 0.97], [0.9, 0, -0.3]])
    assert_same(FULL, imported(tmp_path, source, elements="O,H"), (water,))


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convert(tmp_path, graph_pes, dtype):
    source, target = write(graph_pes, FULL, tmp_path / "model.pt"), tmp_path / "student.pt"
    result = CliRunner().invoke(
        app, ["convert", str(source), str(target), "--energy-unit", "eV", "--dtype", dtype]
    )
    assert result.exit_code == 0, result.output
    assert "PaiNN of graph-pes" in result.output
    metadata = read_metadata(target)
    assert metadata["dtype"] == dtype
    assert metadata["elements"] == [1, 6, 8]
    origin = metadata["imported_from"]
    assert (origin["program"], origin["version"]) == ("graph-pes", "0.9.9")
    assert len(origin["file_sha256"]) == 64
    assert not metadata.get("min_distance")  # unknown
    expected, forces, _ = arbiter(FULL, CRYSTAL)
    atoms = CRYSTAL.copy()
    atoms.calc = StudentCalculator(target)
    limit = 1e-11 if dtype == "float64" else 1e-5
    assert atoms.get_potential_energy() == pytest.approx(expected, rel=limit)
    largest = np.abs(forces).max()
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=10 * limit * largest)


def test_command_line_wants_the_unit(tmp_path, graph_pes):
    source = write(graph_pes, FULL, tmp_path / "model.pt")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "student.pt")])
    assert result.exit_code == 2
    assert "--energy-unit" in result.output
    assert not (tmp_path / "student.pt").exists()


# --- refusals -----------------------------------------------------------------------------------


def _swap(model, path, value):
    *parents, name = path.split(".")
    for parent in parents:
        model = getattr(model, parent)
    setattr(model, name, value)


FILTERS = "models.model.interactions.0.filter_generator"
SECOND = "models.model.interactions.1.filter_generator.components.1"


def _other(kind):
    def change(g, model):
        return sum_of(g, {"a": g.term(NAMES + kind, 3.0), "b": model})

    return change


def _set(path, value):
    def change(g, model):
        _swap(model, path, value)
        return model

    return change


def _more(count, make):
    return lambda g, model: sum_of(g, {**{f"x{k}": make(g) for k in range(count)}, "b": model})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, m: g.term(NAMES + "schnet.SchNet", 4.0), "'model' is a .*SchNet, expected PaiNN"),
        (_other("e3nn.nequip.NequIP"), "'a' is a graph_pes.models.e3nn.nequip.NequIP, expected"),
        (_other("e3nn.mace.MACE"), "MACE, expected"),
        (_other("tensornet.TensorNet"), "TensorNet, expected"),
        (_other("pairwise.LennardJones"), "LennardJones, expected"),
        (_other("pairwise.Morse"), "Morse, expected"),
        (_other("unit_converter.UnitConverter"), "UnitConverter, expected"),
        (_other("scripted.ScriptedModel"), "ScriptedModel, expected"),
        (_other("pairwise.SmoothedPairPotential"), "'a' is a SmoothedPairPotential, whose switch"),
        (lambda g, m: sum_of(g, {"b": m, "a": g.term("mine.PaiNN", 3.0)}), "'a' is a mine.PaiNN"),
        (_more(1, lambda g: painn_of(g, Spec())), "expected one PaiNN"),
        (_more(1, lambda g: zbl_of(g, ZBL)), "PaiNN and at most one ZBLCoreRepulsion"),
        (lambda g, m: sum_of(g, {"a": offset_of(g, {1: 1.0})}), "LearnableOffset, expected one PaiNN"),
        (_set("models.core.cutoff", torch.tensor(6.0)), "cutoff 6.0, beyond PaiNN's 4.1"),
        (_set("models.model.cutoff", torch.tensor(3.0)), "less than its envelope's 4.1"),
        (_set("models.model.implemented_properties", ["local_energies", "forces"]), "predicts"),
        (_set("models.model.read_out.activation", nn.Tanh()), "read_out has .*Tanh, expected SiLU"),
        (_set("models.model.updates.1.mlp.activate_last", True), "updates.1.mlp has"),
        (_set(f"{FILTERS}.components.1", nn.Tanh()), "filters of Sequential, Tanh, Bessel, Linear"),
        (_set(f"{FILTERS}.components.0.0", nn.Tanh()), "filters of .*PolynomialEnvelope, Tanh"),
        (_set(f"{FILTERS}.left_aligned", True), "interaction 0 has filters"),
        (_set(f"{SECOND}.cutoff", 3.9), "envelopes differ between interactions"),
        (_set(f"{SECOND}.coefficients", torch.tensor([-1.0, 0.0, 0.0])), "expected PolynomialEnv"),
        (_set("models.model.extra", nn.Linear(2, 2)), "has extra.bias, extra.weight, which"),
        (_set("models.model.updates.2", nn.Linear(2, 2)), "has updates.2.bias"),
        (_set("models.core.pre_factor", nn.Parameter(torch.tensor(float("nan")))), "not finite"),
        (_set("models.model.updates.0.U._linear", nn.Linear(3, 3, bias=False)), "matrices of 16"),
        (_set("models.model.interactions.1.Phi.linear_layers.0", nn.Linear(3, 3)), "16 channels"),
        (_set("models.model.scaler", nn.Identity()), "lacks scaler.per_element_scaling"),
    ],
)  # fmt: skip
def test_what_a_student_lacks(tmp_path, graph_pes, change, message):
    torch.save(change(graph_pes, model_of(graph_pes, FULL)), tmp_path / "model.pt")
    with pytest.raises(InputError, match=message) as caught:
        import_model(tmp_path / "model.pt", energy_unit="eV")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["models.lj._log_sigma"], "models.lj._log_sigma, which is no part of PaiNN"),
        (["models.core.potential.ZBL_coeff"], "models.core.potential.ZBL_coeff, which is no part"),
        ([], "adds up nothing, expected one PaiNN"),
    ],
)
def test_state_dicts_of_other_models(tmp_path, names, message):
    state = {"cutoff": torch.tensor(5.0), "_extra_state": {"_GRAPH_PES_VERSION": "1.0.2"}}
    torch.save({**state, **{n: torch.ones(1) for n in names}}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=message):
        import_model(tmp_path / "state.pt", energy_unit="eV")


def test_deployed_models_are_named(tmp_path):
    """lammps_model.pt of graph-pes is TorchScript, and so is a student."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "lammps_model.pt")
    with pytest.raises(InputError, match=r"is a TorchScript file, expected a model of torch.save"):
        import_model(tmp_path / "lammps_model.pt", energy_unit="eV")


class _Malicious:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("where", ["attribute", "registered", "state", "root"])
def test_code_in_a_pickle_is_refused(tmp_path, graph_pes, where):
    mark = tmp_path / "executed"
    call = _Malicious(os.system, f"touch {mark}")
    model = model_of(graph_pes, FULL)
    if where == "attribute":
        model.models.model.channels = call
    elif where == "registered":
        model.models.model.z_embedding._embeddings.registered = call
    elif where == "state":
        model = {"state_dict": {**model.state_dict(), "x": call}}
    else:
        model = call
    torch.save(model, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"asks to call (posix|os|nt)\.system"):
        import_model(tmp_path / "bad.pt", energy_unit="eV")
    assert not mark.exists()


def test_nothing_of_graph_pes_is_imported(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        source = write(GraphPes(patch), FULL, tmp_path / "model.pt")
    assert not any(name.split(".")[0] == "graph_pes" for name in sys.modules)
    assert import_model(source, energy_unit="eV").elements == [1, 6, 8]
    assert not any(name.split(".")[0] == "graph_pes" for name in sys.modules)


def test_the_benchmark_says_what_it_needs(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "graph_pes.py"
    command = [sys.executable, str(script), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"expected water.pt and silica.pt in {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
