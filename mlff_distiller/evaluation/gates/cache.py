"""Measurements of a calculator, each made once: the teacher is slow and never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.config import TeacherConfig
from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_write_text, jsonable, sha256

#: Counts up when a measuring function gives other numbers than before.
_VERSION = 3


class Cache:
    """A JSON file of results by their key; without a path they live in memory.

    A damaged file is begun anew: nothing but time is lost.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        if path is not None and path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self._found = content if isinstance(content, dict) else {}
            except (OSError, ValueError):
                pass

    def get(self, key: str) -> Any | None:
        """What is known."""
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember, on disk as well."""
        self._found[key] = value
        if self._path is not None:
            atomic_write_text(self._path, json.dumps(self._found))


class Side:
    """Teacher or student: measures, or remembers what it measured.

    Args:
        name: ``teacher`` or ``student``.
        identity: of the potential; whatever gives other numbers has another one.
        make: its calculator; called when something must be computed, once.
        cache: of the results.
    """

    def __init__(
        self, name: str, identity: str, make: Callable[[], Calculator], cache: Cache
    ) -> None:
        self.name, self.identity = name, identity
        self._make, self._cache = make, cache
        self._calculator: Calculator | None = None

    @property
    def calculator(self) -> Calculator:
        """The calculator, made at the first use."""
        if self._calculator is None:
            self._calculator = self._make()
        return self._calculator

    def measure(self, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """``function(calculator, *arguments)``, plain JSON; from the cache where it is there."""
        return self.remember(
            [function.__name__, *map(_plain, arguments)],
            lambda: function(self.calculator, *arguments),
        )

    def remember(self, what: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``work``, known by ``what`` it is.

        Raises:
            InputError: whatever went wrong, and for whom.
        """
        text = json.dumps([_VERSION, self.identity, what], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        found = self._cache.get(key)
        if found is None:
            try:
                found = jsonable(work())
            except Exception as error:  # calculators raise whatever they like
                line = (str(error).strip().splitlines() or [""])[0][:200]
                raise InputError(f"{self.name}: {line or type(error).__name__}") from error
            self._cache.put(key, found)
        return found


def student_side(path: Path, cache: Cache) -> Side:
    """An exported student in float64: differences of its forces are exact then."""

    def make() -> Calculator:
        from mlff_distiller.calculator import StudentCalculator

        return StudentCalculator(path, dtype="float64", threads=1)

    return Side("student", sha256(path), make, cache)


def teacher_side(teacher: TeacherConfig, cache: Cache) -> Side:
    """A teacher by its name; its package is loaded when something must be computed."""

    def make() -> Calculator:
        from mlff_distiller.teachers import get_teacher

        return get_teacher(teacher.name, device=teacher.device, **teacher.options).calculator

    identity = json.dumps([teacher.name, teacher.options, _package(teacher.name)], sort_keys=True)
    return Side("teacher", identity, make, cache)


def _package(name: str) -> str:
    """Version of the package behind a teacher, without loading it."""
    from mlff_distiller.teachers.registry import package_of

    try:
        return metadata.version(package_of(name))
    except metadata.PackageNotFoundError:
        return ""


def _plain(value: Any) -> Any:
    if isinstance(value, Atoms):
        arrays = (value.positions, value.cell.array)
        numbers = [np.round(array, 6).tolist() for array in arrays]
        return [value.numbers.tolist(), *numbers, value.pbc.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return jsonable(value)
