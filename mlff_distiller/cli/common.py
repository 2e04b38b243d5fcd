"""What all commands share: one-line errors, Ctrl-C, JSON output, help texts with an example."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer

from mlff_distiller.errors import DeviceError, InputError, LostProcessError
from mlff_distiller.files import jsonable
from mlff_distiller.launch import launched, speaks
from mlff_distiller.workers import stop_workers

#: Exit status of a student that an acceptance gate refuses.
REFUSED = 1
JSON = typer.Option(False, "--json", help="Print one JSON object instead of text.")


def example(text: str, *commands: str) -> dict[str, Any]:
    """Keyword arguments for ``app.command`` that put examples under the help text."""
    lines = "\n\n".join(f"[cyan]mlff-distiller {command}[/cyan]" for command in commands)
    title = "Example" if len(commands) == 1 else "Examples"
    return {"help": text, "epilog": f"[bold]{title}[/bold]\n\n{lines}"}


@contextlib.contextmanager
def user_errors(
    interrupted: str | Callable[[], str] = "nothing was written", *, together: bool = False
) -> Iterator[None]:
    """Turn errors that a user can mend into one red line and exit status 2 (1: a GPU failed).

    Args:
        interrupted: what Ctrl-C leaves behind and how to go on; printed with exit status 130.
        together: the command knows what to do when torchrun or srun start it several times. One of
            the processes then speaks for all.
    """
    try:
        launch = launched()
        if launch is not None and not together:
            raise InputError(
                f"this command runs in one process, got {launch.total} of {launch.by}; start it once"
            )
        with _terminate_like_ctrl_c():
            yield
    except InputError as error:
        told = getattr(error, "told", not speaks())
        if not told:
            _red("error", str(error), "red")
        if isinstance(error, LostProcessError) and launched() is not None:
            _end_at_once(2)
        raise typer.Exit(2) from None
    except DeviceError as error:
        fail(str(error), status=1)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        fail(f"cannot use the file{where}: {os.strerror(error.errno)}; check the path and the disk")
    except SystemExit as error:  # of no code of ours: commands end with typer.Exit
        fail(
            f"a package that this command called, such as the teacher, ended the program (exit status "
            f"{error.code!r}); look at what it printed, or at its own log"
        )
    except KeyboardInterrupt:
        # Wherever it came: Python would wait at its end for what they are doing, LAMMPS for minutes.
        stop_workers()
        kept = interrupted if isinstance(interrupted, str) else interrupted()
        if speaks():
            _red("interrupted", kept, "yellow")
        raise typer.Exit(130) from None


OVERWRITE = typer.Option(False, "--overwrite", help="Replace the output file if it exists.")


def refuse_to_replace(output: Path, overwrite: bool) -> None:
    """Before long work: what was made earlier goes only when that is asked for."""
    if output.is_dir():
        raise InputError(f"--output must be a file, got the directory {output}; name another")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; name another file or add --overwrite")


def fail(message: str, status: int = 2) -> None:
    """Print one red line on stderr and exit with ``status``."""
    _red("error", message, "red")
    raise typer.Exit(status) from None


def _end_at_once(status: int) -> NoReturn:
    """Without what Python does at its end: groups of processes that lost one may abort there.

    A thread that still listens to a lost process when its group is destroyed is unwound through
    C++ that does not allow it, and the exit status would be that of SIGABRT.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _red(word: str, message: str, colour: str) -> None:
    line = " ".join(message.split())
    typer.secho(f"{word}: ", fg=colour, bold=True, nl=False, err=True)
    typer.secho(line, fg=colour, err=True)


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """Batch systems send SIGTERM before they kill: treat it as Ctrl-C, so that work is kept."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread (tests)
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def emit(result: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print the result of a command: JSON for scripts, else ``text``."""
    if as_json:
        typer.echo(json.dumps(jsonable(result), indent=1))
    elif text is not None:
        typer.echo(text)


@contextlib.contextmanager
def nothing_but_json(as_json: bool) -> Iterator[None]:
    """With ``as_json``, what teachers and engines print in the block goes to stderr.

    That of compiled code and of workers that start meanwhile, too: it writes to the file, not to
    ``sys.stdout``.
    """
    if not as_json:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C holds back what it prints to a file or a pipe
        os.dup2(stdout, 1)
        os.close(stdout)


def wrote(path: str | Path, detail: str = "") -> str:
    """Line that says which file was written and how large it is."""
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    what = f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    more = ", ".join(part for part in (detail, what if size else "") if part)
    return f"wrote {path}" + (f" ({more})" if more else "")


def accuracy_text(errors: dict[str, Any]) -> str:
    """Mean absolute errors of a metrics dictionary, for people."""
    names = {
        "force_mae_mev_per_ang": "forces {:.3g} meV/Å",
        "energy_mae_mev_per_atom": "energy {:.3g} meV/atom",
        "stress_mae_gpa": "stress {:.3g} GPa",
    }
    parts = [text.format(errors[k]) for k, text in names.items() if errors.get(k) is not None]
    return ("MAE " + ", ".join(parts)) if parts else "not recorded"


def say(text: str) -> None:
    """Progress for people, on stderr, so that stdout stays clean for scripts."""
    typer.echo(text, err=True)


def note(text: str) -> None:
    """What was decided for the user, on stderr."""
    say(f"note: {text}")


def check_device(device: str) -> str:
    """``device`` if this torch can use it. Raises InputError."""
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        raise InputError(
            f"--device must be cpu or cuda, got {device!r}; try --device cpu"
        ) from None
    if kind.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, got {device!r}; try --device cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind.type == "cuda" and (kind.index or 0) >= found:
        raise InputError(
            f"--device is {device}, but this torch finds {found} CUDA devices; try --device cpu"
        )
    return device


def interval(text: str | None, option: str, example: str) -> list[float] | None:
    """``LOW:HIGH`` or one number for both."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(":")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise InputError(
            f"{option} must be LOW:HIGH or one number, got {text!r}; use e.g. {example}"
        )
    return [values[0], values[-1]]


def parse_options(options: list[str]) -> dict[str, Any]:
    """``["dispersion=true", "k=3"]`` -> ``{"dispersion": True, "k": 3}``. Raises InputError."""
    import yaml

    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise InputError(f"options are written KEY=VALUE, got {option!r}; e.g. -O k=3")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(
                f"the value of an option must be valid YAML, got {option!r}; e.g. -O 'k=[1, 2]'"
            ) from None
    return parsed
