"""Multiple time steps in ASE.

    dynamics = MultipleTimeStep(atoms, 1.0 * units.fs, teacher, every=8, temperature_K=300)
    dynamics.run(1000)  # outer steps: one call of the teacher each

``atoms.calc`` is the student, ``teacher`` any ASE calculator or a :class:`Correction`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane
from ase.md.md import MolecularDynamics
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.data import Structure
from mlff_distiller.energy_model import Labels
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import right_handed
from mlff_distiller.multistep.correction import Correction, Difference
from mlff_distiller.teachers import CalculatorTeacher, as_teacher

#: 1 / ASE's unit of time: thermostats of this package.
FRICTION = 0.01 / units.fs
# What they allow is a linear space: motion within it needs projected momenta alone.
_LINEAR = (FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane)


class InnerSteps:
    """Steps on the surface of ``atoms.calc``: velocity Verlet, or BAOAB with a temperature.

    BAOAB is that of Leimkuhler and Matthews 2013 (doi:10.1063/1.4802990).

    Args:
        atoms: what moves.
        timestep: ASE's unit of time.
        temperature_K: None for velocity Verlet.
        friction: 1 / ASE's unit of time.
        rng: of the thermostat.

    Raises:
        InputError: constraints other than held atoms, coordinates, lines, planes, centre of mass.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature_K: float | None = None,
        friction: float = FRICTION,
        rng: np.random.Generator | None = None,
    ) -> None:
        for constraint in atoms.constraints:
            if not isinstance(constraint, _LINEAR):
                raise InputError(
                    "multiple time steps hold atoms, coordinates, lines, planes and the centre of "
                    f"mass, got {type(constraint).__name__}; remove this constraint"
                )
        self.atoms, self.timestep, self.temperature_K = atoms, timestep, temperature_K
        self.rng = np.random.default_rng() if rng is None else rng
        self._masses = atoms.get_masses()[:, None]
        self._decay = float(np.exp(-friction * timestep))

    def run(self, steps: int) -> None:
        """So many steps."""
        atoms, dt, masses = self.atoms, self.timestep, self._masses
        momenta, forces = atoms.get_momenta(), atoms.get_forces(apply_constraint=False)
        for _ in range(steps):
            momenta = self._projected(momenta + 0.5 * dt * forces)
            if self.temperature_K is None:
                atoms.positions += dt * momenta / masses
            else:
                atoms.positions += 0.5 * dt * momenta / masses
                momenta = self._projected(self._thermostatted(momenta))
                atoms.positions += 0.5 * dt * momenta / masses
            forces = atoms.get_forces(apply_constraint=False)
            momenta = self._projected(momenta + 0.5 * dt * forces)
        atoms.set_momenta(momenta, apply_constraint=False)

    def _thermostatted(self, momenta: np.ndarray) -> np.ndarray:
        assert self.temperature_K is not None
        width = (1.0 - self._decay**2) * units.kB * self.temperature_K * self._masses
        noise = self.rng.standard_normal(momenta.shape)
        thermal: np.ndarray = self._decay * momenta + np.sqrt(width) * noise
        return thermal

    def _projected(self, momenta: np.ndarray) -> np.ndarray:
        for constraint in self.atoms.constraints:
            constraint.adjust_momenta(self.atoms, momenta)
        return momenta


