"""Labels by the workers of a Dask cluster: in order, whole, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from support.commands import run
from support.processes import clean_environment

from mlff_distiller.data import HDF5Dataset, Structure
from mlff_distiller.data.io import write_structures
from mlff_distiller.errors import InputError, LostProcessError
from mlff_distiller.teachers import get_teacher, label_dataset
from mlff_distiller.teachers.cluster import ClusterTeacher

distributed = pytest.importorskip("distributed")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread, in processes that find tests/support."""
    environment = clean_environment(
        PYTHONPATH=str(HERE), DASK_DISTRIBUTED__LOGGING__DISTRIBUTED="critical"
    )
    before = os.environ.copy()
    os.environ.update(environment)
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as found:
            yield found
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "log").touch()
    return tmp_path / "log"


def frames(count: int) -> list[Structure]:
    """Told apart by the first coordinate."""
    found = []
    for i in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=i)
        atoms.positions[0, 0] = 0.001 * i
        found.append(Structure.from_atoms(atoms))
    return found


def slow(log: Path, **options) -> str:
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"support.slow:SlowEMT(log={str(log)!r}, {words})"


def asked(log: Path) -> list[tuple[int, float]]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(pid), float(x)) for pid, x in lines]


def test_labels_are_those_of_one_process_in_the_same_order(cluster, tmp_path):
    mixed = [*frames(12), *(Structure.from_atoms(molecule(n)) for n in ("H2O", "CH4"))]
    label_dataset(mixed, get_teacher("emt"), tmp_path / "one.h5", progress=False, max_force=None)
    with ClusterTeacher("emt", cluster.scheduler_address) as teacher:
        report = label_dataset(
            mixed, teacher, tmp_path / "two.h5", progress=False, max_force=None, batch_size=3
        )
    assert report.num_labelled == 14
    one, two = HDF5Dataset(tmp_path / "one.h5"), HDF5Dataset(tmp_path / "two.h5")
    assert one.teacher == two.teacher
    for a, b in zip(one, two, strict=True):
        assert a.energy == b.energy
        assert np.array_equal(a.forces, b.forces)


def test_a_killed_worker_loses_nothing_and_repeats_nothing_that_was_committed(
    cluster, log, tmp_path
):
    structures, killed, committed = frames(24), [], []
    path = tmp_path / "out.h5"

    def kill(done: int, total: int) -> None:
        if done == 8:
            committed.extend(asked(log))
            killed.append(committed[-1][0])
            os.kill(killed[0], signal.SIGKILL)

    with ClusterTeacher(slow(log, seconds=0.05), cluster.scheduler_address) as teacher:
        report = label_dataset(structures, teacher, path, batch_size=4, progress=kill)
    assert report.num_labelled == 24
    assert report.rejected == {}
    assert [s.positions[0, 0] for s in HDF5Dataset(path)] == [s.positions[0, 0] for s in structures]
    everything = [x for _, x in asked(log)]
    assert set(everything) == {s.positions[0, 0] for s in structures}
    for s in structures[:8]:
        assert everything.count(s.positions[0, 0]) == 1
    # Only what the dead worker held and nobody had fetched is done twice.
    assert len(everything) - 24 <= 8


def test_interrupted_labelling_goes_on_where_it_was(cluster, log, tmp_path):
    structures, path = frames(16), tmp_path / "out.h5"

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    name = slow(log)
    with (
        pytest.raises(KeyboardInterrupt),
        ClusterTeacher(name, cluster.scheduler_address) as teacher,
    ):
        label_dataset(structures, teacher, path, batch_size=4, progress=stop)
    with ClusterTeacher(name, cluster.scheduler_address) as teacher:
        report = label_dataset(structures, teacher, path, batch_size=4, progress=False)
    assert (report.num_resumed, report.num_labelled) == (8, 16)
    everything = [x for _, x in asked(log)]
    assert all(everything.count(s.positions[0, 0]) == 1 for s in structures[:8])


def test_a_structure_that_the_teacher_refuses_is_left_out_alone(cluster, log, tmp_path):
    silicon = Structure.from_atoms(bulk("Si"))
    structures = [*frames(3), silicon, *frames(6)[3:]]
    with ClusterTeacher(slow(log), cluster.scheduler_address) as teacher:
        report = label_dataset(structures, teacher, tmp_path / "o.h5", batch_size=4, progress=False)
    assert report.num_labelled == 6
    ((reason, count),) = report.rejected.items()
    # The reason is cut where the name of the teacher, with the path in it, is long.
    assert (count, "cannot" in reason) == (1, True)
    assert len(asked(log)) == 6


def test_a_structure_that_ends_every_worker_ends_the_labelling(cluster, log, tmp_path):
    pair = Structure.from_atoms(bulk("Cu", cubic=True)[:2])
    name = slow(log, deadly=2)
    with ClusterTeacher(name, cluster.scheduler_address) as teacher:
        with pytest.raises(LostProcessError, match="Cu2 ended every worker") as error:
            label_dataset(
                [*frames(4), pair], teacher, tmp_path / "o.h5", batch_size=2, progress=False
            )
        assert "\n" not in str(error.value)
    assert len(HDF5Dataset(tmp_path / "o.h5")) == 4


def test_workers_with_other_packages_are_refused(cluster, tmp_path):
    with ClusterTeacher("emt", cluster.scheduler_address) as teacher:
        teacher.versions = {**teacher.versions, "ase": "2.0"}
        with pytest.raises(LostProcessError, match=r"ase \S+ instead of 2\.0"):
            label_dataset(frames(2), teacher, tmp_path / "o.h5", progress=False)


def test_the_command(cluster, tmp_path):
    write_structures(tmp_path / "f.extxyz", frames(5))
    arguments = ["label", tmp_path / "f.extxyz", "--teacher", "emt", "-o", tmp_path / "o.h5"]
    run(*arguments, "--scheduler", cluster.scheduler_address, "--json")
    assert len(HDF5Dataset(tmp_path / "o.h5")) == 5


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "ftp://x:1"])
def test_nobody_at_the_address(monkeypatch, tmp_path, address):
    monkeypatch.setattr("mlff_distiller.teachers.cluster._CONNECT", "1s")
    with pytest.raises(InputError, match="must be the address of a Dask scheduler") as error:
        ClusterTeacher("emt", address)
    assert "\n" not in str(error.value)


def test_dask_that_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'mlff-distiller\[dask\]'"):
        ClusterTeacher("emt", "tcp://127.0.0.1:9")


def test_no_workers_yet(tmp_path):
    said = []
    with (
        distributed.LocalCluster(
            n_workers=0, dashboard_address=None, silence_logs=50, processes=False
        ) as empty,
        ClusterTeacher("emt", empty.scheduler_address, say=said.append) as teacher,
    ):
        teacher.announce(frames(2))
    assert "has no workers, waiting" in said[0]
