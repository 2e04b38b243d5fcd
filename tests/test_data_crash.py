"""Nothing that was committed is lost: kill -9 at any time, torn writes, a full disk, Ctrl-C."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, structures_hash
from mlff_distiller.data.journal import journal_path
from mlff_distiller.errors import InputError


def frames(number: int, atoms: int = 4, seed: int = 0) -> list[Structure]:
    rng = np.random.default_rng(seed)
    return [
        Structure(
            atomic_numbers=np.full(atoms, 29),
            positions=rng.normal(size=(atoms, 3)),
            energy=float(i),
            forces=rng.normal(size=(atoms, 3)),
        )
        for i in range(number)
    ]


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; returns its pid. It exits 1 when an exception escapes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("merge_every", [1, 3, 10_000])
def test_sigkill_at_any_time_loses_at_most_one_batch(tmp_path, merge_every: int) -> None:
    path, log = tmp_path / "a.h5", tmp_path / "log"
    batch, structures = 4, frames(4000)
    rng = np.random.default_rng(merge_every)

    def write() -> None:
        with open(log, "a", buffering=1) as stream:
            while True:
                with HDF5Writer(path) as writer:
                    for _ in range(merge_every):
                        n = len(writer)
                        writer.append(structures[n : n + batch], progress={"done": n + batch})
                        stream.write(f"{n + batch}\n")

    killed_at = []
    most = 0  # frames that the file can have: those of the last attempt that could be read, and a batch a kill
    for attempt in range(8):
        before = log.stat().st_size if log.exists() else 0
        pid = in_child(write)
        deadline = time.monotonic() + 30
        # Every other time wait until it writes; else it may be killed while it opens the file.
        while attempt % 2 and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > before:
                break
            time.sleep(0.002)
        time.sleep(0.15 * rng.random())
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        reported = int(log.read_text().split()[-1]) if log.exists() and log.stat().st_size else 0
        # Committed but killed before it could say so is fine, also twice in a row; said so but lost is not.
        most = max(most, reported) + batch
        if reported == 0:
            continue
        data = HDF5Dataset(path)
        assert max(reported, *killed_at, 0) <= len(data) <= most
        most = len(data)
        assert data.hash() == structures_hash(structures[: len(data)])
        assert data.progress == {"done": len(data)}
        killed_at.append(len(data))
    assert len(set(killed_at)) > 1  # the processes did write
    HDF5Writer(path).close()
    assert HDF5Dataset(path).hash() == structures_hash(structures[: killed_at[-1]])
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "log"}


def test_torn_and_damaged_records(tmp_path) -> None:
    path, structures = tmp_path / "a.h5", frames(3)
    writer = HDF5Writer(path)
    writer.append(structures[:1])
    one = os.path.getsize(journal_path(path))
    writer.append(structures[1:2])
    writer.append(structures[2:])
    os.close(writer._journal._fd)  # gone without closing, as after a crash
    journal = journal_path(path)
    whole = journal.read_bytes()
    two = one + (len(whole) - one) // 2
    for cut in range(two, len(whole), 97):
        journal.write_bytes(whole[:cut])
        assert HDF5Dataset(path).hash() == structures_hash(structures[:2])
    # A flipped bit in the last record: torn. In an earlier one: damage, and not passed over.
    flipped = bytearray(whole)
    flipped[-200] ^= 1
    journal.write_bytes(flipped)
    assert len(HDF5Dataset(path)) == 2
    flipped = bytearray(whole)
    flipped[one + 200] ^= 1
    journal.write_bytes(flipped)
    with pytest.raises(InputError, match="damaged"):
        HDF5Dataset(path)
    # In the header: what it says is not believed.
    flipped = bytearray(whole)
    flipped[flipped.index(b"units") + 12] ^= 1
    journal.write_bytes(flipped)
    with pytest.raises(InputError, match="damaged"):
        HDF5Dataset(path)
    # The writer cuts a torn record off and goes on.
    journal.write_bytes(whole[:-5])
    with HDF5Writer(path) as writer:
        assert len(writer) == 2
        writer.append(structures[2:])
    assert HDF5Dataset(path).hash() == structures_hash(structures)


def test_killed_between_rename_and_removal_of_the_journal(tmp_path) -> None:
    path, structures = tmp_path / "a.h5", frames(5)
    writer = HDF5Writer(path)
    writer.append(structures[:3])
    writer.append(structures[3:])
    shutil.copy(journal_path(path), tmp_path / "kept")
    writer.close()
    os.rename(tmp_path / "kept", journal_path(path))
    assert HDF5Dataset(path).hash() == structures_hash(structures)
    with HDF5Writer(path) as writer:
        assert len(writer) == 5
        writer.append(structures[:1])
    assert HDF5Dataset(path).hash() == structures_hash(structures + structures[:1])


def test_journal_of_another_file_is_refused(tmp_path) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    with HDF5Writer(other) as writer:
        writer.append(frames(1))
    writer = HDF5Writer(path)
    writer.append(frames(2))
    os.close(writer._journal._fd)
    shutil.copy(other, path)
    for use in (HDF5Dataset, HDF5Writer):
        with pytest.raises(InputError, match="journal of another file; move it away"):
            use(path)


def _fill(path: Path, structures: list[Structure], batch: int, report: Path) -> None:
    """Append until the disk is full; note what was committed and what was said."""
    text = ""
    writer = HDF5Writer(path)
    try:
        while True:
            n = len(writer)
            writer.append(structures[n : n + batch])
    except InputError as error:
        text = str(error)
    committed = len(writer)
    try:
        writer.close()
    except InputError as error:
        text += f"\n{error}"
    report.write_text(f"{committed}\n{text}")


def limit_files(size: int) -> None:
    """Files of this process end at so many bytes; its compiled modules would be cut off, too."""
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("limit", [30_000, 200_000, 203_000])
def test_full_disk_loses_nothing(tmp_path, limit: int) -> None:
    path, report = tmp_path / "a.h5", tmp_path / "report"
    structures = frames(400, atoms=20)

    def write() -> None:
        limit_files(limit)
        _fill(path, structures, 5, report)

    assert wait(in_child(write)) == 0
    committed, *lines = report.read_text().splitlines()
    count = int(committed)
    assert 0 < count < 400
    assert f"the {count} structures written before are safe" in lines[0]
    assert "File too large" in lines[0]
    assert HDF5Dataset(path).hash() == structures_hash(structures[:count])
    with HDF5Writer(path) as writer:  # there is room again
        assert len(writer) == count
        writer.append(structures[count:])
    assert HDF5Dataset(path).hash() == structures_hash(structures)
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "report"}


def test_full_disk_while_merging_loses_nothing(tmp_path) -> None:
    path, report = tmp_path / "a.h5", tmp_path / "report"
    structures = frames(200, atoms=20)
    with HDF5Writer(path) as writer:
        writer.append(structures[:150])
    before = path.read_bytes()

    def write() -> None:
        writer = HDF5Writer(path)
        writer.append(structures[150:])
        limit = len(before) + 1000  # the journal is smaller, the merged file larger
        limit_files(limit)
        try:
            writer.close()
        except InputError as error:
            report.write_text(str(error))

    assert wait(in_child(write)) == 0
    assert "all structures are safe" in report.read_text()
    assert path.read_bytes() == before
    assert HDF5Dataset(path).hash() == structures_hash(structures)
    HDF5Writer(path).close()
    assert HDF5Dataset(path).hash() == structures_hash(structures)
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "report"}


def test_full_tmpfs_loses_nothing(tmp_path) -> None:
    disk, report = tmp_path / "disk", tmp_path / "report"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root; RLIMIT_FSIZE is tested above")
    try:
        structures = frames(800, atoms=20)
        assert wait(in_child(lambda: _fill(disk / "a.h5", structures, 5, report))) == 0
        committed, *lines = report.read_text().splitlines()
        assert "No space left on device" in lines[0]
        assert HDF5Dataset(disk / "a.h5").hash() == structures_hash(structures[: int(committed)])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_keeps_what_was_appended(tmp_path) -> None:
    path, structures = tmp_path / "a.h5", frames(3)

    def interrupted() -> None:
        with HDF5Writer(path) as writer:
            writer.append(structures)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not journal_path(path).exists()
    assert HDF5Dataset(path).hash() == structures_hash(structures)
