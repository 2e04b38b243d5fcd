"""``correct-server``: a teacher for input scripts of LAMMPS."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from mlff_distiller.cli.common import JSON, emit, example, note, say, user_errors


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        name="correct-server",
        **example(
            "A teacher for fix painn/correct of LAMMPS: prints the line to paste, then answers.",
            "correct-server student.pt --teacher sevennet-0 --every 8",
        ),
    )(correct_server)


def correct_server(
    model: Path = typer.Argument(help="Exported student, the one of pair_coeff."),
    teacher: str = typer.Option(
        ..., "--teacher", help="Registry name (see info --teachers) or module:Class(kwargs)."
    ),
    device: str = typer.Option("cpu", help="Where the teacher runs: cpu or cuda."),
    every: int = typer.Option(8, min=1, help="For the printed line; LAMMPS decides."),
    socket: Path | None = typer.Option(
        None, help="Where to listen [default: in a temporary folder that only you can enter]."
    ),
    dtype: str = typer.Option("float32", help="Of the student: float32 or float64, as in LAMMPS."),
    threads: int = typer.Option(0, min=0, help="Threads of the student; 0 is OpenMP's default."),
    keep_labels: Path | None = typer.Option(
        None, help="HDF5 file to which the teacher's labels are added, for training."
    ),
    temperature: float = typer.Option(300.0, help="K, noted with the labels."),
    as_json: bool = JSON,
) -> None:
    """Answer LAMMPS on this machine until Ctrl-C."""
    with (
        user_errors("the server has ended; LAMMPS runs that need it stop"),
        _folder(socket) as path,
    ):
        from mlff_distiller.multistep.correction import Correction
        from mlff_distiller.multistep.server import CorrectionServer
        from mlff_distiller.students.energy_model import ExportedModel
        from mlff_distiller.teachers import get_teacher

        surface = get_teacher(teacher, device=device)
        correction = Correction(surface, ExportedModel(model, dtype=dtype, threads=threads))
        with contextlib.ExitStack() as stack:
            if keep_labels is not None:
                from mlff_distiller.multistep.labels import KeptLabels

                kept = KeptLabels(keep_labels, surface, temperature)
                correction.keep = stack.enter_context(contextlib.closing(kept)).append
            server = stack.enter_context(CorrectionServer(correction, path))
            say(f"{correction.teacher.name} minus {correction.student.name}; end with Ctrl-C")
            note("into the input script, above all fixes that move atoms:")
            line = f"fix correct all painn/correct {path} every {every}"
            emit({"socket": path, "every": every, "fix": line}, as_json, line)
            told = None
            while True:
                server.wait(1.0)
                if server.failure is not told:
                    told = server.failure
                    say(f"LAMMPS was stopped: {told}")


@contextlib.contextmanager
def _folder(socket: Path | None) -> Iterator[Path]:
    if socket is not None:
        yield socket.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="mlff-teacher-") as folder:
        yield Path(folder) / "socket"
