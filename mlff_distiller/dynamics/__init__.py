"""Running a student: one call for molecular dynamics or a single point in any engine.

    trajectory = run_md("lammps", "student.pt", structure, MDSettings(ensemble="npt", steps=1000))
    labelled = single_point("openmm", "student.pt", structure, dtype="float64")

``ase``, ``lammps`` and ``openmm`` are the real programs: LAMMPS is the ``lmp`` executable reading
an input script and OpenMM integrates on its own. ``torchscript`` (single points only) is the
portable form of the exported file, which shares no code with the native engine.
"""

from mlff_distiller.dynamics.run import ENGINES, engine_of, run_md, single_point
from mlff_distiller.dynamics.settings import MDSettings
from mlff_distiller.dynamics.state import RunState
from mlff_distiller.dynamics.trajectory import RunInterrupted, Trajectory
from mlff_distiller.dynamics.watch import RunStoppedError

__all__ = [
    "ENGINES",
    "MDSettings",
    "RunInterrupted",
    "RunState",
    "RunStoppedError",
    "Trajectory",
    "engine_of",
    "run_md",
    "single_point",
]
