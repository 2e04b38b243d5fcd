"""What a mutation is, and how it is put into a copy of the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One wrong line.

    Attributes:
        name: unique, and says what is wrong.
        file: under mlff_distiller/. Where the text has moved to another file, that one is found.
        old: text that occurs once in the package.
        new: what it becomes.
        tests: pytest arguments, names of files in tests/ (with ``::test`` to be quick).
        why: who would notice the fault, and how late, if no test did.
        survives: why no test should kill it; empty for all that must be killed.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    why: str
    survives: str = ""

    def place(self, package: Path) -> Path:
        """The file that holds the text. Raises LookupError unless exactly one does, once."""
        named = package / self.file
        if named.exists() and named.read_text().count(self.old) == 1:
            return named
        found = [p for p in sorted(package.rglob("*.py")) if p.read_text().count(self.old) == 1]
        if len(found) != 1:
            raise LookupError(f"{self.name}: the text is in {len(found)} files of {package}")
        return found[0]

    def key(self, package: Path) -> str:
        """Changes with the mutation and with the file that it changes."""
        state = hashlib.sha256(repr((self.old, self.new, self.tests)).encode())
        state.update(self.place(package).read_bytes())
        return state.hexdigest()[:16]
