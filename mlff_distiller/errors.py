"""The exceptions that users are meant to read: one line each, with what to do."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line and says what was expected, what was found and how to mend it. The
    command line prints it without a traceback and exits with status 2.
    """


class DamagedFileError(InputError):
    """A file does not hold what was written to it.

    Attributes:
        path: of the file; None where another process found it.
    """

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class MismatchError(InputError):
    """A file holds the work of other inputs, so that going on with it would mix the two."""


class LostProcessError(InputError):
    """Another process of the same run has ended, and its share of the work with it.

    Attributes:
        told: another process says so, and this one need not.
    """

    told = False


class DeviceError(RuntimeError):
    """A GPU failed at good input: its memory is full, it is lost, or its driver is.

    The message is one line and says what was being done, what the device answered and what to try.
    The command line prints it without a traceback and exits with status 1.
    """
