"""Acceptance gates: may this student be used at these conditions?

Teacher and student go through the same measuring functions, one file for each kind of gate:
``lattice elastic defects phonons`` of crystals, ``molecules``, ``liquids``, ``visited`` and
``stability`` of the student's own dynamics. :mod:`.run` strings them, docs/acceptance.md is for
readers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlff_distiller.evaluation.gates.run import run_gates
from mlff_distiller.evaluation.gates.gate import Gate, all_passed, failures
from mlff_distiller.evaluation.gates.settings import AcceptanceConfig

__all__ = ["AcceptanceConfig", "Gate", "all_passed", "failures", "run_gates"]


def __getattr__(name: str) -> object:
    # The settings are read by config.py, which run.py needs.
    if name == "run_gates":
        from mlff_distiller.evaluation.gates.run import run_gates

        return run_gates
    raise AttributeError(name)
