"""An append-only journal that survives kill -9, power loss and a full disk.

    file   = MAGIC, uint32 header bytes, uint32 CRC32, header (JSON)   then records
    record = uint64 first structure, uint64 payload bytes, uint32 CRC32, payload (.npz)

Each append is one write followed by fsync; only the last record can be torn, and the next open
cuts it off. HDF5 itself gives no such promise: a process killed while the library writes its
metadata leaves a file that does not open.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlff_distiller.errors import InputError

MAGIC = b"MLFFJRN1"
_HEADER = struct.Struct("<II")
_RECORD = struct.Struct("<QQI")


class Record(NamedTuple):
    """One committed batch: index of its first structure and its arrays."""

    first: int
    arrays: dict[str, np.ndarray]


class _Scan(NamedTuple):
    header: dict[str, Any] | None
    records: list[Record]
    committed: int


def journal_path(path: Path) -> Path:
    """The journal that belongs to the HDF5 file ``path``."""
    return path.with_name(path.name + ".journal")


def read_journal(path: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """Header and committed records; (None, []) when there is no journal or an empty one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, []
    scan = _scan(data, path)
    return scan.header, scan.records


class Journal:
    """The journal opened for appending, locked against a second writer.

    Args:
        path: file, created when missing.

    Attributes:
        header: JSON mapping of the file, None while it is empty.

    Raises:
        InputError: another process writes to it, or it is damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open_locked(path)
        try:
            data = _read_all(self._fd)
            self.header, _, self._committed = _scan(data, path)
            if self._committed < len(data):
                os.ftruncate(self._fd, self._committed)
        except BaseException:
            os.close(self._fd)
            raise

    def start(self, header: dict[str, Any]) -> None:
        """Write the header of an empty journal."""
        text = json.dumps(header).encode()
        self._write(MAGIC + _HEADER.pack(len(text), zlib.crc32(text)) + text)
        sync_directory(self.path.parent)
        self.header = header

    def append(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Commit one record. On return it is on disk; on any exception nothing has changed."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        payload = buffer.getvalue()
        self._write(_RECORD.pack(first, len(payload), zlib.crc32(payload)) + payload)

    def close(self, *, remove: bool) -> None:
        """Release the lock; ``remove`` deletes the file, whose content lies elsewhere now."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            position = self._committed
            while view:
                written = os.pwrite(self._fd, view, position)
                view, position = view[written:], position + written
            os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, self._committed)
            raise
        self._committed += len(data)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A writer that just finished may have deleted the file between open and lock.
            if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            raise InputError(
                f"{path.with_suffix('')} is being written by another process; wait for it to "
                "finish or write to another file"
            ) from None
        os.close(fd)


def _read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        return stream.read()


def _scan(data: bytes, path: Path) -> _Scan:
    start = len(MAGIC) + _HEADER.size
    if len(data) < start:
        return _Scan(None, [], 0)
    size, checksum = _HEADER.unpack_from(data, len(MAGIC))
    text = data[start : start + size]
    if data[: len(MAGIC)] != MAGIC or zlib.crc32(text) != checksum:
        if len(data) <= start + size:  # torn while it was created
            return _Scan(None, [], 0)
        raise _damaged(path)
    position = start + size
    records: list[Record] = []
    while position + _RECORD.size <= len(data):
        first, length, checksum = _RECORD.unpack_from(data, position)
        end = position + _RECORD.size + length
        payload = data[position + _RECORD.size : end]
        if len(payload) < length:
            break
        if zlib.crc32(payload) != checksum:
            if end < len(data):  # a later record was committed, so this one once was whole
                raise _damaged(path)
            break
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            records.append(Record(first, dict(arrays)))
        position = end
    return _Scan(json.loads(text), records, position)


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path} must be a journal of unfinished writes, got damaged content; move it away to "
        "give up what it holds"
    )
