"""Child processes that inherit nothing which would change what they compute."""

from __future__ import annotations

import os
import signal

_DROPPED = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "MLFF_", "PYTHON", "OPENMM_", "LAMMPS_")


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of threads, of this package and of Python; then ``more``.

    One thread unless asked: tests run side by side.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_DROPPED)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def default_signals() -> None:
    """For ``preexec_fn``: a child that can be interrupted.

    A shell that starts a script in the background has it ignore SIGINT, and children inherit that:
    without this a test would wait for an interrupt that nobody gets.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
