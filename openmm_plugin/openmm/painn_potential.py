"""The potential ``painn`` of OpenMM-ML (entry-point group ``openmmml.potentials``).

    potential = MLPotential("painn", modelPath="student.pt")
    system = potential.createSystem(topology)
    system = potential.createMixedSystem(topology, mm_system, ml_atoms, interpolate=True)

OpenMM-ML imports this module while it is itself half imported, in every process that uses any
potential. Hence nothing from openmmml, torch or openmm at the top.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlff_distiller.errors import InputError

OPTIONS = ("backend", "device", "precision", "periodic", "threads", "skin", "math")


class PainnPotentialImplFactory:
    """Makes what ``MLPotential("painn", modelPath=...)`` holds.

    Keyword arguments of :func:`mlff_distiller.openmm.painn_force` may be given here or to
    ``createSystem`` and ``createMixedSystem``, where they win.
    """

    def createImpl(
        self,
        name: str,
        modelPath: str | Path | None = None,
        **args: Any,
    ) -> Any:
        """Called by ``MLPotential``.

        Raises:
            InputError: no model, a file that cannot be used, a misspelt option.
        """
        from openmmml.mlpotential import MLPotentialImpl

        from mlff_distiller.students.file import read_metadata

        if modelPath is None:
            raise InputError(
                f"the potential {name!r} needs a model; write "
                f'MLPotential("{name}", modelPath="student.pt")'
            )
        read_metadata(modelPath)
        _check_options(args)

        class PainnPotentialImpl(_Implementation, MLPotentialImpl):
            """Ours first; OpenMM-ML's class for whatever it adds later."""

        return PainnPotentialImpl(str(Path(modelPath).absolute()), args)


class _Implementation:
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.model_path = path
        self.options = options

    def addForces(
        self,
        topology: Any,
        system: Any,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        from mlff_distiller.openmm.force import keep_molecules_whole, painn_force

        _check_options(args)
        options = {**self.options, **{key: args[key] for key in OPTIONS if key in args}}
        if options.get("periodic") is None:
            boxed = topology.getPeriodicBoxVectors() is not None
            # A topology without a box may describe a periodic MM system.
            options["periodic"] = boxed or system.usesPeriodicBoundaryConditions()
        atoms = None if atoms is None else list(atoms)
        force = painn_force(topology, self.model_path, atoms, force_group=forceGroup, **options)
        system.addForce(force)
        if force.getName() != "PainnForce":
            # The C++ force knows its molecules; the others need help with that.
            bonds = keep_molecules_whole(topology, atoms, periodic=options["periodic"])
            if bonds.getNumBonds():
                bonds.setForceGroup(forceGroup)
                system.addForce(bonds)

    def getMLLongRange(self) -> bool:
        return False


def _check_options(args: dict[str, Any]) -> None:
    # OpenMM-ML hands over options of its embeddings as well, so only near misses are errors.
    for key in args:
        if key not in OPTIONS:
            close = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.75)
            if close:
                raise InputError(f"unknown option {key!r} of painn; did you mean {close[0]!r}?")
