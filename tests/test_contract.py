"""The shipped contract over everything that runs a student, and the contract itself over mutants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from support.backends import ASE_BACKENDS, OPENMM_BACKENDS, needs_lammps
from support.openmm import openmm_context, openmm_results, openmm_system, topology_of
from support.students import make_student

from mlff_distiller import StudentCalculator
from mlff_distiller.dynamics import single_point
from mlff_distiller.errors import InputError
from mlff_distiller.students.export import export_student
from mlff_distiller.students.potential import open_potential
from mlff_distiller.teachers import get_teacher
from mlff_distiller.testing import CHECKS, check_contract, subject_of
from mlff_distiller.testing.systems import crystal

ELEMENTS, CUTOFF = [6, 14], 4.0
each_check = pytest.mark.parametrize("check", CHECKS)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])
each_backend = pytest.mark.parametrize("backend", ASE_BACKENDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.pt"
    # Without ZBL, which makes forces of hundreds of eV/Å where atoms are this close.
    export_student(make_student(ELEMENTS, zbl=False), path)
    return path


def check_it(check, potential, **more):
    CHECKS[check](subject_of(potential, ELEMENTS, CUTOFF, refusal=(InputError,), **more))


@each_check
@each_dtype
@each_backend
def test_ase(model, check, dtype, backend):
    check_it(check, StudentCalculator(model, dtype=dtype, backend=backend, threads=1), dtype=dtype)


@each_check
@each_dtype
@each_backend
def test_potentials(model, check, dtype, backend):
    check_it(check, open_potential(model, dtype=dtype, backend=backend, threads=1), dtype=dtype)


@each_check
@each_dtype
def test_emulated_gpu(model, check, dtype):
    from support.cuda_module import gpu_engine

    check_it(check, gpu_engine().GpuPotential(str(model), dtype=dtype), dtype=dtype)


@each_check
@needs_lammps
def test_engine_lammps(model, check):
    check_it(check, lambda structure: single_point("lammps", model, structure, "float64"))


# OpenMM has its own rule for boxes, which no bad one passes.
@pytest.mark.parametrize("check", [name for name in CHECKS if name != "bad_cell"])
@pytest.mark.parametrize("backend", OPENMM_BACKENDS)
def test_openmm(model, check, backend):
    openmm = pytest.importorskip("openmm")
    from mlff_distiller.openmm import painn_force

    def evaluate(structure):
        atoms = structure.to_atoms(labels=False)
        turn = np.eye(3)
        if atoms.pbc.all():
            atoms.cell, turn = atoms.cell.standard_form()  # OpenMM's boxes lie along x
            with np.errstate(invalid="ignore"):  # of what is not a number
                atoms.positions = atoms.positions @ turn.T
        try:
            topology = topology_of(atoms)
            force = painn_force(topology, model, backend=backend, precision="double")
            context = openmm_context(openmm_system(topology, force), atoms.positions)
            energy, forces = openmm_results(context)
        except openmm.OpenMMException as error:
            raise InputError(str(error)) from None
        return structure.with_labels(energy, forces @ turn)

    check_it(check, evaluate)


def test_calculators_of_others():
    """ASE's EMT refuses neither bad cells nor NaN; the rest holds."""
    check_contract(EMT(), [29], 8.0, skip=["one_atom", "bad_cell", "not_a_number"])


def test_teachers():
    check_contract(get_teacher("emt"), [29], 8.0, skip=["one_atom"], refusal=(InputError,))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda s, r: replace(r, energy=r.energy + 0.1 * s.positions[0, 0]), "translation"),
        (lambda s, r: replace(r, forces=1.01 * r.forces), "forces_are_minus_the_gradient"),
        (lambda s, r: replace(r, stress=None if r.stress is None else -r.stress),
         "stress_is_the_strain_derivative"),
        (lambda s, r: replace(r, energy=r.energy + 1.0), "extensive"),
        (lambda s, r: replace(r, energy=r.energy + 0.01 * s.atomic_numbers[0]), "permutation"),
        (lambda s, r: s.positions.__setitem__((0, 0), 0.0) or r, "unmutated_input"),
        (lambda s, r: replace(r, forces=r.forces[:, [1, 0, 2]]), "rotation"),
    ],
)  # fmt: skip
def test_the_contract_notices(model, wrong, found):
    subject = subject_of(StudentCalculator(model, dtype="float64", threads=1), ELEMENTS, CUTOFF)
    mutant = replace(subject, evaluate=lambda s: wrong(s, subject.evaluate(s)))
    with pytest.raises(AssertionError):
        CHECKS[found](mutant)


def test_the_contract_notices_what_is_left_over(model):
    calculator = StudentCalculator(model, dtype="float64", threads=1)
    evaluate = subject_of(calculator, ELEMENTS, CUTOFF).evaluate
    calls = []

    def drifting(structure):
        calls.append(1)
        result = evaluate(structure)
        return replace(result, energy=result.energy + 1e-3 * len(calls))

    with pytest.raises(AssertionError, match=r"repeated_calls: AssertionError[^$]*energy"):
        check_contract(drifting, ELEMENTS, CUTOFF, skip=set(CHECKS) - {"repeated_calls"})


def test_the_contract_notices_silence(model):
    """A potential that takes anything is told apart from one that refuses."""
    good = crystal(ELEMENTS)

    def careless(structure):
        return structure.with_labels(0.0, np.zeros((len(structure), 3)))

    with pytest.raises(AssertionError) as error:
        check_contract(careless, ELEMENTS, CUTOFF)
    names = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert {"bad_cell", "not_a_number", "unknown_element"} <= names
    assert careless(good).energy == 0.0
    with pytest.raises(ValueError, match="no check is called 'one_atoms'"):
        check_contract(careless, ELEMENTS, CUTOFF, skip=["one_atoms"])


def test_the_page_describes_every_check():
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        assert f"| `{name}` | {' '.join(check.__doc__.split())} |" in page
