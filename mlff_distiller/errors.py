"""The exceptions that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line and says what was expected, what was found and how to mend it. The
    command line prints it without a traceback and exits with status 2.
    """


class MismatchError(InputError):
    """A file holds the work of other inputs, so that going on with it would mix the two."""
