"""How many CPUs this process may keep busy."""

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
