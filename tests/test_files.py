"""What must be on disk before what: a power cut between any two calls loses nothing.

A kill (test_data_crash.py) leaves the page cache alive, so only the order of the calls tells.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ase.build import bulk

from mlff_distiller.data import HDF5Writer, Structure, ensure_splits
from mlff_distiller.files import atomic_path, atomic_write_text


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(what, name of the file) of every sync, rename and removal."""
    done: list[tuple[str, str]] = []

    def watch(name: str, target) -> None:  # type: ignore[no-untyped-def]
        real = getattr(os, name)

        def call(*arguments, **keywords):  # type: ignore[no-untyped-def]
            result = real(*arguments, **keywords)
            done.append((name, target(*arguments)))
            return result

        monkeypatch.setattr(os, name, call)

    def of_handle(handle) -> str:  # type: ignore[no-untyped-def]
        number = handle if isinstance(handle, int) else handle.fileno()
        return Path(os.readlink(f"/proc/self/fd/{number}")).name

    watch("fsync", of_handle)
    for name in ("replace", "rename"):
        watch(name, lambda source, target, **_: Path(target).name)
    watch("unlink", lambda path, **_: Path(path).name)
    return done


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, calls) -> None:
    target = tmp_path / "metrics.json"
    atomic_write_text(target, "new")
    kinds = [kind for kind, _ in calls]
    assert kinds == ["fsync", "replace"]
    (synced,) = [name for kind, name in calls if kind == "fsync"]
    assert synced.startswith(".metrics.json.")
    assert target.read_text() == "new"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "old"
            assert temporary.parent == target.parent  # a rename must not cross file systems
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "a.txt", "x")
        (tmp_path / "b.txt").write_text("x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("a.txt", "b.txt")]
    assert modes[0] == modes[1] == 0o640


def test_labels_are_on_disk_when_append_returns(tmp_path: Path, calls) -> None:
    structure = Structure.from_atoms(bulk("Cu"))
    writer = HDF5Writer(tmp_path / "a.h5")
    assert ("fsync", "a.h5.journal") in calls
    assert ("fsync", tmp_path.name) in calls  # its name, too
    for _ in range(2):
        calls.clear()
        writer.append([structure])
        assert calls == [("fsync", "a.h5.journal")]
    calls.clear()
    writer.close()
    wanted = [
        ("fsync", ".a.h5.tmp"),
        ("replace", "a.h5"),
        ("fsync", tmp_path.name),
        ("unlink", "a.h5.journal"),
    ]
    assert [c for c in calls if c in wanted] == wanted


def test_splits_are_synced(tmp_path: Path, calls) -> None:
    with HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append([Structure.from_atoms(bulk("Cu"))] * 12)
    calls.clear()
    ensure_splits(tmp_path / "a.h5")
    wanted = [("fsync", ".a.h5.tmp"), ("replace", "a.h5"), ("fsync", tmp_path.name)]
    assert [c for c in calls if c in wanted] == wanted
