"""A checksum behind an HDF5 file: 8 bytes MAGIC, uint64 bytes of the file, uint32 CRC-32 of them.

HDF5 itself compares nothing but chunks of datasets with ``fletcher32``, and its library may hang on
a damaged heap, so the file is compared before it is opened. To HDF5 these bytes lie beyond the end;
a program that changes the file cuts them off, and nothing is compared any more. Files of other
programs and of older versions have none.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from mlff_distiller.errors import DamagedFileError

MAGIC = b"MLFFSUM1"
_TRAILER = struct.Struct("<8sQI")
_BLOCK = 2**20
# Reading a file of this size takes long enough to remember that it was whole.
_LARGE = 2**26
_whole: set[tuple[str, int, int, int]] = set()
_SUPERBLOCK = 48  # bytes up to the address of the end
#: Larger files would take seconds; their numbers are compared chunk by chunk, by HDF5.
LARGEST = 2**30


def store(path: Path) -> None:
    """Append the checksum of a file that is complete."""
    size = path.stat().st_size
    trailer = _TRAILER.pack(MAGIC, size, _crc(path, size))
    with path.open("ab") as stream:
        stream.write(trailer)


def check(path: Path) -> None:
    """Compare a file with the checksum behind it, if there is one.

    Raises:
        DamagedFileError: they differ.
    """
    if (noted := _noted(path)) is None:
        return
    length, checksum = noted
    stat = path.stat()
    size = stat.st_size - _TRAILER.size
    known = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if known in _whole:
        return
    if length == size and (size > LARGEST or _crc(path, size) == checksum):
        if size > _LARGE:
            _whole.add(known)
    else:
        raise DamagedFileError(
            f"{path} must be a complete HDF5 file, got a damaged one (its checksum differs); copy "
            "or write it again",
            path,
        )


def strip(path: Path) -> None:
    """Remove the checksum, if any, before the file is changed."""
    if _noted(path) is not None:
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size - _TRAILER.size)


def _noted(path: Path) -> tuple[int, int] | None:
    size = path.stat().st_size
    if size < _TRAILER.size:
        return None
    with path.open("rb") as stream:
        end = _end(stream.read(_SUPERBLOCK))
        stream.seek(size - _TRAILER.size)
        magic, length, checksum = _TRAILER.unpack(stream.read(_TRAILER.size))
    # Where there is room for a checksum behind the end, one was there.
    return (length, checksum) if magic == MAGIC or size == end + _TRAILER.size else None


def _end(superblock: bytes) -> int:
    """Bytes of the file as HDF5 counts them, by its superblock of version 0; -1 if it is another."""
    if superblock[:9] != b"\x89HDF\r\n\x1a\n\0" or len(superblock) < _SUPERBLOCK:
        return -1
    return int.from_bytes(superblock[-8:], "little")


def _crc(path: Path, size: int) -> int:
    total = 0
    with path.open("rb") as stream:
        while size > 0 and (block := stream.read(min(size, _BLOCK))):
            total, size = zlib.crc32(block, total), size - len(block)
    return total
