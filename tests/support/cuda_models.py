"""Students and comparisons of the tests of the GPU engine."""

from __future__ import annotations

import numpy as np

from mlff_distiller.ops.engine import NativePotential
from support.students import export_to

MODELS = {
    "default": {"hidden_dim": 128, "num_interactions": 3, "num_rbf": 20, "cutoff": 5.0},
    "one": {"hidden_dim": 8, "num_interactions": 1, "num_rbf": 6, "cutoff": 3.0},
    "odd": {"hidden_dim": 40, "num_interactions": 2, "num_rbf": 8, "cutoff": 4.5, "rbf": "bessel"},
    "zbl": {"hidden_dim": 64, "num_interactions": 3, "num_rbf": 10, "cutoff": 4.0, "zbl": True},
    "wide": {"hidden_dim": 256, "num_interactions": 2, "num_rbf": 6, "cutoff": 3.5},
    "paper": {"hidden_dim": 40, "cutoff": 3.5, "norm": "paper", "cutoff_function": "cosine"},
    "other": {
        "hidden_dim": 32,
        "num_interactions": 2,
        "num_rbf": 9,
        "cutoff": 3.5,
        "readout_dim": 40,
        "rbf": "chebyshev",
        "rbf_per_interaction": True,
        "cutoff_function": "mollifier",
        "norm_scale": 0.2,
        "zbl": True,
        "zbl_switched": False,
    },
}


def export_models(folder):
    """Paths of the exported students, by name."""
    return {name: export_to(folder, **config)[1] for name, config in MODELS.items()}


def compute(potential, system, atom_virials=False):
    numbers, positions, cell, pbc = system
    return potential.compute(
        np.asarray(numbers, np.int64), positions, cell, pbc, True, atom_virials
    )


def cpu(path, system, **options):
    numbers, positions, cell, pbc = system
    potential = NativePotential(path, dtype="float64", threads=1, **options)
    return potential.compute(numbers, positions, cell, pbc, atom_virials=True)


def assert_agree(got, want, dtype, n, scale=1.0):
    energy, force = (1e-6 * scale, 1e-5 * scale) if dtype == "float32" else (1e-10, 1e-11)
    assert abs(got["energy"] - want["energy"]) <= energy * max(n, 1)
    for key in ("energies", "forces", "virial", "atom_virials"):
        if key in got:
            scale = max(n, 1) if key == "virial" else 1
            # 1e-6 is for averages over atoms; single ones scatter
            limit = 5 * energy if key == "energies" else force * scale
            # reference energies of 1e3 eV leave 1e-13 relative
            np.testing.assert_allclose(got[key], want[key], atol=limit, rtol=1e-6 * force)
