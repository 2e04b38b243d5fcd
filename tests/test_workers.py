"""Processes that work side by side: teachers that label, and what happens when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer
from ase.build import bulk
from ase.calculators.emt import EMT

from mlff_distiller.cli.common import user_errors
from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.errors import InputError
from mlff_distiller.sampling import rattle_all
from mlff_distiller.teachers import get_teacher, label_dataset
from mlff_distiller.teachers.parallel import ParallelTeacher
from mlff_distiller.training.reference import doubt_isolated_atoms
from mlff_distiller.workers import run_all, start, stop_workers


def copper(number: int) -> list[Structure]:
    base = Structure.from_atoms(bulk("Cu", cubic=True))
    return rattle_all([base], number, stdevs=[0.1], max_strain=0.05, min_distance=0.6, seed=0)


def threads_and_process(_: int) -> tuple[str, int]:
    return os.environ["OMP_NUM_THREADS"], os.getpid()


def square(x: int) -> int:
    return x * x


def refuses(x: int) -> int:
    raise InputError(f"got {x}; give another")


def dies(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return x


def writes_its_id_and_sleeps(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_results_come_in_order_from_one_thread_each() -> None:
    assert list(run_all(square, range(9), 2)) == [x * x for x in range(9)]
    found = list(run_all(threads_and_process, range(4), 2))
    assert {threads for threads, _ in found} == {"1"}
    assert os.getpid() not in {process for _, process in found}
    assert list(run_all(square, [3], 1)) == [9]


def test_errors_of_workers_are_raised_here() -> None:
    with pytest.raises(InputError, match="got 2; give another"):
        list(run_all(refuses, [2, 3], 2))
    assert list(run_all(square, [4], 2)) == [16], "the workers live on"


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(InputError, match="a worker process was killed"):
        list(run_all(dies, range(4), 2))
    assert list(run_all(square, [5, 6], 2)) == [25, 36], "new workers take over"
    stop_workers()


def test_interrupted_anywhere_nothing_goes_on(tmp_path) -> None:
    started = tmp_path / "started"

    def interrupted() -> None:
        start(writes_its_id_and_sleeps, started, 2)
        while not (started.exists() and started.read_text()):
            time.sleep(0.02)
        raise KeyboardInterrupt  # while this process did something else

    with pytest.raises(typer.Exit), user_errors():
        interrupted()
    assert not psutil.pid_exists(int(started.read_text()))
    assert list(run_all(square, [5, 6], 2)) == [25, 36], "new workers take over"


LEFT_BEHIND = """
import os, subprocess, sys, time
from mlff_distiller.workers import run_all

def sleep(x):
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as process:
        os.write(1, b"%d\\n" % process.pid)  # at once: two workers write here
        try:
            while process.poll() is None:
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise

list(run_all(sleep, range(2), 2))
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """And so does what they have started: LAMMPS would go on for hours."""
    command = [sys.executable, "-c", LEFT_BEHIND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        started = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        process.wait()
    end = time.monotonic() + 120
    while any(psutil.pid_exists(pid) for pid in started):
        assert time.monotonic() < end, "left behind"
        time.sleep(0.1)


def test_parallel_labels_are_those_of_one_process(tmp_path: Path) -> None:
    frames = copper(7)
    one, two = get_teacher("emt"), ParallelTeacher("emt", workers=2)
    assert two.name == one.name
    label_dataset(frames, one, tmp_path / "one.h5", progress=False)
    label_dataset(frames, two, tmp_path / "two.h5", progress=False, batch_size=3)
    for a, b in zip(
        HDF5Dataset(tmp_path / "one.h5"), HDF5Dataset(tmp_path / "two.h5"), strict=True
    ):
        assert a.energy == pytest.approx(b.energy, abs=1e-12)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-12)
        np.testing.assert_allclose(a.stress, b.stress, atol=1e-14)


