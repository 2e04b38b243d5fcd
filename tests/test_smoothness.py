"""Second derivatives of the energy: at symmetric sites, through the cutoff, along a bond.

Engines that agree on forces to 1e-15 can all have the same wrong force constants: where symmetry
makes the vector features vanish, on every site of a perfect crystal, the paper's norm is a cone.
So each engine's forces are differenced at steps from 1e-5 to 3e-2 Å and compared with an autograd
Hessian, of random networks: nothing here may depend on luck in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.spacegroup import crystal
from support.cuda_module import gpu_engine
from support.lammps import EXACT, Run, evaluate, run_lmp, script_of
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
from support.students import make_student
from support.systems import System
from typer.testing import CliRunner

from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.cli import app
from mlff_distiller.export import export_student
from mlff_distiller.models import StudentForceField

ELEMENTS = (1, 6, 8, 11, 14, 17, 22, 29, 38)
STEPS = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2)  # Å
DIRECTIONS = np.array([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]])
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1)[:, None]


def perovskite() -> Atoms:
    return crystal(
        ["Sr", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[3.905, 3.905, 3.905, 90, 90, 90],
    )


def benzene() -> Atoms:
    atoms = molecule("C6H6")
    atoms.set_cell(np.eye(3) * 30.0)
    atoms.center()
    return atoms


#: Atoms, and the sites that are moved.
SYSTEMS = {
    "Si": (lambda: bulk("Si", cubic=True), (0,)),
    "Cu": (lambda: bulk("Cu", cubic=True), (0,)),
    "NaCl": (lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True), (0, 1)),
    "SrTiO3": (perovskite, (0, 1, 2)),
    "benzene": (benzene, (0, 6)),
}


def strong_student(seed: int = 0, **config) -> StudentForceField:
    """Forces of some eV/Å."""
    settings = {"num_interactions": 3, "zbl": False, **config}
    return make_student(ELEMENTS, seed=seed, scale=2.0, **settings)


@pytest.fixture(scope="module")
def student():
    return strong_student()


@pytest.fixture(scope="module")
def model(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    export_student(student, path)
    return path


# -- engines: forces of many frames of one system -------------------------------------------------


def ase_forces(model, frames, _folder, **options):
    calculator = StudentCalculator(model, **options)
    return [calculator.get_forces(atoms) for atoms in frames]


def gpu_forces(model, frames, _folder, dtype):
    potential = gpu_engine().GpuPotential(str(model), dtype=dtype)
    return [
        potential.compute(
            a.numbers.astype(np.int64), a.positions, a.cell.array, a.pbc, True, False
        )["forces"]
        for a in frames
    ]


def openmm_forces(model, frames, _folder, precision):
    from mlff_distiller.openmm import painn_force

    topology = topology_of(frames[0])
    force = painn_force(topology, model, backend="native", precision=precision)
    context = openmm_context(openmm_system(topology, force), frames[0].positions)
    forces = []
    for atoms in frames:
        context.setPositions(atoms.positions / 10)
        forces.append(openmm_results(context)[1])
    return forces


def lammps_forces(model, frames, folder, ranks=1, style=EXACT):
    types = tuple(sorted(set(frames[0].numbers.tolist())))
    runs = []
    for k, atoms in enumerate(frames):
        # LAMMPS wants atoms inside of the box.
        positions = atoms.positions + 0.11
        system = System(atoms.numbers, positions, atoms.cell.array, tuple(atoms.pbc.tolist()))
        runs.append(Run(f"frame{k}", system, model, types, style=style, centroid=False))
    results = evaluate(runs, folder, ranks)
    return [results[run.name].forces for run in runs]


@dataclass(frozen=True)
class Engine:
    """How to get forces, their noise in eV/Å, and the error of w'' relative to its size."""

    forces: object
    noise: float = 1e-12
    table: float = 0.0
    options: dict | None = None

    def __call__(self, model, frames, folder):
        return np.array(self.forces(model, frames, folder, **(self.options or {})))


# A table's w'' is piecewise linear, its w' is within 2e-6 (float32) and 1e-8 of the exact one.
ENGINES = {
    "portable": Engine(ase_forces, options={"backend": "portable"}),
    "native": Engine(ase_forces, options={"backend": "native"}),
    "native-single": Engine(ase_forces, 2e-5, 1e-2, {"backend": "native", "dtype": "float32"}),
    "gpu": Engine(gpu_forces, 1e-12, 1e-3, {"dtype": "float64"}),
    "gpu-single": Engine(gpu_forces, 2e-5, 1e-2, {"dtype": "float32"}),
    "openmm": Engine(openmm_forces, options={"precision": "double"}),
    "lammps": Engine(lammps_forces),
    "lammps-2": Engine(lammps_forces, options={"ranks": 2}),
    "lammps-single": Engine(lammps_forces, 2e-5, 1e-2, {"style": "precision single"}),
}


# -- force constants ------------------------------------------------------------------------------


def hessian(student, atoms, site):
    """Second derivatives of the energy by one atom's coordinates, (3, 3) eV/Å², by autograd."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    cell = torch.tensor(atoms.cell.array)
    energy = student(torch.tensor(atoms.numbers), x, cell, torch.tensor(atoms.pbc))
    (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
    rows = [torch.autograd.grad(gradient[site, k], x, retain_graph=True)[0] for k in range(3)]
    return torch.stack(rows)[:, site].numpy()


def displaced(atoms, site, direction, steps):
    frames = []
    for step in steps:
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[site] += sign * step * direction
            frames.append(moved)
    return frames


def force_constants(engine, model, folder, atoms, site, steps=STEPS):
    """Central differences along each of DIRECTIONS, (directions, steps) eV/Å²."""
    frames = [f for u in DIRECTIONS for f in displaced(atoms, site, u, steps)]
    forces = engine(model, frames, folder).reshape(len(DIRECTIONS), len(steps), 2, len(atoms), 3)
    change = (forces[:, :, 1, site] - forces[:, :, 0, site]) / (2 * np.array(steps)[:, None])
    return np.einsum("dsx,dx->ds", change, DIRECTIONS)


def assert_constant(found, exact, noise, table=0.0, steps=STEPS, width=3e-2):
    """A difference departs from the derivative by anharmonicity, ~(step/width)², and noise/step."""
    scale = np.abs(exact).max() + 1.0
    for step, values in zip(steps, found.T, strict=True):
        allowed = scale * (1e-6 + table + 0.15 * (step / width) ** 2) + noise / step
        assert np.abs(values - exact).max() <= allowed, (step, values, exact)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_force_constants_do_not_depend_on_the_step(student, model, system, engine, tmp_path):
    make, sites = SYSTEMS[system]
    atoms, run = make(), ENGINES[engine]
    steps = STEPS if run.noise < 1e-9 else STEPS[2:]
    for site in sites:
        exact = np.einsum("dx,xy,dy->d", DIRECTIONS, hessian(student, atoms, site), DIRECTIONS)
        found = force_constants(run, model, tmp_path, atoms, site, steps)
        assert_constant(found, exact, run.noise, run.table, steps)


@pytest.mark.parametrize("scale", [0.03, 0.3])
@pytest.mark.parametrize("seed", [1, 2])
def test_narrow_norms_and_other_random_networks(tmp_path, scale, seed):
    """The tip has the width of the norm's scale; below it, all is as smooth."""
    student = strong_student(seed, norm_scale=scale)
    export_student(student, tmp_path / "student.pt")
    steps = [step for step in STEPS if step < scale / 20]
    for make, sites in SYSTEMS.values():
        atoms = make()
        for site in sites:
            exact = np.einsum("dx,xy,dy->d", DIRECTIONS, hessian(student, atoms, site), DIRECTIONS)
            found = force_constants(
                ENGINES["native"], tmp_path / "student.pt", tmp_path, atoms, site, steps
            )
            assert_constant(found, exact, 1e-12, steps=steps, width=3e-2 * scale)


def test_the_paper_s_norm_does_not_pass(tmp_path):
    """What all this is about: otherwise the same network has a cone on the sites of silicon."""
    student = strong_student(norm="paper")
    export_student(student, tmp_path / "student.pt")
    atoms = SYSTEMS["Si"][0]()
    found = force_constants(ENGINES["native"], tmp_path / "student.pt", tmp_path, atoms, 0)
    at_1e4, at_3e2 = found[:, 1], found[:, -1]
    assert np.abs(at_1e4 - at_3e2).max() > 1.0 + np.abs(at_3e2).max()
    exact = np.einsum("dx,xy,dy->d", DIRECTIONS, hessian(student, atoms, 0), DIRECTIONS)
    with pytest.raises(AssertionError):
        assert_constant(found, exact, 1e-12)


@pytest.mark.parametrize("engine", ["portable", "native", "native-single"])
@pytest.mark.parametrize("system", ["Si", "NaCl", "Cu"])
def test_clamped_elastic_constants_do_not_depend_on_the_strain(model, system, engine):
    """C11, C12 and C44 by differences of the stress at fixed fractional coordinates."""
    calculator = StudentCalculator(model, **ENGINES[engine].options)
    atoms = SYSTEMS[system][0]()

    def constants(strain):
        stresses = []
        for sign in (1, -1):
            shape = np.eye(3)
            shape[0, 0] += sign * strain
            shape[1, 2] = shape[2, 1] = 0.5 * sign * strain
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ shape, scale_atoms=True)
            stresses.append(calculator.get_stress(strained))
        slope = (stresses[0] - stresses[1]) / (2 * strain)
        return slope[[0, 1, 3]]

    single = engine == "native-single"
    found = np.array([constants(strain) for strain in (1e-3, 1e-2) + (() if single else (1e-4,))])
    scale = np.abs(found).max()
    assert np.abs(found - found[0]).max() < 0.02 * scale + (2e-3 if single else 0.0)
    assert np.abs(found[0, 2]) > 1e-3 * scale  # a shear that nothing resists would prove nothing


