"""Crystals through the gates: numbers that are known from elsewhere, and gates that must fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.eos import EquationOfState
from ase.units import GPa
from support.students import make_student

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.evaluation.gates import AcceptanceConfig, Gate, all_passed, failures, run_gates
from mlff_distiller.evaluation.gates.bulk import Crystal
from mlff_distiller.evaluation.gates.cache import Cache, Side, teacher_side
from mlff_distiller.evaluation.gates.cells import conventional, primitive, supercell, wide
from mlff_distiller.evaluation.gates.defects import surface_energy, vacancy_energy
from mlff_distiller.evaluation.gates.elastic import elastic_constants
from mlff_distiller.evaluation.gates.elastic import gates as elastic_gates
from mlff_distiller.evaluation.gates.lattice import (
    bulk_modulus,
    equation_of_state,
    relaxed_cell,
)
from mlff_distiller.evaluation.gates.lattice import (
    gates as lattice_gates,
)
from mlff_distiller.evaluation.gates.relax import relax
from mlff_distiller.export import export_student
from mlff_distiller.purpose import PurposeConfig

LIMITS = AcceptanceConfig()


# --- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "number"),
    [
        (bulk("Cu", cubic=True) * (2, 2, 2), 1),
        (bulk("Si", cubic=True) * (2, 1, 1), 2),
        (bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (1, 2, 2), 2),
        (bulk("Mg") * (3, 3, 2), 2),
        (bulk("Fe", cubic=True), 1),
    ],
    ids=["fcc", "diamond", "rocksalt", "hcp", "bcc"],
)
def test_the_smallest_cell_makes_the_same_crystal(atoms: Atoms, number: int) -> None:
    atoms.positions += [0.1, -0.2, 0.3]
    small = primitive(atoms)
    assert len(small) == number
    assert np.linalg.det(small.cell.array) > 0
    assert small.get_volume() / number == pytest.approx(atoms.get_volume() / len(atoms))
    again = supercell(
        small, np.round(atoms.cell.array @ np.linalg.inv(small.cell.array)).astype(int)
    )
    assert len(again) == len(atoms)
    for one in again:
        apart = atoms.copy()
        apart.append(one)
        assert apart.get_distances(-1, range(len(atoms)), mic=True).min() < 1e-8


def test_a_rattled_crystal_is_its_own_smallest_cell() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=1)
    assert len(primitive(atoms)) == len(atoms)


def test_supercells_are_as_wide_as_asked_and_small() -> None:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    small = primitive(atoms)
    usual = conventional(atoms, small)
    np.testing.assert_allclose(usual @ small.cell.array, np.eye(3) * 5.43, atol=1e-9)
    large = supercell(small, wide(small, usual, 10.0))
    assert len(large) == 64  # 4x4x4 of the smallest cell would be 128
    assert (1 / np.linalg.norm(np.linalg.inv(large.cell.array), axis=0)).min() > 10.0


# --- numbers that are known ----------------------------------------------------------------------


def test_bulk_modulus_is_that_of_ase() -> None:
    calculator = EMT()
    atoms = bulk("Cu", a=3.6)
    found = relaxed_cell(calculator, atoms)
    relaxed = Atoms(atoms.numbers, found["positions"], cell=found["cell"], pbc=True)
    state = equation_of_state(calculator, relaxed)
    ase = EquationOfState(state["volumes"], state["energies"], eos="birchmurnaghan")
    volume, _, modulus = ase.fit()
    assert state["bulk_modulus"] == pytest.approx(modulus / GPa, rel=2e-3)
    assert relaxed.get_volume() == pytest.approx(volume, rel=1e-3)
    # Table of EMT's authors (Jacobsen, Stoltze, Nørskov 1996): 134 GPa at 3.59 Å.
    assert state["bulk_modulus"] == pytest.approx(134, abs=2)
    assert np.sqrt(2) * relaxed.cell.lengths()[0] == pytest.approx(3.59, abs=0.005)


def test_bulk_modulus_of_points_on_a_known_curve() -> None:
    v0, b0, b1 = 20.0, 90.0, 4.5
    volumes = np.linspace(18.5, 21.5, 7)
    eta = (v0 / volumes) ** (2 / 3)
    energies = 9 * v0 * b0 * GPa / 16 * (eta - 1) ** 2 * (6 + b1 * (eta - 1) - 4 * eta)
    assert bulk_modulus(volumes, energies) == pytest.approx(b0, rel=1e-6)
    with pytest.raises(InputError, match="no minimum"):
        bulk_modulus(volumes, volumes)


def test_elastic_constants_of_a_cubic_crystal() -> None:
    calculator = EMT()
    atoms = relax(calculator, bulk("Cu", a=3.6), cell=True, fmax=1e-4)
    constants = np.array(elastic_constants(calculator, atoms)["constants"])
    state = equation_of_state(calculator, atoms)
    assert (constants[0, 0] + 2 * constants[0, 1]) / 3 == pytest.approx(
        state["bulk_modulus"], rel=0.01
    )
    # A stretch along x by hand, from energies: C11 V e^2 / 2.
    energies = []
    for strain in (-0.004, 0.0, 0.004):
        copy = atoms.copy()
        copy.set_cell(copy.cell.array @ np.diag([1 + strain, 1, 1]), scale_atoms=True)
        copy.calc = calculator
        energies.append(copy.get_potential_energy())
    by_hand = (energies[0] - 2 * energies[1] + energies[2]) / 0.004**2 / atoms.get_volume() / GPa
    assert constants[0, 0] == pytest.approx(by_hand, rel=0.01)
    names = [
        g.name for g in elastic_gates({"constants": constants}, {"constants": constants}, LIMITS)
    ]
    assert names == [f"elastic C{ij}" for ij in (11, 12, 44)]


def test_pair_forces_obey_cauchy() -> None:
    calculator = LennardJones(sigma=2.3, epsilon=0.4, rc=6.0, smooth=True)
    atoms = relax(calculator, bulk("Ar", "fcc", a=3.6), cell=True, fmax=1e-4)
    constants = np.array(elastic_constants(calculator, atoms)["constants"])
    assert constants[0, 1] == pytest.approx(constants[3, 3], rel=5e-3)


def test_ions_relax_in_the_strained_cell() -> None:
    """Of hcp the constants with clamped ions lie higher; five of them are independent."""
    calculator = EMT()
    atoms = relax(calculator, bulk("Cu", "hcp", a=2.55, c=4.16), cell=True, fmax=1e-4)
    constants = np.array(elastic_constants(calculator, atoms)["constants"])
    strained = []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.set_cell(copy.cell.array @ np.diag([1 + sign * 0.01, 1, 1]), scale_atoms=True)
        copy.calc = calculator
        strained.append(copy.get_stress()[0])
    clamped = (strained[0] - strained[1]) / 0.02 / GPa
    assert constants[0, 0] < clamped - 1.0
    names = [
        g.name[-3:]
        for g in elastic_gates({"constants": constants}, {"constants": constants}, LIMITS)
    ]
    assert names == ["C11", "C33", "C12", "C13", "C44", "C66"]


def test_vacancy_and_surface_are_those_of_ase() -> None:
    calculator = EMT()
    lattice = 3.5898
    crystal = bulk("Cu", a=lattice, cubic=True) * (3, 3, 3)
    crystal.calc = calculator
    whole = crystal.get_potential_energy()
    hole = crystal.copy()
    del hole[0]
    relaxed = relax(calculator, hole, fmax=0.005)
    expected = relaxed.get_potential_energy() - whole * 107 / 108
    found = vacancy_energy(calculator, crystal)["energy"]
    assert found == pytest.approx(expected, abs=2e-3)
    assert 1.1 < found < 1.3  # EMT for copper

    slab = fcc100("Cu", (1, 1, 7), a=lattice, vacuum=6.0)
    slab.calc = calculator
    area = 2 * slab.cell.areas()[2]
    energy = (slab.get_potential_energy() - 7 * whole / 108) / area * 16.0217663
    surface = surface_energy(calculator, bulk("Cu", a=lattice, cubic=True), "100")
    assert surface["unrelaxed"] == pytest.approx(energy, rel=1e-3)
    assert surface["relaxed"] <= surface["unrelaxed"] + 1e-4


def test_vacancies_of_a_compound_need_no_chemical_potential() -> None:
    """Adding a constant to the energy of each element's atoms changes nothing."""

    class Shifted(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            for key in ("energy", "free_energy"):
                self.results[key] += 3.0 * (self.atoms.numbers == 79).sum()

    cell = bulk("Cu", a=3.75, cubic=True)
    cell.symbols[0] = "Au"
    cell *= (2, 2, 2)
    plain, shifted = (vacancy_energy(kind(), cell)["energy"] for kind in (EMT, Shifted))
    assert shifted == pytest.approx(plain, abs=1e-9)


# --- gates ---------------------------------------------------------------------------------------


def test_cells_are_compared_by_lengths_and_angles() -> None:
    one = {"cell": (np.eye(3) * 4.0).tolist()}
    rows = lattice_gates(one, {"cell": (np.eye(3) * 4.02).tolist()}, np.eye(3, dtype=int), LIMITS)
    assert [r.name for r in rows] == ["lattice parameter a"]
    assert rows[0].deviation == pytest.approx(100 * 0.02 / 4.02)
    assert not rows[0].passed
    sheared = {"cell": [[4.0, 0, 0], [0.1, 4.0, 0], [0, 0, 4.4]]}
    rows = lattice_gates(one, sheared, np.eye(3, dtype=int), LIMITS)
    assert [r.name for r in rows] == ["lattice parameter a", "lattice parameter c", "cell angle γ"]
    assert not rows[-1].passed
    hexagonal = {"cell": bulk("Mg").cell.array.tolist()}
    rows = lattice_gates(hexagonal, hexagonal, np.eye(3, dtype=int), LIMITS)
    assert [r.name for r in rows] == ["lattice parameter a", "lattice parameter c", "cell angle γ"]
    assert all(r.passed for r in rows)


def test_a_gate_without_a_measurement_fails_with_its_reason() -> None:
    gate = Gate("x", "lattice", None, 1.0, "%", reason="nobody measured", advice="measure it")
    assert not gate.passed
    assert failures([gate]) == ["x: not measured (nobody measured), limit ≤ 1%; measure it"]
    assert not replace(gate, deviation=float("nan")).passed
    assert replace(gate, deviation=0.5).passed
    assert replace(gate, deviation=1.5, at_least=True).passed
    assert not all_passed([])
    assert Gate.from_dict(gate.to_dict()) == gate


def test_the_teacher_is_measured_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    side = teacher_side(TeacherConfig(name="emt"), Cache(cache))
    atoms = bulk("Cu", a=3.6)
    first = side.measure(relaxed_cell, atoms)

    def never() -> EMT:
        raise AssertionError

    again = Side("teacher", side.identity, never, Cache(cache))
    assert again.measure(relaxed_cell, atoms) == first
    with pytest.raises(InputError, match="teacher: AssertionError"):
        again.measure(relaxed_cell, atoms, 1.0)
    other = Side("teacher", "another", never, Cache(cache))
    with pytest.raises(InputError):
        other.measure(relaxed_cell, atoms)
    cache.write_text("{")
    assert Cache(cache).get("x") is None


COPPER = Structure.from_atoms(bulk("Cu", a=3.6, cubic=True))
PURPOSE = PurposeConfig(pressure=[0.0, 5.0], defects=["vacancy", "surface"])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "student.pt"
    export_student(make_student([29]), path)
    return path


def test_another_potential_as_teacher_fails_gates(student: Path, tmp_path: Path) -> None:
    """A random network with repulsion is some crystal, but not EMT's."""
    gates = run_gates(
        student, TeacherConfig(name="emt"), [COPPER], PURPOSE, quick=True, cache=tmp_path / "c.json"
    )
    assert {g.kind for g in gates} == {"lattice", "elastic", "vacancy", "surface", "phonons"}
    assert not all_passed(gates)
    assert not any(g.passed for g in gates if g.kind in ("lattice", "vacancy", "surface"))
    assert all(g.reason or g.deviation is not None for g in gates)


def test_what_fails_to_be_measured_fails(student: Path) -> None:
    """EMT does not know iron; the student neither."""
    iron = Structure.from_atoms(bulk("Fe", cubic=True))
    limits = AcceptanceConfig(gates=["lattice", "frequencies"])
    gates = run_gates(student, TeacherConfig(name="emt"), [iron], PurposeConfig(), limits)
    assert [g.kind for g in gates] == ["lattice", "frequencies"]
    assert not any(g.passed for g in gates)
    assert "student: " in gates[0].reason
    assert "no starting structure is a molecule" in gates[1].reason


def test_pressure_of_the_purpose_asks_for_the_cell_there() -> None:
    crystal = Crystal.of(COPPER)
    calculator = EMT()
    flat, pressed = (
        np.array(relaxed_cell(calculator, crystal.small, p)["cell"]) for p in (0.0, 5.0)
    )
    atoms = Atoms("Cu", cell=pressed, pbc=True, calculator=calculator)
    assert -atoms.get_stress()[:3].mean() / GPa == pytest.approx(5.0, abs=0.05)
    assert abs(np.linalg.det(pressed)) < abs(np.linalg.det(flat))
