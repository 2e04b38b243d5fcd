"""Outer steps in OpenMM: its own multiple-time-step integrators, with the teacher as a force.

The student is force group 0, teacher minus student group 1. NVE is MTSIntegrator, which is velocity
Verlet: positions and velocities of one time, without the half step of leapfrog. NVT is
MTSLangevinIntegrator, BAOAB-RESPA (Lagardère, Aviat and Piquemal 2019,
doi:10.1021/acs.jpclett.9b00901). Monte Carlo barostats ask for the energy of all groups, which is
the teacher's: NPT is exact, for one call of the teacher more an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlff_distiller.data import Structure
from mlff_distiller.multistep.correction import Correction

if TYPE_CHECKING:
    from mlff_distiller.dynamics.settings import MDSettings

#: 1/ps, of the Langevin thermostats.
FRICTION = 10.0
#: Steps from one attempt of the barostat to the next ...
STEP_OF_BAROSTAT = 25
_STUDENT, _CORRECTION = 0, 1
# ... and outer ones, at least: at most a tenth more calls of the teacher.
_LEAST_OUTER_STEPS = 10


class OuterSteps:
    """Teacher minus student in a System, and who integrates it.

    Args:
        structure: the start.
        settings: with ``every``.
        correction: teacher minus student.
        rotation: (3, 3), from the structure into OpenMM's box.
        first_step: steps before this run, for messages and kept labels.

    Attributes:
        force: to be added to the System.
        first_count: OpenMM's own count of steps where this run begins.

    Raises:
        InputError: OpenMM before 8.4, elements or a periodicity that teacher or student lack.
    """

    def __init__(
        self,
        structure: Structure,
        settings: MDSettings,
        correction: Correction,
        rotation: np.ndarray,
        first_step: int,
    ) -> None:
        from mlff_distiller.openmm.correction import CorrectionComputation, correction_force

        self._settings, self._correction = settings, correction
        self._first_step, self.first_count = first_step, 0
        self._computation = CorrectionComputation(
            correction,
            structure.atomic_numbers.tolist(),
            periodic=bool(structure.pbc.all()),
            rotation=rotation,
            step=self._at,
        )
        self.force = correction_force(self._computation)
        self.force.setForceGroup(_CORRECTION)

    @property
    def barostat_frequency(self) -> int:
        """Outer steps from one attempt to the next."""
        return max(_LEAST_OUTER_STEPS, STEP_OF_BAROSTAT // self._settings.every)

    @property
    def failure(self) -> BaseException | None:
        """What the teacher raised inside of OpenMM."""
        return self._computation.failure

    def integrator(self, seed: int) -> Any:
        """OpenMM's, of outer steps."""
        from openmm import MTSIntegrator, MTSLangevinIntegrator, unit

        s = self._settings
        step = s.every * s.timestep * unit.femtoseconds
        groups = [(_STUDENT, s.every), (_CORRECTION, 1)]
        if s.ensemble == "nve":
            return MTSIntegrator(step, groups)
        temperature, friction = s.temperature * unit.kelvin, FRICTION / unit.picosecond
        integrator = MTSLangevinIntegrator(temperature, friction, step, groups)
        integrator.setRandomNumberSeed(seed)
        return integrator

    def _at(self, count: int) -> None:
        # Within a step the count is that of its beginning, and the call is for its end.
        done = count - self.first_count + (self._correction.calls > 0)
        self._correction.step = self._first_step + self._settings.every * done
