"""What fix painn/correct of LAMMPS asks: teacher minus student, over a Unix-domain socket.

LAMMPS is another program, of one or many MPI ranks; the teacher lives in one Python process. Rank 0
sends each outer step here. The socket should lie in a folder that nobody else can enter.

Twin of lammps_plugin/teacher_client.h: layouts, magic and version are the same there.

    question  <8sIIqq9d, int32 atomic_numbers[count], float64 positions[count][3]
    answer    <8sIIqqIIdd6d, text, float64 forces[count][3] if the status is 0
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlff_distiller.data import Structure
from mlff_distiller.errors import InputError
from mlff_distiller.multistep.correction import Correction, Difference

_MAGIC = b"MLFFCORR"
_VERSION = 1
_QUESTION = struct.Struct("<8sIIqq9d")
_ANSWER = struct.Struct("<8sIIqqIIdd6d")
_OK, _FAILED = 0, 1
_MOST_ATOMS = 10**8
_LONGEST_TEXT = 1000  # characters
#: Of the path of a socket, bytes; 104 on macOS.
_LONGEST_PATH = 103
# s, in which the rest of a message that has begun must come.
_PATIENCE = 60.0
_VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class Question(NamedTuple):
    """One configuration of LAMMPS, in eV and Å and LAMMPS' orientation."""

    step: int
    pbc: np.ndarray
    cell: np.ndarray
    """(3, 3); rows of open directions mean nothing."""
    atomic_numbers: np.ndarray
    positions: np.ndarray
    """(n, 3), without jumps at the boundaries."""


class CorrectionServer:
    """Answers LAMMPS, in the thread that calls :meth:`wait`.

    Args:
        correction: teacher minus student.
        path: of the socket, which is made; nobody else may be able to enter its folder.
        like: the structure that LAMMPS runs: its cell in open directions, and what its atoms must
            be. None takes what LAMMPS sends.
        rotation: (3, 3), LAMMPS' vectors are ours ``@ rotation``. None for the same orientation.
        first_step: steps before LAMMPS' step 0, for messages and kept labels.

    Attributes:
        failure: the error that LAMMPS was last told.

    Raises:
        InputError: a path that is too long, taken or not writable.
    """

    def __init__(
        self,
        correction: Correction,
        path: str | Path,
        *,
        like: Structure | None = None,
        rotation: np.ndarray | None = None,
        first_step: int = 0,
    ) -> None:
        self.correction = correction
        self.path = Path(path)
        self.failure: InputError | None = None
        self._like = like
        self._rotation = np.eye(3) if rotation is None else np.asarray(rotation)
        self._first_step = first_step
        self._greeted: set[socket.socket] = set()
        self._listener = _listen(self.path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def __enter__(self) -> CorrectionServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and remove the socket; LAMMPS is told by that."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def wait(self, seconds: float, before: Callable[[], None] = lambda: None) -> bool:
        """Answer a question if one comes within ``seconds``; whether one came.

        ``before`` is called between question and answer: LAMMPS waits, and has written all output
        of the steps before.

        What :class:`Correction` raises as InputError is told to LAMMPS, which stops with it, and
        kept in ``failure``. Anything else, Ctrl-C too, is raised; then :meth:`close`.
        """
        end = time.monotonic() + seconds
        while True:
            ready = self._selector.select(max(0.0, end - time.monotonic()))
            answered = [self._serve(key.fileobj, before) for key, _ in ready]  # type: ignore[arg-type]
            if any(answered):
                return True
            if time.monotonic() >= end:
                return False

    def _serve(self, connection: socket.socket, before: Callable[[], None]) -> bool:
        """Take a connection, or a question from one; whether it was a question."""
        if connection is self._listener:
            new, _ = self._listener.accept()
            new.settimeout(_PATIENCE)
            self._selector.register(new, selectors.EVENT_READ)
            return False
        try:
            question = _read(connection)
            if question is not None:
                before()
                connection.sendall(self._answer(connection, question))
                return True
        except InputError as error:  # no question of ours
            with contextlib.suppress(OSError):
                connection.sendall(_refusal(str(error)))
        except OSError:
            pass  # LAMMPS is gone; its own output says why
        self._selector.unregister(connection)
        self._greeted.discard(connection)
        connection.close()
        return False

    def _answer(self, connection: socket.socket, question: Question) -> bytes:
        self.correction.step = self._first_step + question.step
        greeting = ""
        try:
            structure = self._structure(question)
            if connection not in self._greeted:
                self.correction.check(structure)
                self._greeted.add(connection)
                greeting = f"{self.correction.teacher.name} minus {self.correction.student.name}"
            difference = self.correction.compute(structure)
        except InputError as error:
            self.failure = error
            return _refusal(str(error))
        return self._packed(difference, structure, greeting)

    def _structure(self, question: Question) -> Structure:
        cell = question.cell @ self._rotation.T
        cell[~question.pbc] = 0.0
        if self._like is not None:
            if not np.array_equal(question.atomic_numbers, self._like.atomic_numbers):
                raise InputError(
                    "LAMMPS holds other atoms than the run began with; run with all of them"
                )
            if not self._like.pbc.all():
                cell = self._like.cell
        positions = question.positions @ self._rotation.T
        return Structure(question.atomic_numbers, positions, cell, question.pbc)

    def _packed(self, difference: Difference, structure: Structure, greeting: str) -> bytes:
        virial = np.zeros((3, 3))
        if difference.stress is not None:
            volume = abs(float(np.linalg.det(structure.cell)))
            virial = -volume * self._rotation.T @ difference.stress @ self._rotation
        forces = np.ascontiguousarray(difference.forces @ self._rotation, dtype="<f8")
        text = _line(greeting)
        head = _ANSWER.pack(
            _MAGIC, _VERSION, _OK, len(forces), len(text), difference.stress is not None, 0,
            difference.energy, difference.student.energy, *(virial[a, b] for a, b in _VOIGT),
        )  # fmt: skip
        return head + text + forces.tobytes()


def _listen(path: Path) -> socket.socket:
    """A socket that only this user can connect to."""
    name = os.fsencode(path)
    if len(name) > _LONGEST_PATH:
        raise InputError(
            f"the path of a socket has at most {_LONGEST_PATH} bytes, got {len(name)}: {path}; use "
            "a shorter one (for temporary folders, set TMPDIR)"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and listener.connect_ex(name) != 0:
            path.unlink()  # of a server that was killed
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o077)
        try:
            listener.bind(name)
        finally:
            os.umask(before)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot make the socket {path}: {os.strerror(error.errno or 0)}; name another path"
        ) from None
    return listener