class MultipleTimeStep(MolecularDynamics):
    """Dynamics on the teacher's surface with the student in between.

    An outer step is half an impulse of teacher - student, ``every`` inner steps on the student's
    surface, and the other half: reversible r-RESPA (Tuckerman, Berne and Martyna 1992,
    doi:10.1063/1.463137). At constant temperature the inner steps are BAOAB (BAOAB-RESPA,
    Lagardère, Aviat and Piquemal 2019, doi:10.1021/acs.jpclett.9b00901). One outer step needs one
    call of the teacher. Observers and ``run`` count outer steps.

    Args:
        atoms: its calculator is the student.
        timestep: of the inner steps, ASE's unit of time.
        correction: who says what the teacher says: a Correction, or any ASE calculator.
        every: inner steps in an outer step.
        temperature_K: of the thermostat; None: constant energy.
        friction: of the thermostat, 1 / ASE's unit of time.
        rng: of the thermostat.
        barostat: ``ase.md.langevinbaoab.LangevinBAOAB`` of the same atoms and time step, which
            then makes the inner steps, with its own temperature and stress. The impulse acts on
            the momentum of the cell, too.
        first_step: inner steps before this run, for messages and kept labels.
        keywords: of ASE's MolecularDynamics: trajectory, logfile, loginterval.

    Raises:
        InputError: atoms without a calculator, ``every`` below 1, constraints other than of
            :class:`InnerSteps`, a teacher that fails or, with a barostat, has no stress.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        correction: Correction | Calculator,
        every: int = 8,
        *,
        temperature_K: float | None = None,
        friction: float = FRICTION,
        rng: np.random.Generator | None = None,
        barostat: Any = None,
        first_step: int = 0,
        **keywords: Any,
    ) -> None:
        if atoms.calc is None:
            raise InputError(
                "the inner steps need a student, got atoms without one; set atoms.calc"
            )
        if int(every) != every or every < 1:
            raise InputError(f"every must be a positive integer, got {every!r}; use e.g. 8")
        if barostat is not None and not np.isclose(barostat.dt, timestep):
            raise InputError(
                f"the barostat's time step must be that of the inner steps, {timestep:g}, got "
                f"{barostat.dt:g}; make it anew"
            )
        self.every, self.inner_timestep = int(every), float(timestep)
        super().__init__(atoms, self.every * self.inner_timestep, **keywords)
        if not isinstance(correction, Correction):
            student = CalculatorTeacher("the student", atoms.calc)
            correction = Correction(as_teacher(correction), student)
        self.correction, self.barostat = correction, barostat
        self.first_step = first_step
        self._inner = InnerSteps(atoms, timestep, temperature_K, friction, rng)

    @property
    def difference(self) -> Difference:
        """Teacher and student where the atoms are; a call of the teacher if they were moved."""
        atoms = self.atoms
        cell, pbc = right_handed(atoms.cell.array, atoms.pbc)
        here = Structure(atoms.numbers, atoms.positions, cell, pbc)
        stress = None
        if self.barostat is not None:
            stress = voigt_6_to_full_3x3_stress(atoms.get_stress(apply_constraint=False))
        student = Labels(
            atoms.get_potential_energy(apply_constraint=False),
            atoms.get_forces(apply_constraint=False),
            stress,
        )
        found = self.correction.compute(here, student)
        if self.barostat is not None and found.stress is None:
            raise InputError(
                f"constant pressure needs a stress, {self.correction.teacher.name} gives none; use "
                "--ensemble nvt"
            )
        return found

    def get_teacher_energy(self) -> float:
        """Potential energy of the teacher at the last outer step, eV."""
        return self.difference.teacher.energy

    def step(self) -> None:
        """One outer step."""
        self.correction.step = self.first_step + self.nsteps * self.every
        self._kick()
        if self.barostat is None:
            self._inner.run(self.every)
        else:
            self.barostat._update_accel()
            self.barostat._update_force_eps()  # the kick has changed the kinetic energy
            for _ in range(self.every):
                self.barostat.step()
        self.correction.step = self.first_step + (self.nsteps + 1) * self.every
        self._kick()

    def todict(self) -> dict[str, Any]:
        """Settings, as ASE's trajectories record them."""
        more = {"every": self.every, "inner_timestep": self.inner_timestep}
        return {**super().todict(), **more, "teacher": self.correction.teacher.name}

    def _kick(self) -> None:
        """Half an impulse."""
        difference, half = self.difference, 0.5 * self.dt
        self.atoms.set_momenta(self.atoms.get_momenta() + half * difference.forces)
        if self.barostat is None or difference.stress is None:
            return
        # -dU/dε of the strain ε that the barostat moves.
        virial = -self.atoms.get_volume() * difference.stress
        self.barostat.p_eps += half * (np.trace(virial) if self.barostat.hydrostatic else virial)
