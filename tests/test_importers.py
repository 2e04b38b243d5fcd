"""Import of SchNetPack's PaiNN: exact, in any unit, and without running what a file asks for."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlff_distiller.errors import InputError
from mlff_distiller.export import load_exported, read_metadata
from mlff_distiller.importers import convert_model, import_model
from mlff_distiller.importers.inert_pickle import InertObject, read_torch_file
from mlff_distiller.models import StudentForceField
from mlff_distiller.units import energy_in_ev, length_in_angstrom

SHARED = Path(__file__).parents[2] / "shared" / "data" / "schnetpack_painn"


# --- a small SchNetPack: the same module tree and names, its own arithmetic --------------------


class _Dense(nn.Linear):
    def __init__(self, n_in, n_out, bias=True, activation=None):
        super().__init__(n_in, n_out, bias)
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(super().forward(x))


class _CosineCutoff(nn.Module):
    def __init__(self, cutoff):
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([cutoff]))

    def forward(self, d):
        return 0.5 * (torch.cos(d * np.pi / self.cutoff) + 1.0) * (d < self.cutoff)


class _MollifierCutoff(_CosineCutoff):
    def __init__(self, cutoff, eps=1e-7):
        super().__init__(cutoff)
        self.register_buffer("eps", torch.tensor([eps]))

    def forward(self, d):
        inside = d + self.eps < self.cutoff
        return torch.exp(1.0 - 1.0 / (1.0 - (d * inside / self.cutoff) ** 2)) * inside


class _SwitchFunction(nn.Module):
    def __init__(self, cutoff):
        super().__init__()
        self.register_buffer("switch_on", torch.tensor([0.4 * cutoff]))
        self.register_buffer("switch_off", torch.tensor([cutoff]))

    def forward(self, d):
        x = (d - self.switch_on) / (self.switch_off - self.switch_on)
        x = x.clamp(1e-3, 1.0 - 1e-3)  # exp(-1000) is 0
        falling, rising = torch.exp(-1.0 / (1.0 - x)), torch.exp(-1.0 / x)
        return falling / (falling + rising)


class _GaussianRBF(nn.Module):
    def __init__(self, n_rbf, cutoff):
        super().__init__()
        self.widths = nn.Parameter(torch.full((n_rbf,), cutoff / n_rbf))  # trainable=True
        self.offsets = nn.Parameter(torch.linspace(0.1, cutoff, n_rbf))

    def forward(self, d):
        return torch.exp(-0.5 / self.widths**2 * (d[..., None] - self.offsets) ** 2)


class _BesselRBF(nn.Module):
    def __init__(self, n_rbf, cutoff):
        super().__init__()
        self.register_buffer("freqs", torch.arange(1, n_rbf + 1) * np.pi / cutoff)

    def forward(self, d):
        return torch.sin(d[..., None] * self.freqs) / d[..., None]


class _PaiNNInteraction(nn.Module):
    def __init__(self, f, activation):
        super().__init__()
        self.interatomic_context_net = nn.Sequential(
            _Dense(f, f, activation=activation), _Dense(f, 3 * f)
        )


class _PaiNNMixing(nn.Module):
    def __init__(self, f, activation):
        super().__init__()
        self.intraatomic_context_net = nn.Sequential(
            _Dense(2 * f, f, activation=activation), _Dense(f, 3 * f)
        )
        self.mu_channel_mix = _Dense(f, 2 * f, bias=False)
        self.epsilon = 1e-8


class _PaiNN(nn.Module):
    def __init__(self, f, depth, basis, cutoff, shared_filters, shared_interactions, activation):
        super().__init__()
        self.n_atom_basis, self.n_interactions = f, depth
        self.radial_basis, self.cutoff_fn = basis, cutoff
        self.embedding = nn.Embedding(20, f)
        self.electronic_embeddings = nn.ModuleList()
        n_rbf = len(next(iter(basis.state_dict().values())))
        self.share_filters = shared_filters
        self.filter_net = _Dense(n_rbf, 3 * f * (1 if shared_filters else depth))
        copies = 1 if shared_interactions else depth
        blocks = [_PaiNNInteraction(f, activation) for _ in range(copies)]
        mixing = [_PaiNNMixing(f, activation) for _ in range(copies)]
        self.interactions = nn.ModuleList(blocks * (depth // copies))
        self.mixing = nn.ModuleList(mixing * (depth // copies))

    def forward(self, numbers, vectors, idx_i, idx_j):
        f, n = self.n_atom_basis, len(numbers)
        d = vectors.norm(dim=1)
        filters = self.filter_net(self.radial_basis(d)) * self.cutoff_fn(d)[:, None]
        q = self.embedding(numbers)
        mu = q.new_zeros(n, 3, f)
        for k, (block, mix) in enumerate(zip(self.interactions, self.mixing, strict=True)):
            w = filters if self.share_filters else filters[:, 3 * f * k : 3 * f * (k + 1)]
            x = w * block.interatomic_context_net(q)[idx_j]
            dmu = torch.einsum("ef,ec->ecf", x[:, f : 2 * f], vectors / d[:, None])
            dmu = dmu + x[:, None, 2 * f :] * mu[idx_j]
            q = q.index_add(0, idx_i, x[:, :f])
            mu = mu.index_add(0, idx_i, dmu)
            v, u = mix.mu_channel_mix(mu).split(f, dim=-1)
            norm = torch.sqrt((v**2).sum(1) + mix.epsilon)
            a = mix.intraatomic_context_net(torch.cat([q, norm], 1))
            q = q + a[:, :f] + a[:, 2 * f :] * (v * u).sum(1)
            mu = mu + a[:, None, f : 2 * f] * u
        return q


class _Atomwise(nn.Module):
    def __init__(self, f, hidden, activation, mode="sum"):
        super().__init__()
        self.output_key, self.aggregation_mode = "energy", mode
        self.outnet = nn.Sequential(_Dense(f, hidden, activation=activation), _Dense(hidden, 1))


class _Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy_key, self.required_derivatives = "energy", {"_positions"}


class _CastTo64(nn.Module):
    pass


class _ScaleProperty(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.input_key = self.output_key = "energy"
        self.register_buffer("scale", torch.tensor([scale]))


class _AddOffsets(nn.Module):
    def __init__(self, mean, atomrefs, extensive=True):
        super().__init__()
        self._property, self.is_extensive = "energy", extensive
        self.add_mean, self.add_atomrefs = mean is not None, atomrefs is not None
        refs = torch.zeros(20, dtype=torch.float64) if atomrefs is None else atomrefs
        self.register_buffer("atomref", refs)
        self.register_buffer("mean", torch.tensor(mean or 0.0, dtype=torch.float64))


class _NeuralNetworkPotential(nn.Module):
    def __init__(self, representation, output_modules, postprocessors):
        super().__init__()
        self.representation = representation
        self.output_modules = nn.ModuleList(output_modules)
        self.postprocessors = nn.ModuleList(postprocessors)
        self.do_postprocessing, self.spk_version = True, "2.9.9"

    def forward(self, numbers, vectors, idx_i, idx_j):
        q = self.representation(numbers, vectors, idx_i, idx_j)
        energy = self.output_modules[0].outnet(q).sum()
        for step in self.postprocessors:
            if isinstance(step, _ScaleProperty):
                energy = energy * step.scale[0]
            elif isinstance(step, _AddOffsets):
                energy = energy + step.mean * len(numbers) * step.add_mean
                energy = energy + step.atomref[numbers].sum() * step.add_atomrefs
        return energy


_HOMES = {
    "schnetpack.model.base": [_NeuralNetworkPotential],
    "schnetpack.representation.painn": [_PaiNN, _PaiNNInteraction, _PaiNNMixing],
    "schnetpack.nn.base": [_Dense],
    "schnetpack.nn.cutoff": [_CosineCutoff, _MollifierCutoff, _SwitchFunction],
    "schnetpack.nn.radial": [_GaussianRBF, _BesselRBF],
    "schnetpack.atomistic.atomwise": [_Atomwise],
    "schnetpack.atomistic.response": [_Forces],
    "schnetpack.transform.casting": [_CastTo64],
    "schnetpack.transform.atomistic": [_ScaleProperty, _AddOffsets],
}


@pytest.fixture
def schnetpack_names(monkeypatch):
    """Let the classes above pickle under SchNetPack's names; SchNetPack itself is never there."""
    own_names = {}
    for module, classes in _HOMES.items():
        names = module.split(".")
        for n in range(1, len(names) + 1):
            name = ".".join(names[:n])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for cls in classes:
            public = cls.__name__.lstrip("_")
            monkeypatch.setattr(cls, "__module__", module)
            own_names[cls], cls.__qualname__ = cls.__qualname__, public
            setattr(sys.modules[module], public, cls)
    yield
    for cls, name in own_names.items():
        cls.__qualname__ = name


