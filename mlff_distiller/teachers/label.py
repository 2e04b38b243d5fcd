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
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError, MismatchError
from mlff_distiller.progress import Progress


@dataclass
class LabelReport:
    """What :func:`label_dataset` did."""

    path: Path
    num_labelled: int = 0
    """Structures in the file now."""
    num_resumed: int = 0
    """Inputs that an earlier call had dealt with."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason -> number of structures that were left out, over all calls."""
    seconds: float = 0.0
    seconds_per_structure: float = 0.0
    """Of this call; 0 when there was nothing left to do."""

    def __str__(self) -> str:
        text = f"labelled {self.num_labelled} structures in {self.path}"
        if self.num_resumed:
            text += f" ({self.num_resumed} inputs were done before)"
        for reason, count in self.rejected.items():
            text += f"; rejected {count}: {reason}"
        return text


def label_dataset(
    structures: Sequence[Structure],
    teacher: EnergyModel,
    output: str | Path,
    *,
    batch_size: int = 8,
    resume: bool = True,
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
        on_mismatch: what becomes of an existing file of other structures, of another teacher or
            of another ``max_force``: ``refuse`` it, or ``restart`` and keep it as ``*.old``.
        progress: show a bar (plain lines where the output is not a terminal); or call this with
            (done, total).
        max_force: eV/Å; structures with a larger force are left out, None keeps all.
        seed: of the sampling, remembered in the file.
        console: where the bar goes; standard error by default.

    Raises:
        InputError: structures that the teacher cannot label, no structure that could be labelled,
            a full disk.
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

    def open_writer() -> HDF5Writer:
        writer = HDF5Writer(
            output, teacher=teacher.name, versions=dict(teacher.versions), seed=seed
        )
        try:
            _check_same(writer, inputs)
        except MismatchError:
            writer.close()
            raise
        return writer

    existed = output.exists()
    begin = time.monotonic()
    report = LabelReport(output)
    try:
        writer = open_writer()
    except MismatchError:
        if on_mismatch == "refuse":
            raise
        _set_aside(output)
        writer = open_writer()
    with writer:
        if writer.progress:
            report.num_resumed = int(writer.progress["done"])
            report.rejected = dict(writer.progress["rejected"])
        done = report.num_resumed
        with _shown(progress, console, f"label with {teacher.name}", len(structures)) as update:
            update(done)
            while done < len(structures):
                batch = structures[done : done + batch_size]
                labelled = _label(teacher, batch, max_force, report)
                done += len(batch)
                state = {**inputs, "done": done, "rejected": report.rejected}
                writer.append(labelled, progress=state)
                update(done)
        report.num_labelled = len(writer)
    report.seconds = time.monotonic() - begin
    fresh = len(structures) - report.num_resumed
    report.seconds_per_structure = report.seconds / fresh if fresh else 0.0
    if report.num_labelled == 0:
        if not existed:  # a file without structures is of no use to anybody
            output.unlink(missing_ok=True)
        raise InputError(
            f"no structure could be labelled with {teacher.name}: {_reasons(report.rejected)}; "
            "check the structures, or raise max_force"
        )
    return report


def _check_same(writer: HDF5Writer, inputs: dict[str, Any]) -> None:
    """Raise MismatchError unless what the file holds is the beginning of the same work."""
    state, path = writer.progress, writer.path
    if not state and len(writer) == 0:
        return
    remedy = "write to another file, or start anew with resume=False (--no-resume)"
    if state.get("inputs") != inputs["inputs"]:
        raise MismatchError(
            f"{path} must hold labels of the same structures to go on, got others; {remedy}"
        )
    limit = inputs["max_force"]
    if "max_force" in state:
        same, found = state["max_force"] == limit, f"{state['max_force']}"
    else:  # a file of an older version: at least nothing in it may be above the limit
        largest = max((_largest_force(s) for s in HDF5Dataset(path)), default=0.0)
        same, found = limit is None or largest <= limit, f"a force of {largest:.3g} eV/Å"
    if not same:
        raise MismatchError(
            f"{path} must hold labels chosen by max_force {limit} to go on, got {found}; {remedy}"
        )


def _set_aside(path: Path) -> None:
    old = path.with_name(path.name + ".old")
    for source, target in ((path, old), (journal_path(path), journal_path(old))):
        target.unlink(missing_ok=True)
        if source.exists():
            source.replace(target)


def _label(
    teacher: EnergyModel, batch: Sequence[Structure], max_force: float | None, report: LabelReport
) -> list[Structure]:
    try:
        labelled = teacher.label(batch)
    except InputError as error:
        if len(batch) == 1:
            _count(report, f"the teacher failed ({_shorten(str(error))})")
            return []
        # One bad structure must not take its batch along.
        return [s for one in batch for s in _label(teacher, [one], max_force, report)]
    kept = []
    for s in labelled:
        if max_force is not None and _largest_force(s) > max_force:
            _count(report, f"a force above {max_force:g} eV/Å")
        else:
            kept.append(s)
    return kept


def _largest_force(structure: Structure) -> float:
    if structure.forces is None:
        return 0.0
    return float(np.linalg.norm(structure.forces, axis=1).max())


def _count(report: LabelReport, reason: str) -> None:
    report.rejected[reason] = report.rejected.get(reason, 0) + 1


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
