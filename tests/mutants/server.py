"""Runs pytest again and again, each time in a fork of a process that has imported what is large.

It must not import the package: every fork imports it anew, as it is then. One JSON line in: arguments
of pytest and seconds; one out: exit status (null: it took too long) and output.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import time

for name in ("ase.build", "ase.calculators.emt", "ase.io", "ase.md.langevin", "h5py", "matplotlib",
             "lightning_fabric", "numpy", "pytest", "rich", "scipy.optimize", "torch", "typer",
             "torch.multiprocessing", "torch.utils.data", "hypothesis", "pydantic"):  # fmt: skip
    try:
        __import__(name)
    except ImportError:  # then the tests will skip, too
        continue

PR_SET_PDEATHSIG = 1  # Linux


def child(arguments: list[str], path: str) -> None:
    """Runs the tests; does not return."""
    import pytest

    os.setsid()  # whatever the tests start ends with them
    # A mutation may loop for ever; nobody would count its naps once the server is gone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 3
    try:
        status = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    # Counted in naps, not by the clock: a machine that was suspended has killed no mutation.
    for _ in range(int(seconds / 0.05)):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


for line in sys.stdin:
    job = json.loads(line)
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        pid = os.fork()
        if pid == 0:
            child(job["arguments"], log.name)
        answer = {"status": wait(pid, job["timeout"]), "output": log.read()}
    print(json.dumps(answer), flush=True)
