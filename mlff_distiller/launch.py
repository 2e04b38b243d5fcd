"""Who started this process, and as which of how many: torchrun, SLURM or nobody.

The environments are those that Lightning detects. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlff_distiller.errors import InputError


@dataclass(frozen=True)
class Launch:
    """Processes that somebody else started, of which this is one."""

    by: str
    """``torchrun`` or ``srun``."""
    rank: int
    """0 .. processes * nodes - 1."""
    local_rank: int
    """0 .. processes - 1."""
    processes: int
    """On each machine."""
    nodes: int

    @property
    def total(self) -> int:
        """Processes of all machines."""
        return self.processes * self.nodes


def launched() -> Launch | None:
    """How this process was started with others; None if it stands alone.

    A shell or a batch script of SLURM stands alone: only ``srun`` starts one process per task.

    Raises:
        InputError: machines with unequal numbers of processes.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        total, local = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
        return _launch("torchrun", int(env["RANK"]), int(env["LOCAL_RANK"]), total, local)
    # srun sets the step; a job named so is one that people type in (Lightning's rule).
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and not interactive:
        total = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        place = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
        return _launch("srun", *place, total, -(-total // nodes))
    return None


def _launch(by: str, rank: int, local_rank: int, total: int, local: int) -> Launch | None:
    if total == 1:
        return None
    if total % local:
        raise InputError(
            f"{by} must start equally many processes on each machine, got {total} of which {local} "
            "on one; start others"
        )
    return Launch(by, rank, local_rank, local, total // local)


def leads() -> bool:
    """Whether this process is the first of all, or alone: it gives the result."""
    launch = launched()
    return launch is None or launch.rank == 0


def speaks() -> bool:
    """Whether this process is the first of its machine, or alone: it says what is wrong there."""
    try:
        launch = launched()
    except InputError:
        return True
    return launch is None or launch.local_rank == 0
