"""Labelling a set of structures into an HDF5 file: resumable after anything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from mlff_distiller.data.hdf5 import HDF5Dataset, HDF5Writer, structures_hash
from mlff_distiller.data.journal import journal_path
from mlff_distiller.data.structure import Structure, check_structure
from mlff_distiller.data.survey import geometry_key
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError, LostProcessError, MismatchError
from mlff_distiller.progress import Progress

# Refused structures that a message names, and that a report does: it is stored with every batch.
_SHOWN, _KEPT = 6, 1000
_REMEDY = "write to another file, or start anew with resume=False (--no-resume)"


@dataclass
class LabelReport:
    """What :func:`label_dataset` did."""

    path: Path
    num_labelled: int = 0
    """Structures in the file now."""
    num_resumed: int = 0
    """Inputs that an earlier call had dealt with."""
    num_known: int = 0
    """Inputs that were in the file already when it was extended."""
    num_before: int = 0
    """Structures in the file before it was extended."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason -> number of structures that were left out, over all calls."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Of them the first thousand: index among the inputs, and why."""
    seconds: float = 0.0
    seconds_per_structure: float = 0.0
    """Of this call; 0 when there was nothing left to do."""

    def __str__(self) -> str:
        text = f"labelled {self.num_labelled} structures in {self.path}"
        if self.num_resumed:
            text += f" ({self.num_resumed} inputs were done before)"
        if self.num_before:
            text += (
                f" ({self.num_before} were there, {self.num_known} of the inputs among them, "
                f"{self.num_labelled - self.num_before} added)"
            )
        for reason, count in self.rejected.items():
            text += f"; rejected {count}: {reason}"
            if which := [index for index, why in self.refused if why == reason]:
                shown = ", ".join(map(str, which[:_SHOWN]))
                text += f" (structure{'s' * (count > 1)} {shown}{', ...' * (count > _SHOWN)})"
        return text


def label_dataset(
    structures: Sequence[Structure],
    teacher: EnergyModel,
    output: str | Path,
    *,
    batch_size: int = 8,
    resume: bool = True,
    extend: bool = False,
    on_mismatch: Literal["refuse", "restart"] = "refuse",
    progress: bool | Callable[[int, int], None] = True,
    max_force: float | None = 30.0,
    seed: int | None = None,
    console: Console | None = None,
) -> LabelReport:
    """Label structures and write them to an HDF5 file.

    Each batch is on disk before the next begins. After Ctrl-C, a crash or a full disk the same
    call goes on where it stopped and ends with the same file as an uninterrupted one.

    Args:
        structures: in order; ``info`` is kept.
        teacher: see :func:`get_teacher`; or any other model, a student or a difference of two.
        output: the HDF5 file.
        batch_size: structures between two commits.
        resume: go on with an existing file; False starts anew.
        extend: where the file holds labels of other structures, or those that another
            ``max_force`` chose, add those of ``structures`` that it lacks (atoms and cell within
            1e-6 Å), in order. What is there stays.
        on_mismatch: what becomes of an existing file of other structures or of another
            ``max_force`` that is not extended, or of another teacher: ``refuse`` it, or
            ``restart`` and keep it as ``*.old``.
        progress: show a bar (plain lines where the output is not a terminal); or call this with
            (done, total).
        max_force: eV/Å; structures with a larger force are left out, None keeps all.
        seed: of the sampling, remembered in the file.
        console: where the bar goes; standard error by default.

    Raises:
        InputError: structures that the teacher cannot label, no structure that could be labelled,
            a full disk.
        LostProcessError: workers on other machines cannot go on; what was committed stays.
        MismatchError: a file that belongs to other inputs, see ``on_mismatch``.
        KeyboardInterrupt: after everything that was committed is in the file.
    """
    output = Path(output)
    if not structures:
        raise InputError("label needs at least one structure, got none; check the input file")
    if batch_size < 1:
        raise InputError(f"batch_size must be >= 1, got {batch_size}; set teacher.batch_size")
    if max_force is not None and not 0 < max_force < math.inf:
        raise InputError(
            f"max_force must be finite and > 0 eV/Å, got {max_force}; use e.g. --max-force 30"
        )
    for i, s in enumerate(structures):
        check_structure(s, f"structure {i}")
    teacher.check(structures)
    if not resume:
        output.unlink(missing_ok=True)
        journal_path(output).unlink(missing_ok=True)
    inputs = {"inputs": structures_hash(structures), "max_force": max_force}

    def open_writer() -> tuple[HDF5Writer, set[bytes]]:
        writer = HDF5Writer(
            output, teacher=teacher.name, versions=dict(teacher.versions), seed=seed
        )
        try:
            return writer, _go_on(writer, teacher.name, inputs, structures, extend, report)
        except BaseException:
            writer.close()
            raise

    existed = output.exists()
    begin = time.monotonic()
    report = LabelReport(output)
    try:
        writer, known = open_writer()
    except MismatchError:
        if on_mismatch == "refuse":
            raise
        _set_aside(output)
        writer, known = open_writer()

    def unknown(first: int, end: int) -> dict[int, Structure]:
        """By index among the inputs."""
        return {
            i: structures[i]
            for i in range(first, end)
            if not known or geometry_key(structures[i]) not in known
        }

    fresh = 0
    with writer:
        done = report.num_resumed
        with _shown(progress, console, f"label with {teacher.name}", len(structures)) as update:
            update(done)
            teacher.announce(list(unknown(done, len(structures)).values()))
            while done < len(structures):
                end = min(done + batch_size, len(structures))
                batch = unknown(done, end)
                labelled = _label(teacher, batch, max_force, report) if batch else []
                done = end
                fresh += len(batch)
                state: dict[str, Any] = {**inputs, "done": done, "rejected": report.rejected}
                if report.refused:
                    state["refused"] = report.refused
                if report.num_before:
                    state |= {"before": report.num_before, "known": report.num_known}
                writer.append(labelled, progress=state)
                update(done)
        report.num_labelled = len(writer)
    report.seconds = time.monotonic() - begin
    report.seconds_per_structure = report.seconds / fresh if fresh else 0.0
    if report.num_labelled == 0:
        if not existed:  # a file without structures is of no use to anybody
            output.unlink(missing_ok=True)
        raise InputError(
            f"no structure could be labelled with {teacher.name}: {_reasons(report.rejected)}; "
            "check the structures, or raise max_force"
        )
    return report


def _go_on(
    writer: HDF5Writer,
    teacher: str,
    inputs: dict[str, Any],
    structures: Sequence[Structure],
    extend: bool,
    report: LabelReport,
) -> set[bytes]:
    """Say in the report what the file holds: the beginning of this work, or what this extends.

    Returns:
        Geometries that are there and not to be labelled again.

    Raises:
        MismatchError: neither of them.
    """
    state, path = writer.progress, writer.path
    if not state and len(writer) == 0:
        return set()
    try:
        _check_same(writer, inputs)
    except MismatchError:
        if not extend:
            raise
        _check_extends(writer, teacher, inputs)
        known = _geometries(path, len(writer))
        report.num_before = len(writer)
        report.num_known = sum(geometry_key(s) in known for s in structures)
        return known
    report.num_resumed = int(state["done"])
    report.rejected = dict(state["rejected"])
    report.refused = [(int(i), reason) for i, reason in state.get("refused", [])]
    report.num_before = int(state.get("before", 0))
    report.num_known = int(state.get("known", 0))
    unfinished = report.num_resumed < len(structures)
    return _geometries(path, report.num_before) if unfinished else set()


def _check_same(writer: HDF5Writer, inputs: dict[str, Any]) -> None:
    """Raise MismatchError unless what the file holds is the beginning of the same work."""
    state, path = writer.progress, writer.path
    if state.get("inputs") != inputs["inputs"]:
        raise MismatchError(
            f"{path} must hold labels of the same structures to go on, got others; {_REMEDY}"
        )
    limit = inputs["max_force"]
    if "max_force" not in state:  # a file of an older version
        _check_limit(path, limit)
    elif state["max_force"] != limit:
        raise _other_limit(path, limit, f"{state['max_force']}")


def _check_extends(writer: HDF5Writer, teacher: str, inputs: dict[str, Any]) -> None:
    """Raise MismatchError unless labels by ``teacher`` may be added to what the file holds."""
    path = writer.path
    there = HDF5Dataset(path, require_labels=False).teacher
    if there != teacher:
        raise MismatchError(
            f"{path} holds labels of {there or 'unknown origin'}, got {teacher!r}; {_REMEDY}"
        )
    if writer.progress.get("inputs") == inputs["inputs"]:  # a lower limit adds nothing
        _check_limit(path, inputs["max_force"])


def _check_limit(path: Path, limit: float | None) -> None:
    """Raise MismatchError if a force in the file is above ``limit``."""
    frames = HDF5Dataset(path, require_labels=False)
    largest = max((_largest_force(s) for s in frames), default=0.0)
    if limit is not None and largest > limit:
        raise _other_limit(path, limit, f"a force of {largest:.3g} eV/Å")


def _other_limit(path: Path, limit: float | None, found: str) -> MismatchError:
    return MismatchError(
        f"{path} must hold labels chosen by max_force {limit} to go on, got {found}; {_REMEDY}"
    )


def _geometries(path: Path, count: int) -> set[bytes]:
    """Of the labelled ones among the first ``count`` structures of a file."""
    if count == 0:
        return set()
    frames = HDF5Dataset(path, require_labels=False)[:count]
    return {geometry_key(s) for s in frames if s.energy is not None}


def _set_aside(path: Path) -> None:
    old = path.with_name(path.name + ".old")
    for source, target in ((path, old), (journal_path(path), journal_path(old))):
        target.unlink(missing_ok=True)
        if source.exists():
            source.replace(target)


def _label(
    teacher: EnergyModel,
    batch: dict[int, Structure],
    max_force: float | None,
    report: LabelReport,
) -> list[Structure]:
    try:
        labelled = teacher.label(list(batch.values()))
    except LostProcessError:
        raise  # says nothing about the structures
    except InputError as error:
        if len(batch) == 1:
            _refuse(report, next(iter(batch)), f"the teacher failed ({_shorten(str(error))})")
            return []
        # One bad structure must not take its batch along.
        return [s for i in batch for s in _label(teacher, {i: batch[i]}, max_force, report)]
    kept = []
    for i, s in zip(batch, labelled, strict=True):
        if max_force is not None and _largest_force(s) > max_force:
            _refuse(report, i, f"a force above {max_force:g} eV/Å")
        else:
            kept.append(s)
    return kept


def _largest_force(structure: Structure) -> float:
    if structure.forces is None:
        return 0.0
    return float(np.linalg.norm(structure.forces, axis=1).max())


def _refuse(report: LabelReport, index: int, reason: str) -> None:
    report.rejected[reason] = report.rejected.get(reason, 0) + 1
    if len(report.refused) < _KEPT:
        report.refused.append((index, reason))


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _reasons(rejected: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in rejected.items()) or "none given"


@contextmanager
def _shown(
    how: bool | Callable[[int, int], None], console: Console | None, title: str, total: int
) -> Iterator[Callable[[int], None]]:
    """Progress on the screen, as calls of a function, or not at all."""
    if callable(how):
        yield lambda done: how(done, total)
    elif how:
        with Progress(title, console) as progress:
            yield lambda done: progress.update(done, total)
    else:
        yield lambda done: None
