"""Phonons and molecules through the gates, against other programs and formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.mixing import LinearCombinationCalculator
from ase.calculators.morse import MorsePotential
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from mlff_distiller.config import TeacherConfig
from mlff_distiller.data import Structure
from mlff_distiller.evaluation.gates import AcceptanceConfig
from mlff_distiller.evaluation.gates.cache import Cache, Side
from mlff_distiller.evaluation.gates.cells import supercell
from mlff_distiller.evaluation.gates.choose import Case
from mlff_distiller.evaluation.gates.context import Context
from mlff_distiller.evaluation.gates.molecules import _mean_error, harmonic_frequencies
from mlff_distiller.evaluation.gates.phonons import frequencies, gates
from mlff_distiller.evaluation.gates.relax import relax
from mlff_distiller.evaluation.gates.run import MEASURES
from mlff_distiller.purpose import PurposeConfig
from mlff_distiller.teachers import teacher_calculator

# Far out the iterations of GFN2-xTB do not always converge.
LIMITS = AcceptanceConfig(dissociation_reach=1.5)
THZ = 1e12 * 2 * np.pi * units._hbar / units._e  # in eV


# --- phonons -------------------------------------------------------------------------------------


def test_phonons_are_those_of_ase(tmp_path: Path) -> None:
    small = relax(EMT(), bulk("Cu", "hcp", a=2.55, c=4.16), cell=True, fmax=1e-4)
    times = (3, 3, 2)
    found = np.array(frequencies(EMT(), small, np.diag(times).tolist())["frequencies"])
    ase = Phonons(small, EMT(), supercell=times, delta=0.02, name=str(tmp_path / "phonon"))
    ase.run()
    ase.read(acoustic=True, symmetrize=3)
    q = np.indices(times).reshape(3, -1).T / np.array(times)
    expected = np.array([ase.band_structure([point], verbose=False)[0] for point in q]) / THZ
    assert found.shape == (18, 6)
    order = lambda rows: rows[np.lexsort(np.round(rows, 2).T)]  # noqa: E731
    np.testing.assert_allclose(order(found), order(np.sort(expected, axis=1)), atol=0.05)


def test_phonons_of_a_skewed_supercell_are_all_of_its_normal_modes() -> None:
    small = relax(EMT(), bulk("Cu", a=3.6), cell=True, fmax=1e-4)
    matrix = [[-2, 2, 2], [2, -2, 2], [2, 2, -2]]  # 2x2x2 of the cubic cell
    found = np.sort(np.ravel(frequencies(EMT(), small, matrix)["frequencies"]))
    large = supercell(small, np.array(matrix))
    large.calc = EMT()
    hessian = np.empty((96, 96))
    for k in range(96):
        forces = []
        for sign in (1, -1):
            moved = large.copy()
            moved.calc = large.calc
            moved.positions.ravel()[k] += sign * 0.02
            forces.append(moved.get_forces().ravel())
        hessian[k] = (forces[1] - forces[0]) / 0.04
    values = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) / large.get_masses()[0])
    root = units.s * 1e-12 / (2 * np.pi)
    np.testing.assert_allclose(
        found, np.sort(np.sign(values) * np.sqrt(np.abs(values)) * root), atol=0.01
    )


def test_phonons_are_those_of_phonopy() -> None:
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    small = relax(EMT(), bulk("Cu", a=3.6), cell=True, fmax=1e-4)
    cell = PhonopyAtoms(symbols=["Cu"], cell=small.cell.array, scaled_positions=[[0, 0, 0]])
    other = phonopy.Phonopy(cell, np.diag([4, 4, 4]), log_level=0)
    other.generate_displacements(distance=0.02, is_plusminus=True)
    forces = []
    for one in other.supercells_with_displacements:
        atoms = Atoms(one.symbols, one.positions, cell=one.cell, pbc=True, calculator=EMT())
        forces.append(atoms.get_forces())
    other.forces = forces
    other.produce_force_constants()
    other.symmetrize_force_constants()
    q = np.indices((4, 4, 4)).reshape(3, -1).T / 4
    expected = np.sort(np.ravel([other.get_frequencies(point) for point in q]))
    found = np.sort(np.ravel(frequencies(EMT(), small, np.diag([4, 4, 4]).tolist())["frequencies"]))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_an_unstable_crystal_has_imaginary_phonons() -> None:
    """A body-centred crystal of copper becomes face-centred along Bain's path."""
    small = bulk("Cu", "bcc", a=2.86)
    found = np.array(frequencies(EMT(), small, np.diag([4, 4, 4]).tolist())["frequencies"])
    assert found.min() < -0.5
    assert (np.diff(found, axis=1) >= 0).all()


def test_a_student_with_an_imaginary_phonon_fails() -> None:
    teacher = {"frequencies": [[0.0, 0.0, 0.0], [2.0, 3.0, 4.0]]}
    soft = {"frequencies": [[0.0, 0.0, 0.0], [-0.5, 3.0, 4.0]]}
    mean, lowest = gates(soft, teacher, LIMITS)
    assert mean.passed == (LIMITS.phonon_mae >= 2.5 / 6)
    assert not lowest.passed
    assert lowest.student == -0.5
    # Where the teacher's crystal is unstable, too, that is what was learnt.
    assert gates(soft, soft, LIMITS)[1].passed


# --- molecules -----------------------------------------------------------------------------------


