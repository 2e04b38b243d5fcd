"""``teacher_correction``: teacher minus student as an ``openmm.Force``, for multiple time steps.

    system.addForce(painn_force(topology, "student.pt"))  # force group 0
    system.addForce(teacher_correction(topology, "student.pt", "sevennet-0"))  # force group 1
    integrator = MTSIntegrator(8 * femtoseconds, [(0, 8), (1, 1)])

OpenMM's own integrators do the rest by force groups (Tuckerman, Berne and Martyna 1992,
doi:10.1063/1.463137).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator

from mlff_distiller.constants import MAX_THREADS
from mlff_distiller.data import Structure
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.files import sha256
from mlff_distiller.multistep.correction import Correction
from mlff_distiller.openmm.checks import (
    check_choices,
    check_count,
    check_topology,
    check_unchanged,
    checked_atoms,
    checked_integer,
    checked_model,
    checked_periodic,
)
from mlff_distiller.openmm.force import atomic_numbers, openmm
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.students.potential import dtype_name
from mlff_distiller.teachers import as_teacher
from mlff_distiller.units import ANGSTROM_IN_NM, EV_IN_KJ_PER_MOL

if TYPE_CHECKING:
    from openmm.app import Topology

ANGSTROM_PER_NM = 1.0 / ANGSTROM_IN_NM
_FORCE_UNIT = EV_IN_KJ_PER_MOL * ANGSTROM_PER_NM
# Configurations of which the answer is kept. A Monte Carlo barostat that refuses a move goes back to
# the one before, and whoever asks for energies after a step asks again.
_KEPT = 4


def teacher_correction(
    topology: Topology,
    model: str | Path,
    teacher: str | EnergyModel | Calculator,
    atoms: Iterable[int] | None = None,
    *,
    precision: str = "single",
    periodic: bool | None = None,
    force_group: int = 1,
    threads: int = 0,
    device: str = "cpu",
    keep: Callable[[Structure], None] | None = None,
) -> openmm.Force:
    """Make the force that takes the student's surface to the teacher's; add it to a System.

    Beside ``painn_force`` with the same model, atoms, precision and periodicity, and in another
    force group, so that MTSIntegrator or MTSLangevinIntegrator evaluate it once an outer step. The
    energy of all groups is then the teacher's, and so is what a Monte Carlo barostat asks for: each
    of its attempts is a call of the teacher more.

    Serialization: as of the python backend of ``painn_force``, with the teacher's name in place of
    the teacher; a System with a teacher that is an object cannot be saved or copied.

    Args:
        topology: elements and, unless ``periodic`` is given, whether there is a box.
        model: the student's file.
        teacher: name of the registry, ``module:Class(...)``, or any ASE calculator.
        atoms: indices that the student sees, in the order given to ``painn_force``; None for all.
        precision: of the student.
        periodic: whether teacher and student see periodic images; None asks the topology.
        force_group: 0..31; not that of the student.
        threads: of the student; 0 is OpenMP's default.
        device: of a teacher given by name, ``cpu`` or ``cuda``.
        keep: told each configuration with the teacher's labels, e.g. ``append`` of
            :class:`~mlff_distiller.multistep.labels.KeptLabels`.

    Returns:
        An ``openmm.PythonForce`` that is not yet owned by a System. Its attribute ``correction`` has
        ``calls`` of the teacher and their ``seconds``.

    Raises:
        InputError: OpenMM before 8.4, unusable file, unknown teacher, option or value, atoms out of
            range or twice, elements or a periodicity that teacher or student lack.
    """
    check_topology(topology)
    check_choices("auto", precision, device)
    periodic = checked_periodic(periodic, topology)
    force_group = checked_integer("force_group", force_group, 31, "choose another")
    threads = checked_integer("threads", threads, MAX_THREADS, "0 is OpenMP's default")
    path = checked_model(model)
    particles = None if atoms is None else checked_atoms(atoms, topology.getNumAtoms())
    recipe = {
        "model": str(path),
        "dtype": str(dtype_name(precision)),
        "threads": threads,
        "teacher": teacher,
        "device": device,
    }
    correction = _opened(recipe)
    correction.keep = keep
    computation = CorrectionComputation(
        correction,
        atomic_numbers(topology, particles),
        periodic=periodic,
        recipe={**recipe, "digest": sha256(path)} if isinstance(teacher, str) else None,
    )
    force = correction_force(computation, particles)
    force.setForceGroup(force_group)
    return force


def correction_force(
    computation: CorrectionComputation, particles: Sequence[int] | None = None
) -> openmm.Force:
    """``computation`` as a force.

    Raises:
        InputError: OpenMM before 8.4.
    """
    if not hasattr(openmm, "PythonForce"):
        raise InputError(
            f"corrections by a teacher need OpenMM 8.4 or later, got {openmm.__version__}; run: "
            "pip install -U openmm"
        )
    force = openmm.PythonForce(computation)
    if particles is not None:
        if hasattr(force, "setParticles"):  # since 8.6
            force.setParticles(list(particles))
        else:
            computation.particles = list(particles)
    force.setUsesPeriodicBoundaryConditions(computation.periodic)
    force.setName("TeacherCorrection")
    force.correction = computation.correction
    return force


class CorrectionComputation:
    """Energy (kJ/mol) and forces (kJ/mol/nm) of teacher minus student, for ``openmm.PythonForce``.

    Args:
        correction: teacher minus student.
        atomic_numbers: of the particles that the State will hold.
        periodic: whether there are periodic images.
        rotation: (3, 3); OpenMM's vectors are those of ``correction`` ``@ rotation``.
        recipe: what a pickle holds in place of the correction; None forbids pickles.
        step: told OpenMM's count of steps before each call of the teacher.

    Attributes:
        failure: what the last call raised; OpenMM makes texts of exceptions.
        particles: which of the State's particles these are, where OpenMM does not choose them.

    Raises:
        InputError: elements or a periodicity that teacher or student lack.
    """

    def __init__(
        self,
        correction: Correction,
        atomic_numbers: Sequence[int],
        *,
        periodic: bool,
        rotation: np.ndarray | None = None,
        recipe: dict[str, Any] | None = None,
        step: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.correction = correction
        self.atomic_numbers = np.asarray(atomic_numbers, dtype=np.int64)
        self.periodic = periodic
        self.particles: list[int] | None = None
        self._recipe, self._rotation, self._step = recipe, rotation, step
        self._prepare()
        nowhere = np.zeros((len(self.atomic_numbers), 3))
        correction.check(self._structure(nowhere, np.eye(3)))

    def _prepare(self) -> None:
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        if self._recipe is None:
            raise InputError(
                "a System with a teacher that is an object cannot be saved or copied; give "
                "teacher_correction the teacher's name, e.g. 'sevennet-0' or 'module:Class(...)'"
            )
        return {
            "recipe": self._recipe,
            "atomic_numbers": self.atomic_numbers.tolist(),
            "periodic": self.periodic,
            "particles": self.particles,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Opened in the first step: an exception in here would not reach the user.
        self.atomic_numbers = np.asarray(state["atomic_numbers"], dtype=np.int64)
        self.periodic, self.particles = state["periodic"], state["particles"]
        self._recipe, self._rotation = state["recipe"], None
        self._step = lambda count: None
        self._prepare()

    def __getattr__(self, name: str) -> Any:
        if name != "correction":
            raise AttributeError(name)
        recipe = self._recipe
        check_unchanged(recipe["model"], recipe["digest"])
        self.correction = _opened(recipe)
        return self.correction

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Called by OpenMM.

        Args:
            state: ``openmm.State`` with positions and, if periodic, a box.

        Returns:
            energy, kJ/mol, and forces (n, 3), kJ/mol/nm, C-contiguous float64.

        Raises:
            InputError: the teacher or the student failed, another number of particles, a model that
                has changed; OpenMM passes the message on as OpenMMException.
        """
        try:
            with self._lock:
                return self._compute(state)
        except BaseException as error:
            self.failure = error
            raise

    def _compute(self, state: Any) -> tuple[float, np.ndarray]:
        positions = np.asarray(state.getPositions(asNumpy=True)._value)
        count = len(positions)
        check_count(count, len(self.atomic_numbers), self.particles)
        if self.particles is not None:
            positions = positions[self.particles]
        box = np.zeros((3, 3))
        if self.periodic:
            box = np.asarray(state.getPeriodicBoxVectors(asNumpy=True)._value)
        # By OpenMM's own numbers: the same configuration has the same bytes.
        key = positions.tobytes() + box.tobytes()
        known = self._known.pop(key, None)
        if known is None:
            self._step(state.getStepCount())
            structure = self._structure(positions * ANGSTROM_PER_NM, box * ANGSTROM_PER_NM)
            difference = self.correction.compute(structure)
            forces = difference.forces
            if self._rotation is not None:
                forces = forces @ self._rotation
            known = difference.energy * EV_IN_KJ_PER_MOL, forces * _FORCE_UNIT
        self._known[key] = known
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        energy, forces = known
        if self.particles is None:
            return energy, np.array(forces, order="C")
        everywhere = np.zeros((count, 3))
        everywhere[self.particles] = forces
        return energy, everywhere

    def _structure(self, positions: np.ndarray, cell: np.ndarray) -> Structure:
        if self._rotation is not None:
            positions, cell = positions @ self._rotation.T, cell @ self._rotation.T
        if not self.periodic:
            cell = np.zeros((3, 3))
        return Structure(self.atomic_numbers, positions, cell, np.full(3, self.periodic))


def _opened(recipe: dict[str, Any]) -> Correction:
    teacher = as_teacher(recipe["teacher"], device=recipe["device"])
    student = ExportedModel(recipe["model"], dtype=recipe["dtype"], threads=recipe["threads"])
    return Correction(teacher, student)