def test_announced_structures_are_worked_on_ahead() -> None:
    """... of being asked for, each once, and the labels are the same."""
    frames = copper(9)
    teacher = ParallelTeacher("emt", workers=2)
    teacher.announce(frames)
    found = teacher.label(frames[:3])
    ahead = [structure for structure, _ in teacher._ahead]
    assert [id(s) for s in ahead] == [id(s) for s in frames[3:7]]  # two for each worker
    futures = [future for _, future in teacher._ahead]
    found += teacher.label(frames[3:4])  # one that is there already comes from its worker
    assert futures[0].done()
    found += teacher.label(frames[4:])
    assert len(teacher._ahead) == 0
    teacher._ahead.fill(9)
    assert len(teacher._ahead) == 0  # nothing is announced any more
    expected = get_teacher("emt").label(frames)
    assert [s.energy for s in found] == pytest.approx([s.energy for s in expected], abs=1e-12)


def test_what_was_announced_before_is_forgotten() -> None:
    frames = copper(8)
    teacher = ParallelTeacher("emt", workers=2)
    teacher.announce(frames[:6])
    teacher.label(frames[:2])
    teacher.announce(frames[6:])
    assert len(teacher._ahead) == 0
    labelled = teacher.label(frames[6:])
    assert [s.energy for s in labelled] == pytest.approx(
        [s.energy for s in get_teacher("emt").label(frames[6:])], abs=1e-12
    )


def test_a_structure_that_fails_takes_no_others_along(tmp_path: Path) -> None:
    """Neither those of its batch nor those ahead of it."""
    frames = copper(8)
    name = f"{__name__}:FailsAtNineAtoms"
    frames[2] = Structure.from_atoms(bulk("Cu", cubic=True).repeat((3, 3, 1))[:9])
    teacher = ParallelTeacher(name, workers=2)
    report = label_dataset(frames, teacher, tmp_path / "x.h5", progress=False, batch_size=3)
    assert report.num_labelled == 7
    assert sum(report.rejected.values()) == 1
    assert "nine atoms" in "".join(report.rejected)
    assert len(teacher._ahead) == 0


class FailsAtNineAtoms(EMT):
    """A teacher's calculator."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if len(atoms) == 9:
            raise RuntimeError("nine atoms are too many")
        super().calculate(atoms, properties, system_changes)


def test_parallel_teachers_keep_their_options() -> None:
    name = "ase.calculators.lj:LennardJones"
    options = {"sigma": 2.2, "rc": 5.0}
    frames = copper(3)
    one = get_teacher(name, **options).label(frames)
    two = ParallelTeacher(name, workers=2, options=options).label(frames)
    assert [s.energy for s in two] == pytest.approx([s.energy for s in one], abs=1e-12)


def test_options_may_be_lists() -> None:
    name = "ase.calculators.morse:MorsePotential"
    options = {"r0": 2.5, "anything": [1, 2]}
    assert "anything=[1, 2]" in ParallelTeacher(name, workers=2, options=options).name


def test_parallel_teachers_refuse_what_one_refuses() -> None:
    with pytest.raises(InputError, match="Si"):
        ParallelTeacher("emt", workers=2).label([Structure([14], np.zeros((1, 3)))])


def lone(energy: float) -> Structure:
    return Structure([29], np.zeros((1, 3)), energy=energy, info={"config_type": "IsolatedAtom"})


def test_isolated_atoms_that_are_none_are_doubted() -> None:
    crystal = Structure.from_atoms(bulk("Cu", cubic=True), labels=False).with_labels(
        -16.0, np.zeros((4, 3)), None
    )
    assert doubt_isolated_atoms([crystal, lone(-0.5)]) == ""
    assert "no free atoms" in doubt_isolated_atoms([crystal, lone(-4.5)]), "not bound"
    assert "no free atoms" in doubt_isolated_atoms([crystal, lone(20.0)]), "bound too strongly"
    assert doubt_isolated_atoms([crystal]) == "", "nothing to doubt"
