"""The network: symmetries, derivatives, limits. All in float64 unless the test says otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from support.students import make_student

from mlff_distiller.config import ModelConfig
from mlff_distiller.data import Structure, collate
from mlff_distiller.errors import InputError
from mlff_distiller.models import PaiNN, StudentForceField
from mlff_distiller.students.repulsion import PairRepulsion
from mlff_distiller.students.versions import upgrade_config

ELEMENTS = [1, 6, 8, 14]
ENERGIES = [-13.6, -1030.0, -2042.0, -150.0]


def student_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> StudentForceField:
    return make_student(ELEMENTS, config, energies=ENERGIES, seed=12, dtype=dtype)


CONFIGS = {
    "gaussian": ModelConfig(hidden_dim=16, num_interactions=2, num_rbf=8, cutoff=4.0),
    "bessel": ModelConfig(hidden_dim=8, num_interactions=3, num_rbf=6, cutoff=3.7, rbf="bessel"),
    "zbl": ModelConfig(hidden_dim=8, num_interactions=1, num_rbf=6, cutoff=4.0, zbl=True),
    "paper": ModelConfig(
        hidden_dim=8,
        num_interactions=2,
        num_rbf=6,
        cutoff=4.0,
        norm="paper",
        cutoff_function="cosine",
        readout_dim=12,
    ),
    "chebyshev": ModelConfig(
        hidden_dim=8,
        num_interactions=2,
        num_rbf=7,
        cutoff=4.0,
        rbf="chebyshev",
        rbf_per_interaction=True,
        cutoff_function="mollifier",
        norm_scale=0.2,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def student(request):
    return student_of(CONFIGS[request.param])


def silicon() -> Structure:
    """Sheared, rattled, eight atoms; the cell is smaller than twice the cutoff."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    atoms.set_cell(atoms.cell @ [[1, 0, 0], [0.15, 1, 0], [-0.1, 0.2, 1]], scale_atoms=True)
    atoms.rattle(0.15, seed=1)
    return Structure.from_atoms(atoms)


def tiny_cell() -> Structure:
    """Two atoms in a skewed cell much smaller than the cutoff: each sees images of itself."""
    atoms = Atoms("SiC", [[0, 0, 0], [1.1, 1.0, 0.9]], pbc=True)
    atoms.set_cell([[2.6, 0, 0], [1.1, 2.3, 0], [-0.7, 0.9, 2.4]])
    return Structure.from_atoms(atoms)


def alcohol() -> Structure:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=2)
    return Structure.from_atoms(atoms)


def slab() -> Structure:
    atoms = molecule("CH3OH")
    atoms.set_cell([[3.5, 0, 0], [0.4, 3.8, 0], [0, 0, 12]])
    atoms.pbc = [True, True, False]
    return Structure.from_atoms(atoms)


SYSTEMS = {"silicon": silicon, "tiny cell": tiny_cell, "molecule": alcohol, "slab": slab}


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request) -> Structure:
    return SYSTEMS[request.param]()


def compute(student: StudentForceField, *structures: Structure) -> dict[str, np.ndarray]:
    parameter = next(student.parameters())
    batch = collate(list(structures), student.cutoff, parameter.dtype)
    return {k: v.numpy() for k, v in student.compute(batch).items()}


def energy_of(student: StudentForceField, structure: Structure) -> float:
    return float(compute(student, structure)["energy"][0])


def random_rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


# -- symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_reflection(student, system, improper):
    rotation = random_rotation(4)
    if improper and not system.pbc.any():
        rotation = -rotation  # cells must stay right-handed
    turned = replace(system, positions=system.positions @ rotation.T, cell=system.cell @ rotation.T)
    before, after = compute(student, system), compute(student, turned)
    assert after["energies"] == pytest.approx(before["energies"], abs=1e-10)
    assert after["forces"] == pytest.approx(before["forces"] @ rotation.T, abs=1e-10)
    assert after["stress"][0] == pytest.approx(
        rotation @ before["stress"][0] @ rotation.T, abs=1e-12
    )
    assert np.abs(before["forces"]).max() > 1e-2


