"""OpenMM runs exported students: ``painn_force`` and the potential ``painn`` of OpenMM-ML.

    from mlff_distiller.openmm import painn_force

    system.addForce(painn_force(topology, "student.pt"))
    system.addForce(teacher_correction(topology, "student.pt", "sevennet-0"))  # with MTSIntegrator
    simulation.reporters.append(UncertaintyReporter("u.csv", 100, "student.pt", topology))

Nothing is imported before it is used: OpenMM-ML loads the entry point of this package in every
process that imports it, and must not fail or wait for torch there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.openmm.correction import teacher_correction
    from mlff_distiller.openmm.force import keep_molecules_whole, painn_force
    from mlff_distiller.openmm.reporter import UncertaintyReporter

__all__ = ["UncertaintyReporter", "keep_molecules_whole", "painn_force", "teacher_correction"]


def __getattr__(name: str) -> Any:
    if name == "UncertaintyReporter":
        from mlff_distiller.openmm import reporter

        return reporter.UncertaintyReporter
    if name == "teacher_correction":
        from mlff_distiller.openmm import correction

        return correction.teacher_correction
    if name in __all__:
        from mlff_distiller.openmm import force

        return getattr(force, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
