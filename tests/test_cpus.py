"""How many threads are used where the machine does not belong to this process alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import clean_environment

from mlff_distiller import cpus

native = pytest.importorskip("mlff_distiller._native").testing


def quota(folder: Path, groups: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "groups").write_text(groups)
    return native.cpu_quota(str(folder / "mounted"), str(folder / "groups"))


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 0),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/job\n", {"job/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "20000 10000"}, 2),
        # A container that shows the group's name as seen from outside.
        ("0::/docker/12ab\n", {"cpu.max": "100000 100000"}, 1),
        (
            "4:memory:/m\n3:cpu,cpuacct:/slurm/job\n0::/\n",
            {
                "cpu/slurm/job/cpu.cfs_quota_us": "50000",
                "cpu/slurm/job/cpu.cfs_period_us": "100000",
                "memory/m/cpu.max": "1 1",
            },
            1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "garbage"}, 0),
        ("", {}, 0),
        ("0:nonsense", {"cpu.max": "1 1"}, 0),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, groups: str, files: dict, wanted: int) -> None:
    assert quota(tmp_path, groups, files) == wanted


def test_no_more_than_the_affinity_and_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0))
    for limit, wanted in ((0, allowed), (1, 1), (allowed + 5, allowed)):
        monkeypatch.setattr("mlff_distiller.ops.engine.cpu_quota", lambda limit=limit: limit)
        assert cpus.usable_cpus() == wanted


def test_engines_start_as_many_threads_as_they_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from mlff_distiller import _native, cpus\n"
        "print(_native.testing.default_threads(), cpus.usable_cpus())"
    )
    free = {k: v for k, v in clean_environment().items() if k != "OMP_NUM_THREADS"}
    for environment, wanted in ((free, "1 1"), ({**free, "OMP_NUM_THREADS": "3"}, "3 1")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=environment,
        )  # fmt: skip
        assert done.stdout.strip() == wanted
