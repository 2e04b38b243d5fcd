"""Files under graph-pes' class names, which is not installed, for tests of the importer.

A :class:`Spec` says what the model is and has its weights; :func:`model_of` builds modules that pickle as
graph-pes' own do. None of them can be evaluated.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Spec:
    """A model of graph-pes, and how it is put together."""

    channels: int = 16
    layers: int = 2
    radial: int = 5
    cutoff: float = 4.1  # no number of float32
    p: int = 6
    zbl: dict | None = None  # cutoff, pre_factor, exponent
    offsets: tuple[dict[int, float], ...] = ()
    scales: dict[int, float] = field(default_factory=lambda: {1: 1.5, 6: 0.7, 8: -2.0})
    registered: frozenset[int] = frozenset()
    layout: str = "sum"  # or bare, reversed, nested
    seed: int = 0

    @property
    def weights(self):
        """By the names of graph-pes, float32."""
        torch.manual_seed(self.seed)
        f, w = self.channels, {"embedding": torch.randn(119, self.channels)}

        def linear(name, n_in, n_out, bias=True):
            w[f"{name}.weight"] = 0.7 * torch.randn(n_out, n_in) / n_in**0.5
            if bias:
                w[f"{name}.bias"] = 0.2 * torch.randn(n_out)

        for k in range(self.layers):
            orders = torch.arange(1, self.radial + 1) + 0.4 * torch.randn(self.radial)
            w[f"{k}.frequencies"] = orders * np.pi / self.cutoff
            linear(f"{k}.filter", self.radial, 3 * f)
            linear(f"{k}.phi.0", f, f)
            linear(f"{k}.phi.1", f, 3 * f)
            linear(f"{k}.U", f, f, bias=False)
            linear(f"{k}.V", f, f, bias=False)
            linear(f"{k}.mlp.0", 2 * f, f)
            linear(f"{k}.mlp.1", f, 3 * f)
        linear("readout.0", f, f)
        linear("readout.1", f, 1)
        return w


ZBL = {"cutoff": 4.1, "pre_factor": 0.31, "exponent": -0.12}  # pre-factor and exponent as trained


class GraphPes:
    """Classes under the names of graph-pes, made as they are asked for."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.home("graph_pes.utils.nn")._rebuild_per_element_parameter = _must_not_run
        self.monkeypatch.setattr(_must_not_run, "__module__", "graph_pes.utils.nn")
        self.monkeypatch.setattr(_must_not_run, "__qualname__", "_rebuild_per_element_parameter")

    def home(self, name):
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            parent = ".".join(parts[:n])
            if parent not in sys.modules:
                self.monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        return sys.modules[name]

    def make(self, path, modules=None, parameters=None, buffers=None, **attributes):
        """A module of the class ``path`` with these members."""
        module, name = path.rsplit(".", 1)
        home = self.home(module)
        if not hasattr(home, name):
            setattr(home, name, type(name, (nn.Module,), {"__module__": module}))
        made = getattr(home, name)()
        for key, value in (modules or {}).items():
            made.add_module(key, value)
        for key, value in (parameters or {}).items():
            made.register_parameter(key, value)
        for key, value in (buffers or {}).items():
            made.register_buffer(key, value)
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    def series(self, path, members):
        return self.make(path, modules={str(k): m for k, m in enumerate(members)})

    def term(self, path, cutoff, **members):
        """One of its models, with what all of them have."""
        buffers = {
            "cutoff": torch.tensor(cutoff),
            "_has_been_pre_fit": torch.tensor(1),
            "three_body_cutoff": torch.tensor(0),
            **members.pop("buffers", {}),
        }
        return self.make(
            path,
            buffers=buffers,
            **members,
            implemented_properties=["local_energies"],
            _GRAPH_PES_VERSION="0.9.9",
        )


def _must_not_run(*_):
    raise AssertionError("a function that the file names was called")


class _PerElementParameter(nn.Parameter):
    """Pickles as graph-pes' does."""

    def __new__(cls, data, registered=()):
        made = super().__new__(cls, data)
        made.registered = set(registered)
        return made

    def __reduce_ex__(self, _):
        state = {
            "_is_per_element_param": True,
            "_accessed_Zs": self.registered,
            "_index_dims": 1,
        }
        return _must_not_run, (self.data, True, state)


NAMES = "graph_pes.models."
LISTS = "graph_pes.utils.nn.UniformModuleList"


def _per_element(values, default, registered=()):
    data = torch.full((119, 1), default)
    for z, value in values.items():
        data[z] = value
    return _PerElementParameter(data, registered)