def test_mirror_image_of_a_crystal(student):
    """x -> -x, with two lattice vectors exchanged so that the cell stays right-handed."""
    system = silicon()
    mirror = np.diag([-1.0, 1.0, 1.0])
    image = replace(
        system, positions=system.positions @ mirror, cell=(system.cell @ mirror)[[1, 0, 2]]
    )
    before, after = compute(student, system), compute(student, image)
    assert after["energy"] == pytest.approx(before["energy"], abs=1e-10)
    assert after["forces"] == pytest.approx(before["forces"] @ mirror, abs=1e-10)
    assert after["stress"][0] == pytest.approx(mirror @ before["stress"][0] @ mirror, abs=1e-12)


def test_translation_and_lattice_shifts(student, system):
    rng = np.random.default_rng(0)
    hops = rng.integers(-2, 3, (len(system), 3)) * system.pbc
    moved = replace(
        system, positions=system.positions + np.array([3.1, -7.7, 0.4]) + hops @ system.cell
    )
    before, after = compute(student, system), compute(student, moved)
    for key in before:
        assert after[key] == pytest.approx(before[key], abs=1e-9)


def test_permutation(student, system):
    order = np.random.default_rng(1).permutation(len(system))
    shuffled = replace(
        system,
        atomic_numbers=system.atomic_numbers[order],
        positions=system.positions[order],
    )
    before, after = compute(student, system), compute(student, shuffled)
    assert after["energy"] == pytest.approx(before["energy"], abs=1e-10)
    assert after["energies"] == pytest.approx(before["energies"][order], abs=1e-10)
    assert after["forces"] == pytest.approx(before["forces"][order], abs=1e-10)


@pytest.mark.parametrize("make", [silicon, tiny_cell])
def test_supercells_are_extensive(student, make):
    one = make()
    many = Structure.from_atoms(one.to_atoms() * (2, 1, 3))
    a, b = compute(student, one), compute(student, many)
    assert b["energy"][0] == pytest.approx(6 * a["energy"][0], abs=1e-8)
    assert b["energies"] == pytest.approx(np.tile(a["energies"], 6), abs=1e-9)
    assert b["forces"] == pytest.approx(np.tile(a["forces"], (6, 1)), abs=1e-9)
    assert b["stress"] == pytest.approx(a["stress"], abs=1e-11)


def test_distant_molecules_do_not_see_each_other(student):
    one = alcohol()
    far = replace(one, positions=one.positions + np.array([0.0, 0.0, 50.0]))
    pair = Structure(
        np.concatenate([one.atomic_numbers, far.atomic_numbers]),
        np.concatenate([one.positions, far.positions]),
    )
    assert energy_of(student, pair) == pytest.approx(2 * energy_of(student, one), abs=1e-9)


def test_batching_equals_one_by_one(student):
    systems = [silicon(), alcohol(), tiny_cell(), slab(), Structure([8], [[0.0, 0.0, 0.0]])]
    together = compute(student, *systems)
    alone = [compute(student, s) for s in systems]
    assert together["energy"] == pytest.approx(
        np.concatenate([a["energy"] for a in alone]), abs=1e-10
    )
    for key in ("energies", "forces", "stress"):
        expected = np.concatenate([a[key] for a in alone])
        assert together[key] == pytest.approx(expected, abs=1e-10)


# -- derivatives ---------------------------------------------------------------------------------


def test_forces_are_minus_the_gradient(student, system):
    forces = compute(student, system)["forces"]
    step = 3e-6  # the root with its epsilon of 1e-8 bends sharply where vectors are short
    for atom, axis in [(0, 0), (1, 1), (len(system) - 1, 2)]:
        energies = []
        for sign in (-1, 1):
            positions = system.positions.copy()
            positions[atom, axis] += sign * step
            energies.append(energy_of(student, replace(system, positions=positions)))
        slope = (energies[1] - energies[0]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(-slope, abs=2e-6)
    assert forces.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-10)