def _fake(
    f=16,
    depth=2,
    n_rbf=7,
    basis=_GaussianRBF,
    cutoff=_CosineCutoff,
    radius=4.25,
    shared_filters=False,
    shared_interactions=False,
    hidden=None,
    activation=nn.functional.silu,
    mode="sum",
    postprocessors=(),
    epsilon=1e-8,
    seed=0,
):
    torch.manual_seed(seed)
    network = _PaiNN(
        f, depth, basis(n_rbf, radius), cutoff(radius), shared_filters, shared_interactions,
        activation,
    )  # fmt: skip
    for mixing in network.mixing:
        mixing.epsilon = epsilon
    head = _Atomwise(f, f // 2 if hidden is None else hidden, activation, mode)
    return _NeuralNetworkPotential(network, [head, _Forces()], postprocessors)


def _all_postprocessors():
    refs = torch.linspace(-900.0, 20.0, 20, dtype=torch.float64)
    return [_CastTo64(), _ScaleProperty(1.7), _AddOffsets(-3.25, refs)]


def _pairs(positions, cutoff):
    n = len(positions)
    i, j = np.where(~np.eye(n, dtype=bool))
    close = np.linalg.norm(positions[j] - positions[i], axis=1) < cutoff
    return torch.tensor(i[close]), torch.tensor(j[close])


def _reference(model, numbers, positions):
    """Energy and forces of the fake, in its own units, float64."""
    model = model.to(torch.float64)
    x = torch.tensor(positions, requires_grad=True)
    cutoff_fn = model.representation.cutoff_fn.state_dict()
    radius = float(cutoff_fn["cutoff" if "cutoff" in cutoff_fn else "switch_off"])
    idx_i, idx_j = _pairs(positions, radius)
    energy = model(torch.tensor(numbers), x[idx_j] - x[idx_i], idx_i, idx_j)
    (gradient,) = torch.autograd.grad(energy, x)
    return energy.item(), -gradient.numpy()


def _student(model: StudentForceField, numbers, positions):
    x = torch.tensor(positions, requires_grad=True)
    cell, pbc = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    energy = model(torch.tensor(numbers), x, cell, pbc)
    (gradient,) = torch.autograd.grad(energy, x)
    return energy.item(), -gradient.numpy()


NUMBERS = np.array([6, 8, 1, 1, 6, 8, 1])
POSITIONS = np.random.default_rng(3).normal(size=(7, 3)) * 1.6


def _assert_same(path, model, energy_unit="kcal/mol", length_unit="Ang", elements="H,C,O"):
    energy, forces = _reference(model, NUMBERS, POSITIONS)
    student = import_model(
        path, energy_unit=energy_unit, length_unit=length_unit, elements=elements
    )
    in_ev, in_angstrom = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    got_energy, got_forces = _student(student, NUMBERS, POSITIONS * in_angstrom)
    assert got_energy == pytest.approx(energy * in_ev, rel=1e-11)
    expected = forces * in_ev / in_angstrom
    assert np.abs(expected).max() > 1e-4 * in_ev
    np.testing.assert_allclose(got_forces, expected, rtol=1e-9, atol=1e-10 * in_ev)
    return student


# --- the real file ------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_model_of_its_authors():
    reference = np.load(SHARED / "reference_painn_2_float64.npz")
    student = import_model(
        SHARED / "rmd17_ethanol_painn_2.model", energy_unit="kcal/mol", elements="C,H,O"
    )
    assert student.elements == [1, 6, 8]
    unit = energy_in_ev("kcal/mol")
    numbers = reference["atomic_numbers"].astype(np.int64)
    largest = np.abs(reference["forces"]).max()
    for positions, energy, forces in zip(
        reference["positions"], reference["energy"], reference["forces"], strict=True
    ):
        got_energy, got_forces = _student(student, numbers, positions.astype(np.float64))
        assert got_energy == pytest.approx(float(np.squeeze(energy)) * unit, rel=1e-9)
        np.testing.assert_allclose(
            got_forces / unit, forces, rtol=1e-9, atol=1e-9 * largest, err_msg="forces"
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_needs_no_schnetpack():
    assert "schnetpack" not in sys.modules
    content = read_torch_file(SHARED / "rmd17_ethanol_painn_2.model")
    assert isinstance(content, InertObject)
    assert content.type_name == "schnetpack.model.base.NeuralNetworkPotential"
    assert not any(name.startswith("schnetpack") for name in sys.modules)


# --- every option -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"f": 24, "depth": 1, "n_rbf": 4},
        {"f": 8, "depth": 4, "radius": 3.0},
        {"f": 20, "depth": 2},  # padded to 24
        {"f": 13, "depth": 2, "hidden": 6},  # odd: padded to 16
        {"hidden": 3},  # a narrow readout
        {"hidden": 27},  # a wide one
        {"epsilon": 1e-4},
        {"cutoff": _MollifierCutoff},
        {"cutoff": _SwitchFunction},
        {"basis": _BesselRBF, "n_rbf": 1},
        {"basis": _BesselRBF},
        {"shared_filters": True},
        {"shared_interactions": True},
        {"shared_filters": True, "shared_interactions": True, "basis": _BesselRBF},
        {"activation": nn.SiLU()},
    ],
    ids=str,
)
def test_every_shape(tmp_path, schnetpack_names, options):
    model = _fake(postprocessors=_all_postprocessors(), **options)
    torch.save(model, tmp_path / "best_model")
    student = _assert_same(tmp_path / "best_model", model)
    assert student.config.hidden_dim % 8 == 0


