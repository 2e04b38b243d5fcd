"""How many CPUs this process may keep busy, and how its threads wait on a shared machine."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """CPUs of the affinity mask, or fewer where a control group (container, batch system) says so.

    What a machine has is more on a shared node, and threads beyond this number only wait for each
    other.
    """
    from mlff_distiller.ops.engine import cpu_quota

    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cpus, cpu_quota() or cpus)


def share_cpus() -> None:
    """Have OpenMP's threads sleep soon while they wait for each other.

    By default they spin, and beside other processes each spins away the time that the one it waits
    for would need. Must run before torch is loaded: the library reads the environment then.
    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


#: Of GNU OpenMP (which torch brings, too). Measured by benchmarks/busy.py.
SPIN_COUNT = "10000"