@pytest.mark.parametrize("make", [silicon, tiny_cell])
def test_stress_is_the_strain_derivative(student, make):
    system = make()
    stress = compute(student, system)["stress"][0]
    assert stress == pytest.approx(stress.T, abs=1e-14)
    volume, step = abs(np.linalg.det(system.cell)), 1e-5
    for a, b in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
        energies = []
        for sign in (-1, 1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            deformation = np.eye(3) + strain
            energies.append(
                energy_of(
                    student,
                    replace(
                        system,
                        positions=system.positions @ deformation,
                        cell=system.cell @ deformation,
                    ),
                )
            )
        slope = (energies[1] - energies[0]) / (2 * step) / volume
        assert stress[a, b] == pytest.approx(slope, abs=2e-8)


def test_systems_without_a_volume_have_no_stress(student):
    assert not compute(student, alcohol())["stress"].any()
    with_cell = slab()
    flat = replace(with_cell, cell=with_cell.cell * with_cell.pbc[:, None])
    assert not compute(student, flat)["stress"].any()
    boxed = replace(alcohol(), cell=20.0 * np.eye(3))
    assert not compute(student, boxed)["stress"].any()


def test_forward_equals_compute_and_is_differentiable(student, system):
    """forward() builds its own neighbour list and sees the cell."""
    positions = torch.tensor(system.positions, requires_grad=True)
    cell = torch.tensor(system.cell, requires_grad=True)
    numbers, pbc = torch.tensor(system.atomic_numbers), torch.tensor(system.pbc)
    energy = student(numbers, positions, cell, pbc)
    result = compute(student, system)
    assert energy.shape == ()
    assert energy.item() == pytest.approx(result["energy"][0], abs=1e-10)
    by_positions, by_cell = torch.autograd.grad(energy, [positions, cell], allow_unused=True)
    assert -by_positions.numpy() == pytest.approx(result["forces"], abs=1e-10)
    if system.pbc.any() and np.linalg.det(system.cell) != 0:
        # dE/dε = Σ r ⊗ dE/dr + Σ a ⊗ dE/da, by way of positions and lattice vectors.
        strain = positions.detach().T @ by_positions + cell.detach().T @ by_cell
        stress = strain.numpy() / abs(np.linalg.det(system.cell))
        assert 0.5 * (stress + stress.T) == pytest.approx(result["stress"][0], abs=1e-11)


def test_second_derivatives_that_training_needs():
    """d(loss)/d(weight) of a loss on forces and stress against finite differences."""
    student = student_of(CONFIGS["gaussian"])
    batch = collate([silicon(), alcohol()], student.cutoff, torch.float64)

    def loss() -> torch.Tensor:
        result = student.compute(batch, create_graph=True)
        return result["forces"].square().mean() + 100 * result["stress"].square().mean()

    parameters = dict(student.named_parameters())
    value = loss()
    value.backward(inputs=list(parameters.values()))
    names = [
        "painn.embedding.weight",
        "painn.interactions.0.filter.weight",
        "painn.interactions.0.filter.bias",
        "painn.interactions.1.message.2.weight",
        "painn.interactions.0.mix.weight",
        "painn.interactions.1.update.0.weight",
        "painn.readout.2.weight",
    ]
    step = 1e-6
    for name in names:
        weight = parameters[name].data.reshape(-1)
        index = int(parameters[name].grad.abs().argmax())
        values = []
        for sign in (-1, 1):
            weight[index] += sign * step
            values.append(loss().item())
            weight[index] -= sign * step
        slope = (values[1] - values[0]) / (2 * step)
        found = float(parameters[name].grad.reshape(-1)[index])
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-9)


# -- limits --------------------------------------------------------------------------------------


def test_energy_and_force_vanish_smoothly_at_the_cutoff(student):
    """A pair that crosses the cutoff: no jump in the energy, none in the force."""
    cutoff = student.cutoff
    separate = energy_of(student, Structure([14], [[0, 0, 0]])) + energy_of(
        student, Structure([8], [[0, 0, 0]])
    )

    def pair(distance: float) -> tuple[float, float]:
        result = compute(student, Structure([14, 8], [[0, 0, 0], [distance, 0, 0]]))
        return float(result["energy"][0]) - separate, float(result["forces"][1, 0])

    near = [pair(cutoff - delta) for delta in (4e-3, 2e-3, 1e-3)]
    # fcut ~ δ^order: halving the gap divides the energy by 2^order, the force by half of that.
    order = {"cosine": 2, "polynomial": 3}.get(student.config.cutoff_function)
    for k in range(2):
        if order is None:  # faster than any power
            assert abs(near[k + 1][0]) <= 1e-4 * abs(near[k][0])
            continue
        assert near[k][0] / near[k + 1][0] == pytest.approx(2.0**order, rel=0.05)
        assert near[k][1] / near[k + 1][1] == pytest.approx(2.0 ** (order - 1), rel=0.05)
    assert order is None or 0 < abs(near[2][1]) < 1e-1
    for distance in (cutoff, cutoff + 1e-9, cutoff + 1.0):
        assert pair(distance) == pytest.approx((0.0, 0.0), abs=1e-10)
    assert abs(pair(cutoff - 1e-7)[0]) < 1e-10