@pytest.mark.parametrize(
    ("basis", "cutoff"), [(_GaussianRBF, _CosineCutoff), (_BesselRBF, _SwitchFunction)]
)
@pytest.mark.parametrize(
    ("energy_unit", "length_unit"), [("Hartree", "Bohr"), ("kJ/mol", "nm"), ("eV", "Ang")]
)
def test_units(tmp_path, schnetpack_names, basis, cutoff, energy_unit, length_unit):
    model = _fake(basis=basis, cutoff=cutoff, postprocessors=_all_postprocessors())
    torch.save(model, tmp_path / "best_model")
    student = _assert_same(tmp_path / "best_model", model, energy_unit, length_unit)
    assert student.cutoff == pytest.approx(4.25 * length_in_angstrom(length_unit), rel=1e-12)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [_AddOffsets(-7.5, None)],
        [_AddOffsets(None, torch.linspace(1, 5, 20, dtype=torch.float64))],
        [_AddOffsets(2.0, None), _ScaleProperty(0.5)],  # the order matters
        [_ScaleProperty(0.5), _AddOffsets(2.0, None)],
    ],
)
def test_offsets_and_scales(tmp_path, schnetpack_names, steps):
    model = _fake(postprocessors=steps)
    torch.save(model, tmp_path / "best_model")
    _assert_same(tmp_path / "best_model", model)


