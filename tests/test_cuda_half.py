"""``math half``: slopes of the filter table in float16, and forces that are still exact derivatives."""

import numpy as np
import pytest
from support.cuda_models import MODELS, compute, cpu, export_models
from support.systems import SYSTEMS
from test_cuda_engine import SHAPES

#: Of energies of atoms, eV, and of forces, eV/Å, where the largest force is 1 eV/Å.
LIMIT = 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return export_models(tmp_path_factory.mktemp("models"))


def assert_near(got, want):
    scale = max(1.0, float(np.abs(want["forces"]).max(initial=0)))
    for key in ("energies", "forces", "atom_virials"):
        np.testing.assert_allclose(got[key], want[key], atol=LIMIT * scale, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_is_near_the_cpu_engine(gpu, models, name):
    potential = gpu.GpuPotential(models[name], math="half")
    for label, make in SYSTEMS.items():
        if name == "wide" and label != "skewed":
            continue
        system = make()
        assert_near(compute(potential, system, atom_virials=True), cpu(models[name], system))


@pytest.mark.parametrize("make", SHAPES)
def test_shapes_at_the_edge(gpu, models, make):
    system = make()
    potential = gpu.GpuPotential(models["zbl"], math="half")
    assert_near(compute(potential, system, atom_virials=True), cpu(models["zbl"], system))


def test_same_bits_under_every_schedule(gpu, models):
    results = []
    for seed in range(4):
        gpu.set_schedule(seed)
        results.append(compute(gpu.GpuPotential(models["odd"], math="half"), SYSTEMS["skewed"]()))
    for other in results[1:]:
        assert np.array_equal(results[0]["forces"], other["forces"])
        assert results[0]["energy"] == other["energy"]


def dimer(distance):
    positions = np.array([[0.1, 0.2, 0.3], [0.1, 0.2 + 0.6 * distance, 0.3 + 0.8 * distance]])
    return np.array([6, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool)


@pytest.mark.parametrize("name", ["odd", "other"])
def test_work_is_the_change_of_energy(gpu, models, name):
    """From knot to knot, across all of them, out of the cutoff: rounding makes no steps of energy."""
    distances = np.linspace(1.2, MODELS[name]["cutoff"] + 0.05, 151)
    gap = {}
    for math in ("float32", "half"):
        potential = gpu.GpuPotential(models[name], math=math)
        found = [compute(potential, dimer(d)) for d in distances]
        energy = np.array([x["energy"] for x in found])
        along = np.array([x["forces"][1] @ [0, 0.6, 0.8] for x in found])
        # Simpson's rule over pairs of intervals.
        h = distances[1] - distances[0]
        work = h / 3 * (along[:-2:2] + 4 * along[1:-1:2] + along[2::2])
        gap[math] = np.abs(energy[2::2] - energy[:-2:2] + work).max()
        assert energy[-1] == pytest.approx(energy[distances > MODELS[name]["cutoff"]][0], abs=1e-9)
    assert gap["half"] < 2 * gap["float32"]


def test_forces_are_derivatives(gpu, models):
    """Central differences miss forces of half by no more than those of float32, at every step."""
    numbers, positions, cell, pbc = SYSTEMS["skewed"]()
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(6, *positions.shape))
    missing = {}
    for math in ("float32", "half"):
        potential = gpu.GpuPotential(models["zbl"], math=math)

        def at(x, potential=potential):
            return compute(potential, (numbers, x, cell, pbc))

        forces = at(positions)["forces"]
        for step in (1e-2, 3e-3, 1e-3):
            gaps = []
            for u in directions:
                rise = at(positions + step * u)["energy"] - at(positions - step * u)["energy"]
                gaps.append(rise / (2 * step) + (forces * u).sum())
            missing[math, step] = np.sqrt(np.mean(np.square(gaps)))
    for step in (1e-2, 3e-3, 1e-3):
        assert missing["half", step] < 1.5 * missing["float32", step]


def test_the_table_says_how_it_was_rounded(gpu, models):
    for name in ("default", "other"):
        full = gpu.GpuPotential(models[name])
        half = gpu.GpuPotential(models[name], math="half")
        assert half.table["intervals"] <= full.table["intervals"] / 2
        assert full.table["value_error"] < 1e-7 < half.table["value_error"] < 3e-4
        assert (
            full.table["derivative_error"] < 2e-6 < 1e-5 < half.table["derivative_error"] < 1.1e-3
        )