# -- the cutoff -----------------------------------------------------------------------------------

CUTOFFS = {
    "p3": {"cutoff_exponent": 3},
    "p6": {"cutoff_exponent": 6},
    "mollifier": {"cutoff_function": "mollifier"},
    "switch": {"cutoff_function": "switch", "cutoff_onset": 2.5},
}


def stiffness(engine, model, folder, distances, step=1e-4):
    """Second derivative of a pair's energy at each distance, eV/Å²."""
    frames = []
    for d in distances:
        for sign in (1, -1):
            pair = Atoms("SiO", positions=[[10, 10, 10], [10 + d + sign * step, 10, 10]])
            pair.set_cell(np.eye(3) * 40.0)
            frames.append(pair)
    forces = engine(model, frames, folder)[:, 1, 0].reshape(-1, 2)
    return (forces[:, 1] - forces[:, 0]) / (2 * step)


@pytest.mark.parametrize("engine", ["portable", "native", "gpu", "openmm", "lammps"])
@pytest.mark.parametrize("kind", CUTOFFS)
def test_second_derivative_through_the_cutoff(tmp_path, kind, engine):
    model = tmp_path / "student.pt"
    export_student(strong_student(num_interactions=2, **CUTOFFS[kind]), model)
    gaps = np.array([4e-2, 2e-2, 1e-2, 0.0, -1e-2])
    found = stiffness(ENGINES[engine], model, tmp_path, 4.0 - gaps)
    before = stiffness(ENGINES[engine], model, tmp_path, [3.0])
    assert abs(before[0]) > 1e-2
    # It falls with the gap at least as fast as the gap does, and is zero beyond.
    assert abs(found[1]) <= 0.6 * abs(found[0]) + 1e-6
    assert abs(found[2]) <= 0.6 * abs(found[1]) + 1e-6
    assert abs(found[3]) < abs(found[2]) + 1e-6
    assert abs(found[4]) < 1e-9


