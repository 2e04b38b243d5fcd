"""The contract of a potential, whoever computes it.

    from mlff_distiller.testing import check_contract
    check_contract(StudentCalculator("student.pt"), elements=[14], cutoff=5.0)

or, each check a test of its own (pytest):

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check):
        CHECKS[check](subject_of(calculator, elements=[14], cutoff=5.0))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator

from mlff_distiller.data import Structure
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.testing.systems import atoms_apart, cluster, crystal, random_rotation

#: dtype -> (equal energies, eV/atom; equal forces, eV/Å, and stresses, eV/Å^3; step of a finite
#: difference, Å; its error, relative to the largest value or 1)
_TOLERANCES = {"float64": (1e-9, 1e-8, 1e-4, 1e-5), "float32": (1e-5, 2e-4, 1e-2, 2e-2)}
#: Beyond, OpenMM and others have no names or masses.
_URANIUM = 92


@dataclass(frozen=True)
class Subject:
    """What is checked, behind one face."""

    evaluate: Callable[[Structure], Structure]
    """Structure -> the same with energy (eV), forces (eV/Å) and, when periodic and known, stress
    (eV/Å^3)."""
    elements: tuple[int, ...]
    cutoff: float
    """Å. Atoms farther apart than this (through others, no matter how often) do not interact."""
    dtype: str = "float64"
    """Arithmetic, which sets the tolerances: ``float64`` or ``float32``."""
    refusal: tuple[type[Exception], ...] = (Exception,)
    """What is raised for input that cannot be computed."""


def subject_of(potential: Any, elements: Sequence[int], cutoff: float, **more: Any) -> Subject:
    """Make a :class:`Subject`.

    Args:
        potential: an ASE calculator, an :class:`mlff_distiller.energy_model.EnergyModel` (a
            teacher, a student), an object with the ``compute`` of
            :class:`mlff_distiller.students.potential.Potential`, or a function that labels a
            Structure.
        elements: atomic numbers that it knows, at least one.
        cutoff: Å.
        more: dtype, refusal.
    """
    if isinstance(potential, Calculator):
        evaluate = _through_ase(potential)
    elif isinstance(potential, EnergyModel):
        evaluate = _through_model(potential)
    elif hasattr(potential, "compute"):
        evaluate = _through_compute(potential)
    else:
        evaluate = potential
    return Subject(evaluate, tuple(elements), cutoff, **more)


def check_contract(
    potential: Any,
    elements: Sequence[int],
    cutoff: float,
    *,
    skip: Collection[str] = (),
    **more: Any,
) -> None:
    """Run all :data:`CHECKS`.

    Args:
        potential: see :func:`subject_of`.
        elements: atomic numbers that it knows.
        cutoff: Å.
        skip: names of checks that do not apply.
        more: dtype, refusal.

    Raises:
        AssertionError: names every check that failed and what it found.
    """
    if unknown := set(skip) - set(CHECKS):
        raise ValueError(f"no check is called {unknown.pop()!r}; choose from {', '.join(CHECKS)}")
    subject = subject_of(potential, elements, cutoff, **more)
    failed = []
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            check(subject)
        except Exception as error:  # an adapter that crashes has failed, too
            failed.append(f"{name}: {type(error).__name__}: {str(error).strip()}")
    assert not failed, "\n".join(failed)


# --- checks ---------------------------------------------------------------------------------------
def one_atom(subject: Subject) -> None:
    """Without neighbours there is a finite energy and no force, in open space and in a wide cell."""
    alone = atoms_apart(subject.elements, 0)
    wide = replace(alone, cell=np.eye(3) * 3 * subject.cutoff, pbc=np.ones(3, dtype=bool))
    results = [subject.evaluate(s) for s in (alone, wide)]
    for result in results:
        assert np.isfinite(_number(result.energy))
        assert _array(result.forces).shape == (1, 3)
        assert np.abs(_array(result.forces)).max() <= _TOLERANCES[subject.dtype][1]
    _same_energy(subject, *results)


def beyond_the_cutoff(subject: Subject) -> None:
    """Two atoms too far apart to interact have the sum of their energies, and no forces."""
    pair = atoms_apart(subject.elements, 1.5 * subject.cutoff)
    result = subject.evaluate(pair)
    alone = [
        replace(pair, atomic_numbers=pair.atomic_numbers[[i]], positions=pair.positions[[i]])
        for i in range(2)
    ]
    together = sum(_number(subject.evaluate(s).energy) for s in alone)
    _close("energy", result.energy, together, 2 * _TOLERANCES[subject.dtype][0])
    assert np.abs(_array(result.forces)).max() <= _TOLERANCES[subject.dtype][1]


def continuous_at_the_cutoff(subject: Subject) -> None:
    """The energy does not jump where a neighbour comes or goes."""
    inside, outside = (
        subject.evaluate(atoms_apart(subject.elements, subject.cutoff + step)).energy
        for step in (-1e-5, 1e-5)
    )
    _close("energy", inside, outside, max(1e-8, 2 * _TOLERANCES[subject.dtype][0]))


def extensive(subject: Subject) -> None:
    """Two cells beside one another have twice the energy, the same forces and the same stress."""
    one = crystal(subject.elements)
    shift = one.cell[0]
    two = replace(
        one,
        atomic_numbers=np.tile(one.atomic_numbers, 2),
        positions=np.concatenate([one.positions, one.positions + shift]),
        cell=one.cell * np.array([[2.0], [1.0], [1.0]]),
    )
    single, double = subject.evaluate(one), subject.evaluate(two)
    expected = replace(
        double,
        energy=2 * _number(single.energy),
        forces=np.tile(_array(single.forces), (2, 1)),
        stress=single.stress,
    )
    _same(subject, double, expected)


def image_shift(subject: Subject) -> None:
    """Atoms may lie in any image of the cell."""
    start = crystal(subject.elements)
    shifts = np.random.default_rng(1).integers(-2, 3, size=(len(start), 3)) @ start.cell
    moved = replace(start, positions=start.positions + shifts)
    _same(subject, subject.evaluate(moved), subject.evaluate(start))


def translation(subject: Subject) -> None:
    """Space is the same everywhere."""
    for start in _both(subject):
        moved = replace(start, positions=start.positions + np.array([1.1, -0.7, 2.3]))
        _same(subject, subject.evaluate(moved), subject.evaluate(start))


def rotation(subject: Subject) -> None:
    """Forces and stress turn with the structure."""
    turn = random_rotation()
    for start in _both(subject):
        turned = replace(start, positions=start.positions @ turn, cell=start.cell @ turn)
        before = subject.evaluate(start)
        stress = None if before.stress is None else turn.T @ before.stress @ turn
        expected = replace(before, forces=_array(before.forces) @ turn, stress=stress)
        _same(subject, subject.evaluate(turned), expected)


def permutation(subject: Subject) -> None:
    """The order of the atoms does not matter."""
    for start in _both(subject):
        order = np.random.default_rng(2).permutation(len(start))
        mixed = replace(
            start, atomic_numbers=start.atomic_numbers[order], positions=start.positions[order]
        )
        before = subject.evaluate(start)
        expected = replace(before, forces=_array(before.forces)[order])
        _same(subject, subject.evaluate(mixed), expected)


def forces_are_minus_the_gradient(subject: Subject) -> None:
    """Along random directions, by central differences of the energy."""
    _, _, step, tolerance = _TOLERANCES[subject.dtype]
    rng = np.random.default_rng(3)
    for start in _both(subject):
        forces = _array(subject.evaluate(start).forces)
        for _ in range(2):
            direction = rng.standard_normal(forces.shape)
            direction /= np.linalg.norm(direction)
            ends = [
                _number(
                    subject.evaluate(
                        replace(start, positions=start.positions + sign * step * direction)
                    ).energy
                )
                for sign in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            scale = max(1.0, float(np.linalg.norm(forces)))
            _close("force", -(forces * direction).sum(), slope, tolerance * scale)


def stress_is_the_strain_derivative(subject: Subject) -> None:
    """Of the energy per volume; nothing to check where there is no stress."""
    start = crystal(subject.elements)
    stress = subject.evaluate(start).stress
    if stress is None:
        return
    _, _, step, tolerance = _TOLERANCES[subject.dtype]
    np.testing.assert_allclose(stress, stress.T, atol=_TOLERANCES[subject.dtype][1])
    rng = np.random.default_rng(4)
    volume = abs(np.linalg.det(start.cell))
    for _ in range(2):
        strain = rng.standard_normal((3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)
        ends = []
        for sign in (1, -1):
            deform = np.eye(3) + sign * step / 3 * strain
            deformed = replace(start, positions=start.positions @ deform, cell=start.cell @ deform)
            ends.append(_number(subject.evaluate(deformed).energy))
        slope = (ends[0] - ends[1]) / (2 * step / 3) / volume
        scale = max(1.0, float(np.linalg.norm(stress)))
        _close("stress", (stress * strain).sum(), slope, tolerance * scale)


def unmutated_input(subject: Subject) -> None:
    """What is given is not changed, and what was returned does not change later."""
    start = crystal(subject.elements)
    names = ("atomic_numbers", "positions", "cell", "pbc")
    before = {name: getattr(start, name).copy() for name in names}
    result = subject.evaluate(start)
    kept = _array(result.forces).copy()
    subject.evaluate(crystal(subject.elements, seed=1))
    for name in names:
        assert np.array_equal(getattr(start, name), before[name]), f"{name} was changed"
    assert np.array_equal(_array(result.forces), kept), "forces changed after they were returned"


def repeated_calls(subject: Subject) -> None:
    """Nothing is left over from other structures: more atoms, fewer, without a cell."""
    for start in _both(subject):
        first = subject.evaluate(start)
        for other in (atoms_apart(subject.elements, 0), *_both(subject, seed=1)):
            subject.evaluate(other)
        _same(subject, subject.evaluate(start), first)


def bad_cell(subject: Subject) -> None:
    """A periodic cell must span a volume; a left-handed one is the same lattice or refused."""
    start = crystal(subject.elements)
    flat, mirrored = start.cell.copy(), start.cell.copy()
    flat[2] = flat[0] + flat[1]
    mirrored[[0, 1]] = mirrored[[1, 0]]
    for cell in (flat, np.zeros((3, 3)), start.cell * np.nan):
        _refused(subject, replace(start, cell=cell))
    try:
        turned = subject.evaluate(replace(start, cell=mirrored))
    except subject.refusal:
        return
    _same(subject, turned, subject.evaluate(start))


def not_a_number(subject: Subject) -> None:
    """Positions must be finite, and the next structure is computed as if nothing had been."""
    start = crystal(subject.elements)
    before = subject.evaluate(start)
    for bad in (np.nan, np.inf):
        positions = start.positions.copy()
        positions[5, 1] = bad
        _refused(subject, replace(start, positions=positions))
    _same(subject, subject.evaluate(start), before)


def unknown_element(subject: Subject) -> None:
    """An element that the potential does not know is refused."""
    unknown = [z for z in range(1, _URANIUM + 1) if z not in subject.elements]
    if not unknown:
        return
    start = cluster(subject.elements)
    numbers = start.atomic_numbers.copy()
    numbers[-1] = unknown[-1]
    _refused(subject, replace(start, atomic_numbers=numbers))


#: name -> check; each takes a :class:`Subject` and raises AssertionError.
CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        one_atom,
        beyond_the_cutoff,
        continuous_at_the_cutoff,
        extensive,
        image_shift,
        translation,
        rotation,
        permutation,
        forces_are_minus_the_gradient,
        stress_is_the_strain_derivative,
        unmutated_input,
        repeated_calls,
        bad_cell,
        not_a_number,
        unknown_element,
    )
}


# --- what the checks share ------------------------------------------------------------------------
def _both(subject: Subject, seed: int = 0) -> tuple[Structure, Structure]:
    return crystal(subject.elements, seed), cluster(subject.elements, seed)


def _number(value: float | None) -> float:
    assert value is not None, "there is no energy"
    return value


def _array(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "there are no forces"
    return values


def _close(what: str, value: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=what)


def _same_energy(subject: Subject, value: Structure, expected: Structure) -> None:
    tolerance = _TOLERANCES[subject.dtype][0] * len(value)
    _close("energy", value.energy, expected.energy, tolerance)


def _same(subject: Subject, value: Structure, expected: Structure) -> None:
    tolerance = _TOLERANCES[subject.dtype][1]
    _same_energy(subject, value, expected)
    scale = max(1.0, float(np.abs(_array(expected.forces)).max()))
    _close("forces", value.forces, expected.forces, tolerance * scale)
    assert (value.stress is None) == (expected.stress is None), "only one of two has a stress"
    if expected.stress is not None:
        _close("stress", value.stress, expected.stress, tolerance)


def _refused(subject: Subject, structure: Structure) -> None:
    reason = ""
    try:
        result = subject.evaluate(structure)
    except subject.refusal as error:
        reason = str(error).strip() or type(error).__name__
    assert reason, f"was not refused; the energy is {result.energy}"


def _through_ase(calculator: Calculator) -> Callable[[Structure], Structure]:
    def evaluate(structure: Structure) -> Structure:
        atoms = structure.to_atoms(labels=False)
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        stress = None
        if structure.pbc.all() and "stress" in calculator.implemented_properties:
            stress = atoms.get_stress(voigt=False)
        return structure.with_labels(energy, forces, stress)

    return evaluate


def _through_model(model: EnergyModel) -> Callable[[Structure], Structure]:
    return lambda structure: model.label([structure])[0]


def _through_compute(potential: Any) -> Callable[[Structure], Structure]:
    def evaluate(structure: Structure) -> Structure:
        s = structure
        result = potential.compute(s.atomic_numbers, s.positions, s.cell, s.pbc)
        stress = None
        if s.pbc.all():
            stress = -np.asarray(result["virial"]) / abs(np.linalg.det(s.cell))
        return s.with_labels(result["energy"], result["forces"], stress)

    return evaluate