class Springs(Calculator):
    """Harmonic bonds between given pairs, all of the same strength, eV/Å^2."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, pairs, strength):
        super().__init__()
        self.pairs, self.strength = pairs, strength

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        for i, j, length in self.pairs:
            vector = atoms.positions[j] - atoms.positions[i]
            distance = np.linalg.norm(vector)
            energy += 0.5 * self.strength * (distance - length) ** 2
            pull = self.strength * (distance - length) * vector / distance
            forces[i] += pull
            forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}


def test_the_frequency_of_a_morse_molecule_is_its_formula() -> None:
    depth, alpha, length = 4.5, 1.9, 0.74  # eV, 1/Å, Å
    calculator = MorsePotential(epsilon=depth, rho0=alpha * length, r0=length, rcut1=8, rcut2=9)
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, length]])
    found = harmonic_frequencies(calculator, atoms)["frequencies"]
    assert len(found) == 1
    reduced = atoms.get_masses()[0] / 2 * units._amu
    omega = np.sqrt(2 * depth * units._e * (alpha * 1e10) ** 2 / reduced)
    assert found[0] == pytest.approx(omega / (2 * np.pi * units._c * 100), rel=3e-3)


def test_frequencies_of_water_of_springs(tmp_path: Path) -> None:
    """Three springs between three atoms: three modes, against ASE's own and the trace rule."""
    atoms = molecule("H2O")
    pairs = [(i, j, atoms.get_distance(i, j)) for i, j in ((0, 1), (0, 2), (1, 2))]
    calculator = Springs(pairs, 30.0)
    found = np.array(harmonic_frequencies(calculator, atoms)["frequencies"])
    assert len(found) == 3
    atoms.calc = calculator
    ase = Vibrations(atoms, name=str(tmp_path / "vibrations"), delta=0.01)
    ase.run()
    np.testing.assert_allclose(found, ase.get_frequencies().real[-3:], rtol=1e-3)
    # Each spring adds k (1/m_i + 1/m_j) to the sum of squares of angular frequencies.
    masses = atoms.get_masses()
    trace = sum(30.0 * (1 / masses[i] + 1 / masses[j]) for i, j, _ in pairs)
    root = units._hbar * np.sqrt(units._e / units._amu) * 1e10 / units._e / units.invcm
    assert (found**2).sum() == pytest.approx(trace * root**2, rel=1e-3)


def context(scale: float) -> Context:
    """GFN2-xTB as teacher, and the same with scaled energies as student."""
    cache = Cache()

    def scaled() -> Calculator:
        return LinearCombinationCalculator([teacher_calculator("gfn2-xtb")], [scale])

    return Context(
        path=Path("student.pt"),
        student=Side("student", f"{scale} gfn2", scaled, cache),
        teacher=Side("teacher", "gfn2", lambda: teacher_calculator("gfn2-xtb"), cache),
        teacher_config=TeacherConfig(name="gfn2-xtb"),
        structures=[],
        purpose=PurposeConfig(),
        limits=LIMITS,
        held_out=None,
        engine=None,
        pool=map,
        say=lambda text: None,
    )


METHANOL = Case(Structure.from_atoms(molecule("CH3OH")))


@pytest.mark.parametrize("kind", ["frequencies", "torsion", "dissociation"])
def test_a_potential_agrees_with_itself(kind: str) -> None:
    (gate,) = MEASURES[kind](context(1.0), METHANOL)
    assert gate.passed
    assert gate.deviation == pytest.approx(0, abs=1e-6)
    assert set(gate.details) >= {"figure", "student", "teacher"}


def test_a_potential_that_is_too_steep_by_a_fifth() -> None:
    (gate,) = MEASURES["frequencies"](context(1.2), METHANOL)
    own, other = (np.array(gate.details[k]["frequencies"]) for k in ("student", "teacher"))
    assert len(other) == 12
    assert 3000 < other.max() < 4000
    np.testing.assert_allclose(own[1:], np.sqrt(1.2) * other[1:], rtol=5e-3)
    assert not gate.passed
    (gate,) = MEASURES["dissociation"](context(1.2), METHANOL)
    own, other = (np.array(gate.details[k], dtype=float) for k in ("student", "teacher"))
    np.testing.assert_allclose(own, 1.2 * other, rtol=1e-3, atol=1e-3)
    assert 2.0 < (gate.teacher or 0) < 8.0  # eV, a bond
    assert 5.0 < (gate.deviation or 0) < 20.0
    (gate,) = MEASURES["torsion"](context(1.2), METHANOL)
    own, other = (np.array(gate.details[k], dtype=float) for k in ("student", "teacher"))
    np.testing.assert_allclose(own, 1.2 * other, rtol=1e-3, atol=1e-3)
    assert gate.deviation == pytest.approx(0.2 * other.mean(), rel=1e-2)


def test_frames_that_the_student_alone_gives_up_on_fail() -> None:
    other = np.array([0.0, 1.0, 2.0, np.nan])
    every = np.ones(4, dtype=bool)
    assert _mean_error(other + 0.1, other, every) == pytest.approx(0.1)
    assert np.isnan(_mean_error(np.array([0.0, np.nan, 2.0, 3.0]), other, every))


def test_a_molecule_without_rotatable_bonds_has_no_torsion_gate() -> None:
    water = Case(Structure.from_atoms(molecule("H2O")))
    assert MEASURES["torsion"](context(1.0), water) == []
