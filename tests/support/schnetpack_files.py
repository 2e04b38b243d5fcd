"""A small SchNetPack: the same module tree and names, its own arithmetic, for tests of the importer."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from mlff_distiller.importers import import_model
from mlff_distiller.models import StudentForceField
from mlff_distiller.units import energy_in_ev, length_in_angstrom


class Dense(nn.Linear):
    def __init__(self, n_in, n_out, bias=True, activation=None):
        super().__init__(n_in, n_out, bias)
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(super().forward(x))


class CosineCutoff(nn.Module):
    def __init__(self, cutoff):
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([cutoff]))

    def forward(self, d):
        return 0.5 * (torch.cos(d * np.pi / self.cutoff) + 1.0) * (d < self.cutoff)


class MollifierCutoff(CosineCutoff):
    def __init__(self, cutoff, eps=1e-7):
        super().__init__(cutoff)
        self.register_buffer("eps", torch.tensor([eps]))

    def forward(self, d):
        inside = d + self.eps < self.cutoff
        return torch.exp(1.0 - 1.0 / (1.0 - (d * inside / self.cutoff) ** 2)) * inside


class SwitchFunction(nn.Module):
    def __init__(self, cutoff):
        super().__init__()
        self.register_buffer("switch_on", torch.tensor([0.4 * cutoff]))
        self.register_buffer("switch_off", torch.tensor([cutoff]))

    def forward(self, d):
        x = (d - self.switch_on) / (self.switch_off - self.switch_on)
        x = x.clamp(1e-3, 1.0 - 1e-3)  # exp(-1000) is 0
        falling, rising = torch.exp(-1.0 / (1.0 - x)), torch.exp(-1.0 / x)
        return falling / (falling + rising)


class GaussianRBF(nn.Module):
    def __init__(self, n_rbf, cutoff):
        super().__init__()
        self.widths = nn.Parameter(torch.full((n_rbf,), cutoff / n_rbf))  # trainable=True
        self.offsets = nn.Parameter(torch.linspace(0.1, cutoff, n_rbf))

    def forward(self, d):
        return torch.exp(-0.5 / self.widths**2 * (d[..., None] - self.offsets) ** 2)


class BesselRBF(nn.Module):
    def __init__(self, n_rbf, cutoff):
        super().__init__()
        self.register_buffer("freqs", torch.arange(1, n_rbf + 1) * np.pi / cutoff)

    def forward(self, d):
        return torch.sin(d[..., None] * self.freqs) / d[..., None]


class PaiNNInteraction(nn.Module):
    def __init__(self, f, activation):
        super().__init__()
        self.interatomic_context_net = nn.Sequential(
            Dense(f, f, activation=activation), Dense(f, 3 * f)
        )


class PaiNNMixing(nn.Module):
    def __init__(self, f, activation):
        super().__init__()
        self.intraatomic_context_net = nn.Sequential(
            Dense(2 * f, f, activation=activation), Dense(f, 3 * f)
        )
        self.mu_channel_mix = Dense(f, 2 * f, bias=False)
        self.epsilon = 1e-8


class PaiNN(nn.Module):
    def __init__(self, f, depth, basis, cutoff, shared_filters, shared_interactions, activation):
        super().__init__()
        self.n_atom_basis, self.n_interactions = f, depth
        self.radial_basis, self.cutoff_fn = basis, cutoff
        self.embedding = nn.Embedding(20, f)
        self.electronic_embeddings = nn.ModuleList()
        n_rbf = len(next(iter(basis.state_dict().values())))
        self.share_filters = shared_filters
        self.filter_net = Dense(n_rbf, 3 * f * (1 if shared_filters else depth))
        copies = 1 if shared_interactions else depth
        blocks = [PaiNNInteraction(f, activation) for _ in range(copies)]
        mixing = [PaiNNMixing(f, activation) for _ in range(copies)]
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


class Atomwise(nn.Module):
    def __init__(self, f, hidden, activation, mode="sum"):
        super().__init__()
        self.output_key, self.aggregation_mode = "energy", mode
        self.outnet = nn.Sequential(Dense(f, hidden, activation=activation), Dense(hidden, 1))


class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy_key, self.required_derivatives = "energy", {"_positions"}


class CastTo64(nn.Module):
    pass


class ScaleProperty(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.input_key = self.output_key = "energy"
        self.register_buffer("scale", torch.tensor([scale]))


class AddOffsets(nn.Module):
    def __init__(self, mean, atomrefs, extensive=True):
        super().__init__()
        self._property, self.is_extensive = "energy", extensive
        self.add_mean, self.add_atomrefs = mean is not None, atomrefs is not None
        refs = torch.zeros(20, dtype=torch.float64) if atomrefs is None else atomrefs
        self.register_buffer("atomref", refs)
        self.register_buffer("mean", torch.tensor(mean or 0.0, dtype=torch.float64))


class NeuralNetworkPotential(nn.Module):
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
            if isinstance(step, ScaleProperty):
                energy = energy * step.scale[0]
            elif isinstance(step, AddOffsets):
                energy = energy + step.mean * len(numbers) * step.add_mean
                energy = energy + step.atomref[numbers].sum() * step.add_atomrefs
        return energy


HOMES = {
    "schnetpack.model.base": [NeuralNetworkPotential],
    "schnetpack.representation.painn": [PaiNN, PaiNNInteraction, PaiNNMixing],
    "schnetpack.nn.base": [Dense],
    "schnetpack.nn.cutoff": [CosineCutoff, MollifierCutoff, SwitchFunction],
    "schnetpack.nn.radial": [GaussianRBF, BesselRBF],
    "schnetpack.atomistic.atomwise": [Atomwise],
    "schnetpack.atomistic.response": [Forces],
    "schnetpack.transform.casting": [CastTo64],
    "schnetpack.transform.atomistic": [ScaleProperty, AddOffsets],
}


def under_schnetpack_names(monkeypatch):
    """Let the classes above pickle under SchNetPack's names; SchNetPack itself is never there."""
    own_names = {}
    for module, classes in HOMES.items():
        names = module.split(".")
        for n in range(1, len(names) + 1):
            name = ".".join(names[:n])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for cls in classes:
            public = cls.__name__
            monkeypatch.setattr(cls, "__module__", module)
            own_names[cls], cls.__qualname__ = cls.__qualname__, public
            setattr(sys.modules[module], public, cls)
    yield
    for cls, name in own_names.items():
        cls.__qualname__ = name