def test_postprocessing_turned_off(tmp_path, schnetpack_names):
    model = _fake(postprocessors=_all_postprocessors())
    model.do_postprocessing = False
    torch.save(model, tmp_path / "best_model")
    model.postprocessors = nn.ModuleList()
    _assert_same(tmp_path / "best_model", model)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_state_dicts(tmp_path, prefix):
    offsets = _AddOffsets(-3.0, torch.linspace(-9.0, 2.0, 20, dtype=torch.float64))
    model = _fake(postprocessors=[_CastTo64(), offsets], shared_interactions=True)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if prefix else state, tmp_path / "state.pt")
    _assert_same(tmp_path / "state.pt", model)


def test_elements(tmp_path, schnetpack_names):
    refs = torch.zeros(20, dtype=torch.float64)
    refs[[1, 6, 8]] = torch.tensor([-0.5, -37.0, -75.0], dtype=torch.float64)
    torch.save(_fake(postprocessors=[_AddOffsets(None, refs)]), tmp_path / "refs")
    torch.save(_fake(), tmp_path / "plain")
    read = functools.partial(import_model, energy_unit="eV")
    assert read(tmp_path / "refs").elements == [1, 6, 8]
    with pytest.warns(UserWarning, match="--elements"):
        assert read(tmp_path / "plain").elements == list(range(1, 20))
    assert read(tmp_path / "plain", elements=["O", 1, "o"]).elements == [1, 8]
    for wrong in ("C,Xx", "U", [0], [25]):
        with pytest.raises(InputError, match="is not among"):
            read(tmp_path / "plain", elements=wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convert_writes_a_student(tmp_path, schnetpack_names, dtype):
    model = _fake(postprocessors=_all_postprocessors())
    torch.save(model, tmp_path / "best_model")
    convert_model(
        tmp_path / "best_model", tmp_path / "student.pt", "kcal/mol", "Ang", "C,H,O", dtype
    )
    metadata = read_metadata(tmp_path / "student.pt")
    assert metadata["dtype"] == dtype
    assert metadata["elements"] == [1, 6, 8]
    assert metadata["imported_from"]["version"] == "2.9.9"
    energy, _ = _reference(model, NUMBERS, POSITIONS)
    got = load_exported(tmp_path / "student.pt")(
        torch.tensor(NUMBERS),
        torch.tensor(POSITIONS).to(getattr(torch, dtype)),
        torch.zeros(3, 3, dtype=getattr(torch, dtype)),
        torch.zeros(3, dtype=torch.bool),
    ).item()  # fmt: skip
    limit = 1e-11 if dtype == "float64" else 1e-6
    assert got == pytest.approx(energy * energy_in_ev("kcal/mol"), rel=limit)
    with pytest.raises(InputError, match="dtype"):
        convert_model(tmp_path / "best_model", tmp_path / "x.pt", "eV", dtype="float16")


def test_command_line(tmp_path, schnetpack_names):
    """`convert`: the unit is needed, the elements are asked for."""
    from typer.testing import CliRunner

    from mlff_distiller.cli import app

    def run(*arguments):
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    source, target = tmp_path / "best_model", tmp_path / "student.pt"
    torch.save(_fake(), source)
    result = run(source, target)
    assert result.exit_code == 2
    assert "--energy-unit" in result.output
    result = run(source, tmp_path / "data.h5", "--energy-unit", "eV")
    assert result.exit_code == 2
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.h5"))
    result = run(source, target, "--energy-unit", "eV", "--elements", "C,H", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    assert read_metadata(target)["elements"] == [1, 6]
    result = run(source, target, "--energy-unit", "eV")
    assert result.exit_code == 0
    assert "warning" in result.output


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": lambda _: nn.Tanh()}, "cutoff function Tanh, expected one of CosineCutoff"),
        ({"cutoff": lambda c: _MollifierCutoff(c, 0.1)}, "eps 0.1.*thousandth of the cutoff"),
        ({"activation": nn.functional.tanh}, "expected silu"),
        ({"epsilon": 0.0}, "epsilon 0.0, expected one number > 0"),
        ({"mode": "avg"}, "aggregation_mode 'avg'"),
        ({"postprocessors": [_AddOffsets(1.0, None, extensive=False)]}, "is_extensive"),
        ({"postprocessors": [nn.Tanh()]}, "postprocessor torch.nn.modules.activation.Tanh"),
    ],
)
def test_options_that_a_student_lacks(tmp_path, schnetpack_names, options, message):
    torch.save(_fake(**options), tmp_path / "best_model")
    with pytest.raises(InputError, match=message):
        import_model(tmp_path / "best_model", energy_unit="eV", elements="H")


