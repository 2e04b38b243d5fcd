"""``init`` and ``schema``: configuration files to start from, and editors that know them."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from mlff_distiller.cli.common import OVERWRITE, example, refuse_to_replace, user_errors, wrote

_FOR_TRAIN = typer.Option(False, "--train", help="For `train` instead of `distill`.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        **example(
            "Write a configuration with every key, its default and its meaning.",
            "init my.yaml",
            "init train.yaml --train",
        )
    )(init)
    app.command(
        **example(
            "JSON schema of the configuration: editors complete and check the keys with it.",
            "schema -o distill.schema.json",
        )
    )(schema)


def init(
    output: Path = typer.Argument(help="YAML file to write."),
    train: bool = _FOR_TRAIN,
    overwrite: bool = OVERWRITE,
) -> None:
    """Write a configuration with every key."""
    with user_errors(f"{output} was not written"):
        from mlff_distiller.files import atomic_write_text
        from mlff_distiller.schema import commented_yaml

        refuse_to_replace(output, overwrite)
        command = f"train {output} --data data.h5" if train else f"distill {output}"
        head = (
            f"# mlff-distiller {command}\n"
            "# Every key and its default; those that you do not change can go.\n"
        )
        atomic_write_text(output, head + commented_yaml(_settings(train)))
        typer.echo(f"{wrote(output)}\nnext: mlff-distiller {command}")


def schema(
    output: Path | None = typer.Option(None, "-o", "--output", help="File; stdout if left out."),
    train: bool = _FOR_TRAIN,
    overwrite: bool = OVERWRITE,
) -> None:
    """JSON schema of the configuration."""
    with user_errors("nothing was written"):
        from mlff_distiller.files import atomic_write_text
        from mlff_distiller.schema import json_schema

        text = json.dumps(json_schema(_settings(train)), indent=1, ensure_ascii=False)
        if output is None:
            typer.echo(text)
            return
        refuse_to_replace(output, overwrite)
        atomic_write_text(output, text + "\n")
        comment = f"# yaml-language-server: $schema={output.name}"
        typer.echo(f"{wrote(output)}\nfirst line of a YAML file beside it: {comment}")


def _settings(train: bool) -> type:
    from mlff_distiller.config import DistillConfig, TrainConfig

    return TrainConfig if train else DistillConfig