def test_the_cosine_s_second_derivative_jumps(tmp_path):
    model = tmp_path / "student.pt"
    export_student(strong_student(num_interactions=2, cutoff_function="cosine"), model)
    inside, outside = stiffness(ENGINES["native"], model, tmp_path, [4.0 - 1e-3, 4.0 + 1e-3])
    nearer = stiffness(ENGINES["native"], model, tmp_path, [4.0 - 5e-4])[0]
    assert abs(inside) > 1e-3
    assert nearer == pytest.approx(inside, rel=0.05)
    assert abs(outside) < 1e-9


# -- bonds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("engine", ["portable", "native", "native-single", "gpu", "openmm"])
def test_stretching_a_bond_makes_no_steps(tmp_path, engine, zbl):
    """C-H of benzene from 0.5 to 1.5 of its length: forces are continuous, and so are their slopes."""
    model, run = tmp_path / "student.pt", ENGINES[engine]
    student = strong_student(zbl=zbl)
    export_student(student, model)
    atoms = benzene()
    bond = atoms.positions[6] - atoms.positions[0]
    lengths = np.linspace(0.5, 1.5, 401)
    frames = []
    for length in lengths:
        stretched = atoms.copy()
        stretched.positions[6] = atoms.positions[0] + length * bond
        frames.append(stretched)
    along = run(model, frames, tmp_path)[:, 6] @ bond / np.linalg.norm(bond)
    # A step of the force or of its slope would show in the third difference of neighbours, which
    # falls with the cube of the spacing where the function is smooth.
    third, coarse = np.diff(along, 3), np.diff(along[::2], 3)
    scale = np.abs(coarse).max()
    assert np.abs(third).max() <= 0.3 * scale + 8 * run.noise
    energies = torch.stack(
        [
            student(
                torch.tensor(a.numbers), torch.tensor(a.positions), torch.zeros(3, 3).double(),
                torch.zeros(3, dtype=torch.bool),
            )
            for a in (frames[0], frames[-1])
        ]
    )  # fmt: skip
    spacing = np.linalg.norm(bond) * (lengths[1] - lengths[0])
    simpson = (
        spacing / 3 * (along[0] + 4 * along[1:-1:2].sum() + 2 * along[2:-1:2].sum() + along[-1])
    )
    change = float(energies[0] - energies[1])
    assert simpson == pytest.approx(change, rel=1e-5, abs=1e-5 + run.noise)


# -- what users are told --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smooth", "paper", "cut"])
def test_info_and_lammps_say_what_is_not_smooth(tmp_path, kind):
    """`info` and the banner have the same words, and none for a student of today's defaults."""
    options = {"paper": {"norm": "paper"}, "cut": {"zbl": True, "zbl_switched": False}}
    student = strong_student(**options.get(kind, {}))
    export_student(student, tmp_path / "student.pt")
    caveat = student.config.caveat
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "student.pt")]).output
    assert " ".join((caveat or "second derivatives are continuous").split()) in " ".join(
        shown.split()
    )
    if kind == "cut":
        assert "of up to" in shown
    atoms = SYSTEMS["Si"][0]()
    system = System(atoms.numbers, atoms.positions + 0.1, atoms.cell.array)
    run = Run("banner", system, tmp_path / "student.pt", (14,))
    output = run_lmp(tmp_path, script_of(run, tmp_path)).output
    assert "pair_style painn: " in output
    words = {"smooth": "", "paper": "norm of the PaiNN paper", "cut": "repulsion cut off"}[kind]
    assert caveat.startswith(words)
    assert (caveat or "smooth") in output or not caveat
    assert kind != "smooth" or ("not smooth" not in output and "cut off" not in output)