def test_other_contents(tmp_path, schnetpack_names):
    read = functools.partial(import_model, tmp_path / "file", energy_unit="eV", elements="H")
    with pytest.raises(InputError, match="no such file"):
        read()
    torch.save(nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(InputError, match="expected a trained PaiNN of SchNetPack"):
        read()
    model = _fake()
    model.representation = nn.Linear(2, 2)
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="expected SchNetPack's PaiNN"):
        read()
    model = _fake()
    model.representation.mixing[1].epsilon = 1e-6
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="expected one number > 0 for all layers"):
        read()
    torch.save({"a": torch.ones(2)}, tmp_path / "file")
    with pytest.raises(InputError, match="embedding"):
        read()
    torch.save(3.0, tmp_path / "file")
    with pytest.raises(InputError, match="float"):
        read()
    model = _fake()
    model.representation.electronic_embeddings.append(nn.Linear(2, 2))
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="electronic"):
        read()
    model = _fake()
    model.representation.filter_net.weight.data[0, 0] = float("nan")
    torch.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="finite"):
        read()
    with pytest.raises(InputError, match="unit"):
        import_model(tmp_path / "file", energy_unit="calories")


def test_damaged_files(tmp_path, schnetpack_names):
    torch.save(_fake(), tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 5):
        (tmp_path / "bad").write_bytes(data[:cut])
        with pytest.raises(InputError):
            read_torch_file(tmp_path / "bad")
    middle = bytearray(data)
    middle[len(data) // 2] ^= 0xFF  # the zip's checksum notices
    (tmp_path / "bad").write_bytes(middle)
    with pytest.raises(InputError):
        read_torch_file(tmp_path / "bad")


class _Malicious:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def _write_archive(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("where", ["top", "inside", "in a list"])
def test_code_in_a_pickle_is_refused(tmp_path, where):
    mark = tmp_path / "executed"
    call = _Malicious(os.system, f"touch {mark}")
    content = {"top": call, "inside": {"state_dict": {"x": call}}, "in a list": [1, [call]]}[where]
    _write_archive(tmp_path / "bad", content)
    with pytest.raises(InputError, match=r"call (posix|os|nt)\.system"):
        import_model(tmp_path / "bad", energy_unit="eV")
    assert not mark.exists()
    _write_archive(tmp_path / "bad", [_Malicious(eval, "open('x', 'w')")])
    with pytest.raises(InputError, match=r"eval"):
        read_torch_file(tmp_path / "bad")
    _write_archive(tmp_path / "bad", [_Malicious(getattr, nn.Linear, "mro")])
    with pytest.raises(InputError, match=r"getattr"):
        read_torch_file(tmp_path / "bad")


def test_a_file_cannot_alter_what_reads_it(tmp_path):
    """BUILD with a slot state is pickle's setattr; it must not reach the reader's own objects."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x09\x00\x00\x00_functioncos\nsystem\ns\x86b."
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        archive.writestr("model/data.pkl", program)
    with contextlib.suppress(InputError):
        read_torch_file(tmp_path / "bad")
    torch.save({"x": torch.arange(6).view(2, 3).T}, tmp_path / "good")
    assert torch.equal(read_torch_file(tmp_path / "good")["x"], torch.arange(6).view(2, 3).T)


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((1 << 40,), (1,), 0), ((2,), (1,), 3), ((4,), (-1,), 3)]
)
def test_a_tensor_stays_inside_its_storage(tmp_path, size, stride, offset):
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return (
                ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(obj, Storage) else None
            )

    build = torch._utils._rebuild_tensor_v2
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        with archive.open("model/data.pkl", "w") as file:
            args = (Storage(), offset, size, stride, False, collections.OrderedDict())
            Pickler(file, protocol=2).dump(_Malicious(build, *args))
        archive.writestr("model/data/0", np.zeros(4, "<f4").tobytes())
    with pytest.raises(InputError, match="damaged"):
        read_torch_file(tmp_path / "bad")
