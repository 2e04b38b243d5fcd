"""A teacher on the workers of a Dask cluster: https://distributed.dask.org.

dask scheduler                          # on one machine
dask worker ADDRESS --nthreads 1        # on all, as often as wanted, now or later
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any

from mlff_distiller.data.structure import Structure, check_structure, without_labels
from mlff_distiller.energy_model import Labels
from mlff_distiller.errors import InputError, LostProcessError
from mlff_distiller.teachers.ahead import Ahead
from mlff_distiller.teachers.base import Teacher
from mlff_distiller.teachers.parallel import Recipe, teacher_of
from mlff_distiller.teachers.registry import get_teacher

# Structures that wait at each thread of the workers, so that none is idle.
_AHEAD = 4
_CONNECT = "15s"


class ClusterTeacher(Teacher):
    """Labels by Dask workers, all at once but handed out in order; a context manager.

    A structure whose worker is killed goes to another one. Structures that were announced are
    worked on ahead of being asked for.

    Args:
        name: see :func:`get_teacher`; made on every worker, and here on the CPU.
        scheduler: address, ``tcp://host:8786``.
        device: of the workers.
        options: of the teacher, plain types.
        say: gets a line where workers are missing.

    Raises:
        InputError: Dask is not installed or nobody answers; see also :func:`get_teacher`.
    """

    def __init__(
        self,
        name: str,
        scheduler: str,
        device: str = "cpu",
        options: dict[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._one = get_teacher(name, device="cpu", **(options or {}))
        self._recipe: Recipe = (name, device, json.dumps(options or {}, sort_keys=True))
        self.name, self.versions, self.elements = (
            self._one.name,
            self._one.versions,
            self._one.elements,
        )
        self.calculator = self._one.calculator
        self._scheduler, self._say = scheduler, say
        self._client = _connect(scheduler)
        self._ahead = Ahead(self._begin)

    def __enter__(self) -> ClusterTeacher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()  # the scheduler forgets what was not fetched

    def check(self, structures: Sequence[Structure]) -> None:
        """Raise InputError for what the teacher cannot label."""
        self._one.check(structures)

    def compute(self, structure: Structure) -> Labels:
        """Labels of one structure, by a worker."""
        try:
            return self._labels(structure)
        finally:
            self._ahead.forget([structure])

    def _labels(self, structure: Structure) -> Labels:
        what, found = self._result(self._ahead.future(structure), structure)
        if what == "versions":
            differing = ", ".join(
                f"{package} {found.get(package, 'missing')} instead of {version}"
                for package, version in self.versions.items()
                if found.get(package) != version
            )
            raise LostProcessError(
                f"workers must have the packages of this machine, got {differing}; labels of "
                "different versions do not belong into one file"
            )
        if what == "failed":
            raise InputError(found)
        return found

    def announce(self, structures: Sequence[Structure]) -> None:
        """These will be asked for, in this order."""
        self._ahead.announce(structures)
        self._fill()
        if not self._client.nthreads():
            self._say(
                f"{self._scheduler} has no workers, waiting for one; start some: dask worker "
                f"{self._scheduler} --nthreads 1"
            )

    def label(self, structures: Sequence[Structure]) -> list[Structure]:
        """Labels by the workers, in order.

        Raises:
            InputError: the teacher fails at a structure.
            LostProcessError: the scheduler is gone, or a structure that ends every worker.
        """
        self.check(structures)
        for s in structures:  # all of them, before the first result is waited for
            self._ahead.future(s)
        try:
            labelled = [
                check_structure(
                    s.with_labels(*self._labels(s)), f"{s.formula} labelled by {self.name}"
                )
                for s in structures
            ]
        except InputError:
            if len(structures) == 1:  # of several, the others will be asked for again
                self._ahead.forget(structures)
            raise
        self._ahead.forget(structures)
        self._fill()
        return labelled

    def _fill(self) -> None:
        threads = sum(self._client.nthreads().values())
        self._ahead.fill(max(2 * _AHEAD, _AHEAD * threads))

    def _begin(self, structure: Structure) -> Any:
        argument = (self._recipe, dict(self.versions), without_labels(structure))
        return self._client.submit(_label, argument, pure=False)

    def _result(self, future: Any, structure: Structure) -> tuple[str, Any]:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker:
            raise LostProcessError(
                f"{structure.formula} ended every worker that got it, out of memory perhaps; give the "
                "workers more, or leave it out"
            ) from None
        except (CancelledError, OSError, TimeoutError):
            raise LostProcessError(
                f"the scheduler {self._scheduler} does not answer any more; start it again, and this"
            ) from None
        except ImportError as error:
            raise LostProcessError(
                f"workers must be able to import mlff_distiller and the teacher, got: {error}; start "
                "them in the same environment"
            ) from None


_ONE_AT_A_TIME = threading.Lock()


def _label(argument: tuple[Recipe, dict[str, str], Structure]) -> tuple[str, Any]:
    """On a worker: what happened, and labels or text."""
    recipe, versions, structure = argument
    with _ONE_AT_A_TIME:  # calculators have a state, and workers may have many threads
        try:
            teacher = teacher_of(*recipe)
            if dict(teacher.versions) != versions:
                return "versions", dict(teacher.versions)
            return "labels", teacher.compute(structure)
        except InputError as error:
            return "failed", str(error)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "a scheduler needs Dask, which is not installed; pip install 'mlff-distiller[dask]'"
        ) from None

    def connect() -> Any:
        return Client(scheduler, timeout=_CONNECT, set_as_default=False)

    try:
        try:
            return connect()
        except AssertionError:  # Dask's, where its thread did not start within ten seconds
            return connect()
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"--scheduler must be the address of a Dask scheduler, got {scheduler} ({reason[0][:100]}); "
            "start one with 'dask scheduler' and give the address that it prints"
        ) from None