def _linear(w, name):
    weight = w[f"{name}.weight"]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{name}.bias" in w)
    made.load_state_dict({k.rsplit(".")[-1]: v for k, v in w.items() if k.startswith(f"{name}.")})
    return made


def painn_of(g, spec):
    w = spec.weights

    def mlp(name):
        layers = g.series("torch.nn.ModuleList", [_linear(w, f"{name}.{k}") for k in (0, 1)])
        return g.make(
            "graph_pes.utils.nn.MLP",
            modules={"activation": nn.SiLU(), "linear_layers": layers},
            activate_last=False,
        )

    def interaction(k):
        bessel = g.make(
            NAMES + "components.distances.Bessel",
            parameters={"frequencies": nn.Parameter(w[f"{k}.frequencies"])},
            buffers={"cutoff": torch.tensor(spec.cutoff)},
            pre_factor=torch.tensor(2.0 / spec.cutoff).sqrt(),
        )
        p = spec.p
        numbers = [-(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2]
        envelope = g.make(
            NAMES + "components.distances.PolynomialEnvelope",
            buffers={
                "coefficients": torch.tensor(numbers),
                "powers": torch.arange(p, p + 3),
            },
            cutoff=spec.cutoff,
            p=p,
        )
        components = nn.ModuleList([nn.Sequential(bessel, _linear(w, f"{k}.filter")), envelope])
        product = g.make(
            "graph_pes.utils.nn.HaddamardProduct",
            modules={"components": components},
            left_aligned=False,
        )
        modules = {"filter_generator": product, "Phi": mlp(f"{k}.phi")}
        return g.make(NAMES + "painn.Interaction", modules=modules)

    def update(k):
        modules = {
            x: g.make(NAMES + "painn.VectorLinear", modules={"_linear": _linear(w, f"{k}.{x}")})
            for x in "UV"
        }
        return g.make(NAMES + "painn.Update", modules={**modules, "mlp": mlp(f"{k}.mlp")})

    embedding = _PerElementParameter(w["embedding"], spec.registered)
    scaling = _per_element(spec.scales, 1.0, spec.registered)
    modules = {
        "z_embedding": g.make(
            "graph_pes.utils.nn.PerElementEmbedding", parameters={"_embeddings": embedding}
        ),
        "interactions": g.series(LISTS, [interaction(k) for k in range(spec.layers)]),
        "updates": g.series(LISTS, [update(k) for k in range(spec.layers)]),
        "read_out": mlp("readout"),
        "scaler": g.make(
            NAMES + "components.scaling.LocalEnergiesScaler",
            parameters={"per_element_scaling": scaling},
        ),
    }
    return g.term(NAMES + "painn.PaiNN", spec.cutoff, modules=modules)


def zbl_of(g, zbl):
    names = ("pre_factor", "exponent")
    return g.term(
        NAMES + "pairwise.ZBLCoreRepulsion",
        zbl["cutoff"],
        parameters={name: nn.Parameter(torch.tensor(zbl[name])) for name in names},
        buffers={
            "ZBL_coeff": torch.tensor([0.1818, 0.5099, 0.2802, 0.02817]),
            "ZBL_exp": torch.tensor([-3.2, -0.9423, -0.4029, -0.2016]),
        },
    )


def offset_of(g, values, kind="LearnableOffset"):
    extra = {"_pre_specified_Zs": torch.zeros(0, dtype=torch.int64)}
    return g.term(
        f"{NAMES}offsets.{kind}",
        0,
        parameters={"_offsets": _per_element(values, 0.0)},
        buffers=extra if kind == "LearnableOffset" else {},
    )


def sum_of(g, models):
    members = g.make("graph_pes.utils.nn.UniformModuleDict", modules=models)
    same = {"_all_models_same_properties": torch.tensor(True)}
    cutoff = max(float(m.cutoff) for m in models.values())
    return g.term(
        NAMES + "addition.AdditionModel", cutoff, modules={"models": members}, buffers=same
    )


def model_of(g, spec):
    painn = painn_of(g, spec)
    if spec.layout == "bare":
        return painn
    kinds = ("LearnableOffset", "FixedOffset", "EnergyOffset")
    others = {f"E{k}": offset_of(g, values, kinds[k % 3]) for k, values in enumerate(spec.offsets)}
    if spec.zbl:
        others["core"] = zbl_of(g, spec.zbl)
    if spec.layout == "nested":
        return sum_of(g, {"inner": sum_of(g, {**others, "net": painn}), "0": offset_of(g, {})})
    if spec.layout == "reversed":
        return sum_of(g, {"many_body": painn, **dict(reversed(others.items()))})
    return sum_of(g, {**others, "model": painn})


def write(g, spec, path):
    torch.save(model_of(g, spec), path)
    return path