def test_edges_beyond_the_cutoff_contribute_nothing(student):
    """Engines pass lists with a skin."""
    system = silicon()
    lists = [collate([system], c, torch.float64) for c in (student.cutoff, student.cutoff + 0.7)]
    assert lists[1].edge_index.shape[1] > lists[0].edge_index.shape[1]
    results = [student.compute(batch) for batch in lists]
    for key in results[0]:
        assert torch.allclose(results[0][key], results[1][key], atol=1e-11, rtol=0)


def test_isolated_atoms(student):
    systems = [Structure([z], [[0.3, 0.2, 0.1]]) for z in ELEMENTS]
    systems.append(Structure([14], [[0, 0, 0]], np.eye(3) * 30.0, [True] * 3))
    result = compute(student, *systems)
    assert np.isfinite(result["energy"]).all()
    assert result["energy"][3] == pytest.approx(result["energy"][4], abs=1e-12)
    assert not result["forces"].any()
    assert not result["stress"].any()
    with torch.no_grad():  # without neighbours the network depends on the element alone
        zero = student_of(student.config)
        for parameter in zero.painn.readout[-1].parameters():
            parameter.zero_()
    assert compute(zero, *systems[:4])["energy"].tolist() == ENERGIES


def test_float32_is_close_to_float64(system):
    exact = student_of(CONFIGS["gaussian"])
    rounded = student_of(CONFIGS["gaussian"], torch.float32)
    a, b = compute(exact, system), compute(rounded, system)
    n = len(system)
    assert b["energy"] / n == pytest.approx(a["energy"] / n, abs=2e-6)
    assert b["forces"] == pytest.approx(a["forces"], abs=2e-5)
    assert rounded.reference_energies.dtype == torch.float64
    assert rounded.reference_energies.tolist() == ENERGIES


# -- repulsion -----------------------------------------------------------------------------------


def zbl_by_hand(z1: int, z2: int, d: np.ndarray) -> np.ndarray:
    a = 0.46850 / (z1**0.23 + z2**0.23)
    x = d / a
    phi = (
        0.18175 * np.exp(-3.19980 * x)
        + 0.50986 * np.exp(-0.94229 * x)
        + 0.28022 * np.exp(-0.40290 * x)
        + 0.02817 * np.exp(-0.20162 * x)
    )
    u = d / (covalent_radii[z1] + covalent_radii[z2])
    switch = np.where(u < 1, 1 - 28 * u**6 + 48 * u**7 - 21 * u**8, 0.0)
    return 14.399645 * z1 * z2 / d * phi * switch


@pytest.mark.parametrize("pair", [(1, 1), (6, 8), (14, 14), (92, 1)])
def test_zbl_equals_the_formula(pair):
    z1, z2 = pair
    numbers = sorted({z1, z2})
    repulsion = PairRepulsion(numbers)
    distances = np.linspace(0.05, 1.2 * (covalent_radii[z1] + covalent_radii[z2]), 60)
    species = torch.tensor([numbers.index(z1), numbers.index(z2)])
    edges = torch.tensor([[1, 0], [0, 1]])
    for d, expected in zip(distances, zbl_by_hand(z1, z2, distances), strict=True):
        vectors = torch.tensor([[d, 0.0, 0.0], [-d, 0.0, 0.0]], dtype=torch.float64)
        energies = repulsion(species, edges, vectors)
        assert float(energies.sum()) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert float(energies[0]) == float(energies[1])


