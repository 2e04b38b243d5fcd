from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from support.labelled import TINY

from mlff_distiller import __version__
from mlff_distiller.errors import InputError
from mlff_distiller.models import StudentForceField
from mlff_distiller.students import checkpoint
from mlff_distiller.students.checkpoint import (
    FORMAT_VERSION,
    read_checkpoint,
    save_checkpoint,
)
from mlff_distiller.students.student import load_student


@pytest.fixture
def student():
    torch.manual_seed(0)
    return StudentForceField(TINY, [8, 1], [-430.123456789012345, -13.6])


@pytest.fixture
def saved(tmp_path, student):
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, student.stored(), metadata={"teacher": "emt", "min_distance": 0.9})
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_keeps_every_bit(tmp_path, student, dtype):
    student.to(dtype)
    save_checkpoint(tmp_path / "best.ckpt", student.stored(), metadata={"teacher": "emt"})
    for path in (tmp_path, tmp_path / "best.ckpt"):
        loaded = load_student(path)
        assert loaded.config == student.config
        assert loaded.elements == student.elements
        for name, value in student.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
            assert loaded.state_dict()[name].dtype == value.dtype
    metadata = read_checkpoint(tmp_path)["metadata"]
    assert metadata == {"teacher": "emt", "package_version": __version__}


def test_run_directory_means_best_then_last(tmp_path, student):
    save_checkpoint(tmp_path / "last.ckpt", student.stored(), metadata={"epoch": 9})
    assert read_checkpoint(tmp_path)["metadata"]["epoch"] == 9
    save_checkpoint(tmp_path / "best.ckpt", student.stored(), metadata={"epoch": 5})
    assert read_checkpoint(tmp_path)["metadata"]["epoch"] == 5


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_reported_in_one_line(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match="truncated or foreign") as error:
        load_student(saved)
    assert str(saved) in one_line(error)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(os.urandom(2000))
    with pytest.raises(InputError, match="truncated or foreign"):
        read_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="another program") as error:
        read_checkpoint(path)
    one_line(error)
    torch.save(torch.zeros(3), path)
    with pytest.raises(InputError, match="another program"):
        read_checkpoint(path)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_pickled_code_is_not_run(tmp_path):
    target, path = tmp_path / "ran", tmp_path / "x.ckpt"
    torch.save({"format": checkpoint.FORMAT, "payload": _Bomb(target)}, path)
    with pytest.raises(InputError, match="truncated or foreign"):
        read_checkpoint(path)
    assert not target.exists()
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        pickle.load(file)  # a zip file, so that only torch could have run it


def test_newer_version_asks_for_an_upgrade(saved):
    content = torch.load(saved, weights_only=True)
    content["format_version"] = FORMAT_VERSION + 1
    torch.save(content, saved)
    with pytest.raises(InputError, match=r"upgrade mlff_distiller") as error:
        load_student(saved)
    assert f"version {FORMAT_VERSION + 1}" in one_line(error)


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt or last\.ckpt"):
        read_checkpoint(tmp_path)


def test_missing_keys_and_misfitting_weights(saved):
    content = torch.load(saved, weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "elements"}, saved)
    with pytest.raises(InputError, match="lacks elements"):
        read_checkpoint(saved)
    torch.save({**content, "elements": [1]}, saved)
    with pytest.raises(InputError, match="do not fit") as error:
        load_student(saved)
    one_line(error)


def test_failed_write_keeps_the_old_file(saved, student, monkeypatch):
    before = saved.read_bytes()
    real = Path.write_bytes

    def full_disk(path, data):
        real(path, b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="make room") as error:
        save_checkpoint(saved, student.stored(), metadata={})
    one_line(error)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_real_full_disk(tmp_path, student, monkeypatch):
    """In the words of the system, not in those of torch."""
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: real(Path("/dev/full"), data))
    with pytest.raises(InputError, match=r"cannot write .*best\.ckpt: No space left on device; "):
        save_checkpoint(tmp_path / "best.ckpt", student.stored(), metadata={})
    assert not list(tmp_path.iterdir())