def _read(connection: socket.socket) -> Question | None:
    """The next question; None at the end of the connection. Raises InputError for anything else."""
    head = _exactly(connection, _QUESTION.size)
    if head is None:
        return None
    magic, version, periodic, step, count, *cell = _QUESTION.unpack(head)
    if magic != _MAGIC:
        raise InputError("this socket is for fix painn/correct of LAMMPS, got something else")
    if version != _VERSION:
        raise InputError(
            f"the server speaks version {_VERSION} of the protocol, the plugin of LAMMPS version "
            f"{version}; use both from one mlff-distiller"
        )
    if not 0 < count <= _MOST_ATOMS:
        raise InputError(f"a question must be of 1 to {_MOST_ATOMS} atoms, got {count}; add atoms")
    body = _exactly(connection, count * (4 + 24))
    if body is None:
        return None
    return Question(
        step,
        np.array([bool(periodic >> axis & 1) for axis in range(3)]),
        np.array(cell).reshape(3, 3),
        np.frombuffer(body, "<i4", count).astype(np.int64),
        np.frombuffer(body, "<f8", 3 * count, offset=4 * count).reshape(-1, 3).copy(),
    )


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    """``size`` bytes, None where the connection ends before."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    while len(view):
        got = connection.recv_into(view)
        if got == 0:
            return None
        view = view[got:]
    return bytes(buffer)


def _refusal(text: str) -> bytes:
    line = _line(text)
    head = _ANSWER.pack(_MAGIC, _VERSION, _FAILED, 0, len(line), False, 0, 0.0, 0.0, *([0.0] * 6))
    return head + line


def _line(text: str) -> bytes:
    """One line of what LAMMPS' log can show."""
    return " ".join(text.split())[:_LONGEST_TEXT].encode()