def test_zbl_of_a_student_ends_below_the_bonds():
    student = StudentForceField(ModelConfig(hidden_dim=8, num_interactions=1, num_rbf=4), [1, 6, 8])
    pairs = {(6, 6): 1.39, (6, 8): 1.20, (1, 6): 1.09, (1, 8): 0.96, (1, 1): 0.74}
    for (z1, z2), length in pairs.items():
        species = student.species(torch.tensor([z1, z2]))
        edges, axis = torch.tensor([[1, 0], [0, 1]]), torch.tensor([1.0, 0.0, 0.0])
        for stretch, expected in ((0.97, 0.0), (0.5, 1.0)):
            vectors = stretch * length * torch.stack([axis, -axis]).to(torch.float64)
            energy = float(student.repulsion(species, edges, vectors).sum())
            assert energy == 0.0 if not expected else energy > expected, (z1, z2, stretch)
    old = upgrade_config({"hidden_dim": 8, "zbl": True}, 2)
    assert old["zbl_reach"] == 1.0  # files that do not say it are what they were


def test_zbl_derivatives_and_smooth_switch():
    radii = torch.tensor([0.76, 0.66], dtype=torch.float64)
    repulsion = PairRepulsion([6, 8], radii)
    species, edges = torch.tensor([0, 1]), torch.tensor([[1, 0], [0, 1]])

    def energy(x: torch.Tensor) -> torch.Tensor:
        vector = torch.stack([x[0], x[1], x[2]])
        return repulsion(species, edges, torch.stack([vector, -vector])).sum()

    point = torch.tensor([0.5, -0.6, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(energy, (point,))
    assert torch.autograd.gradgradcheck(energy, (point,))
    contact = float(radii.sum())
    edge = torch.tensor([contact - 1e-5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    value = energy(edge)
    (slope,) = torch.autograd.grad(value, edge)
    assert abs(value.item()) < 1e-10
    assert slope.abs().max().item() < 1e-6


# -- construction --------------------------------------------------------------------------------


def expected_parameters(config: ModelConfig, num_species: int) -> int:
    f, k = config.hidden_dim, config.num_rbf
    interaction = (
        (k + 1) * 3 * f  # filter
        + (f + 1) * f + (f + 1) * 3 * f  # message
        + f * 2 * f  # mix
        + (2 * f + 1) * f + (f + 1) * 3 * f  # update
    )  # fmt: skip
    width = config.readout_dim or f // 2
    readout = (f + 1) * width + width + 1
    return num_species * f + config.num_interactions * interaction + readout


def test_number_of_parameters(capsys):
    default = ModelConfig()
    count = StudentForceField(default, [14]).num_parameters
    with capsys.disabled():
        print(f"\ndefault student: {count:,} parameters for one element")
    assert count == expected_parameters(default, 1)
    for config in CONFIGS.values():
        student = StudentForceField(config, ELEMENTS)
        assert student.num_parameters == expected_parameters(config, len(ELEMENTS))


def test_first_interaction_leaves_out_only_zeros():
    """The first interaction skips messages along vectors, which are zero: same as doing them."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_dim=16, num_interactions=2, num_rbf=6, cutoff=4.0)
    painn = PaiNN(2, config).to(torch.float64)
    edge_index = torch.tensor([[1, 0, 2, 0, 2, 1], [0, 1, 0, 2, 1, 2]])
    vectors = torch.randn(6, 3, dtype=torch.float64)
    species = torch.tensor([0, 1, 1])
    skipped = painn(species, edge_index, vectors)
    painn.interactions[0].is_first = False
    assert torch.allclose(painn(species, edge_index, vectors), skipped, atol=1e-14, rtol=0)


def test_unknown_elements_and_bad_construction():
    student = student_of(CONFIGS["gaussian"])
    with pytest.raises(InputError, match=r"knows H C O Si, got Fe U"):
        compute(student, Structure([26, 92, 1], np.eye(3)))
    with pytest.raises(InputError, match="one for each"):
        student.set_reference_energies([1.0])
    for elements, message in (([], "at least one"), ([1, 1], "once"), ([119], "1..118")):
        with pytest.raises(InputError, match=message):
            StudentForceField(ModelConfig(), elements)
    with pytest.raises(InputError, match=r"1\.\.10"):
        StudentForceField(ModelConfig(max_z=10), [14])
    for wrong in (
        {"hidden_dim": 60},
        {"cutoff": -1.0},
        {"rbf": "spline"},
        {"num_interactions": 0},
        {"norm": "l2"},
        {"norm_scale": 0.0},
        {"norm_epsilon": float("nan")},
        {"cutoff_function": "step"},
        {"cutoff_exponent": 2},
        {"cutoff_onset": 6.0, "cutoff_function": "switch"},
        {"readout_dim": 0},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ModelConfig(**wrong)
