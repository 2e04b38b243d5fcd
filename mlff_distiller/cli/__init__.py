"""The command line: ``mlff-distiller COMMAND``.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import typer

from mlff_distiller.cli import (
    analyse,
    configure,
    correct,
    data,
    models,
    serve,
    simulate,
    validate,
)

app = typer.Typer(
    name="mlff-distiller",
    help="Distil a slow, accurate potential into a small PaiNN student and run it in LAMMPS, "
    "OpenMM and ASE.",
    epilog="Start with:  mlff-distiller distill examples/demo_silicon.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (configure, data, models, simulate, analyse, validate, correct, serve):
    module.register(app)
_ORDER = [
    "init",
    "sample",
    "label",
    "train",
    "distill",
    "evaluate",
    "validate",
    "export",
    "md",
    "correct_server",
    "reweight",
    "bench",
    "info",
    "convert",
    "schema",
]
app.registered_commands.sort(key=lambda command: _ORDER.index(command.callback.__name__))  # type: ignore[union-attr]


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from mlff_distiller import __version__

        typer.echo(f"mlff-distiller {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the ``mlff-distiller`` command."""
    app()


if __name__ == "__main__":
    main()
