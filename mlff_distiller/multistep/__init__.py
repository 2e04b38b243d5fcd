"""Multiple time steps: dynamics on the teacher's surface, at a fraction of its calls.

The student gives the forces of the inner steps, and teacher minus student an impulse every n steps
(Tuckerman, Berne and Martyna 1992, doi:10.1063/1.463137). The integrator is reversible, so the
trajectory samples the teacher's surface up to its error, whatever the student is worth.

    correction.py  the difference, its calls and its errors
    ase.py         the integrator for ASE
    interval.py    how often to correct
    server.py      the difference for LAMMPS, which is another program
    labels.py      what the teacher says, kept for training
    reweight.py    averages of the teacher from a student's run, after it
"""

from mlff_distiller.multistep.ase import MultipleTimeStep
from mlff_distiller.multistep.correction import Correction, Difference

__all__ = ["Correction", "Difference", "MultipleTimeStep"]