def fake_model(
    f=16,
    depth=2,
    n_rbf=7,
    basis=GaussianRBF,
    cutoff=CosineCutoff,
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
    network = PaiNN(
        f, depth, basis(n_rbf, radius), cutoff(radius), shared_filters, shared_interactions,
        activation,
    )  # fmt: skip
    for mixing in network.mixing:
        mixing.epsilon = epsilon
    head = Atomwise(f, f // 2 if hidden is None else hidden, activation, mode)
    return NeuralNetworkPotential(network, [head, Forces()], postprocessors)


def all_postprocessors():
    refs = torch.linspace(-900.0, 20.0, 20, dtype=torch.float64)
    return [CastTo64(), ScaleProperty(1.7), AddOffsets(-3.25, refs)]


def pairs_within(positions, cutoff):
    n = len(positions)
    i, j = np.where(~np.eye(n, dtype=bool))
    close = np.linalg.norm(positions[j] - positions[i], axis=1) < cutoff
    return torch.tensor(i[close]), torch.tensor(j[close])


def evaluate_fake(model, numbers, positions):
    """Energy and forces of the fake, in its own units, float64."""
    model = model.to(torch.float64)
    x = torch.tensor(positions, requires_grad=True)
    cutoff_fn = model.representation.cutoff_fn.state_dict()
    radius = float(cutoff_fn["cutoff" if "cutoff" in cutoff_fn else "switch_off"])
    idx_i, idx_j = pairs_within(positions, radius)
    energy = model(torch.tensor(numbers), x[idx_j] - x[idx_i], idx_i, idx_j)
    (gradient,) = torch.autograd.grad(energy, x)
    return energy.item(), -gradient.numpy()


def evaluate_student(model: StudentForceField, numbers, positions):
    x = torch.tensor(positions, requires_grad=True)
    cell, pbc = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    energy = model(torch.tensor(numbers), x, cell, pbc)
    (gradient,) = torch.autograd.grad(energy, x)
    return energy.item(), -gradient.numpy()


NUMBERS = np.array([6, 8, 1, 1, 6, 8, 1])
POSITIONS = np.random.default_rng(3).normal(size=(7, 3)) * 1.6


def assert_same(path, model, energy_unit="kcal/mol", length_unit="Ang", elements="H,C,O"):
    energy, forces = evaluate_fake(model, NUMBERS, POSITIONS)
    student = import_model(
        path, energy_unit=energy_unit, length_unit=length_unit, elements=elements
    )
    in_ev, in_angstrom = energy_in_ev(energy_unit), length_in_angstrom(length_unit)
    got_energy, got_forces = evaluate_student(student, NUMBERS, POSITIONS * in_angstrom)
    assert got_energy == pytest.approx(energy * in_ev, rel=1e-11)
    expected = forces * in_ev / in_angstrom
    assert np.abs(expected).max() > 1e-4 * in_ev
    np.testing.assert_allclose(got_forces, expected, rtol=1e-9, atol=1e-10 * in_ev)
    return student
