"""Where a run stands, in full precision: what ``md --continue`` goes on from.

Text trajectories round positions; this file beside them does not. ASE's generator of random
numbers and OpenMM's checkpoint lie in it too, so that these two go on exactly, but for the
last bits of sums and the step size of OpenMM's Monte Carlo barostat. LAMMPS does not save
the state of its thermostats: NVE goes on exactly, other ensembles with other random numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_path


@dataclass(frozen=True)
class RunState:
    """The end of a run."""

    structure: Structure
    """With momenta; no labels."""
    engine: str
    ensemble: str
    step: int
    """Since the very start."""
    time: float
    """fs, since the very start."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only this engine understands; plain JSON, or bytes under ``checkpoint``."""

    def save(self, path: Path) -> None:
        """Write it in one step."""
        s = self.structure
        extra = dict(self.extra)
        checkpoint = extra.pop("checkpoint", b"")
        words = {"engine": self.engine, "ensemble": self.ensemble, "extra": extra, "info": s.info}
        arrays: dict[str, Any] = {
            "atomic_numbers": s.atomic_numbers,
            "positions": s.positions,
            "cell": s.cell,
            "pbc": s.pbc,
            "momenta": s.momenta,
            "step": self.step,
            "time": self.time,
            "words": json.dumps(words),
            "checkpoint": np.frombuffer(checkpoint, dtype=np.uint8),
        }
        if s.fixed is not None:
            arrays["fixed"] = s.fixed
        if s.masses is not None:
            arrays["masses"] = s.masses
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> RunState:
        """Read it. Raises InputError for a missing, damaged or foreign file."""
        try:
            with np.load(path, allow_pickle=False) as data:
                words = json.loads(str(data["words"]))
                structure = Structure(
                    data["atomic_numbers"],
                    data["positions"],
                    data["cell"],
                    data["pbc"],
                    momenta=data["momenta"],
                    fixed=data.get("fixed", None),
                    info=words["info"],
                    masses=data.get("masses", None),
                )
                extra = dict(words["extra"])
                if len(data["checkpoint"]):
                    extra["checkpoint"] = data["checkpoint"].tobytes()
                return cls(
                    structure,
                    words["engine"],
                    words["ensemble"],
                    int(data["step"]),
                    float(data["time"]),
                    extra,
                )
        except FileNotFoundError:
            raise InputError(
                f"no such file: {path}, which --continue needs beside the trajectory; start a new "
                "run from its last frame"
            ) from None
        except Exception as error:  # zip, npy and JSON have errors of their own
            raise InputError(
                f"{path} must be the state of a run, got a damaged or foreign file "
                f"({type(error).__name__}); start a new run from the last frame of the trajectory"
            ) from None


def state_path(trajectory: Path) -> Path:
    """Where the state of the run that wrote ``trajectory`` lies."""
    return trajectory.with_name(f"{trajectory.name}.state")
