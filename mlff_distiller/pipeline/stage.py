"""What a station of the line is, and running each only when its inputs have changed.

A station is a function of frozen, typed inputs. The same inputs are hashed, so that a setting which
the function can see is a setting which makes it run again: there is no list of keys to keep by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlff_distiller import __version__
from mlff_distiller.files import atomic_write_text, sha256

InputsT = TypeVar("InputsT")
ResultT = TypeVar("ResultT")
ValueT = TypeVar("ValueT")
Say = Callable[[str], None]

#: ``field(metadata=EXECUTION)``: how a station works, not what comes out; it is not hashed.
EXECUTION = {"hashed": False}


@dataclass(frozen=True)
class Hashed(Generic[ValueT]):
    """An input that is large or lies in a file: only ``hash`` decides whether it has changed."""

    value: ValueT
    hash: str


def hashed_file(path: Path) -> Hashed[Path]:
    """A file as an input, by its bytes."""
    return Hashed(path, sha256(path))


def identity(value: Any) -> Any:
    """Plain JSON of all that decides a result; a class may say it itself by ``identity()``."""
    if isinstance(value, Hashed):
        return value.hash
    if callable(own := getattr(value, "identity", None)):
        return identity(own())
    if dataclasses.is_dataclass(value):
        return {
            f.name: identity(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.metadata.get("hashed", True)
        }
    if isinstance(value, dict):
        return {key: identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(item) for item in value]
    return value


@dataclass(frozen=True)
class Station(Generic[InputsT, ResultT]):
    """One station of the line."""

    name: str
    work: Callable[[InputsT, Path, Say], ResultT]
    """(inputs, folder of the run, where to tell what happens) -> result."""
    result: type[ResultT]
    """A dataclass of plain JSON types."""
    files: Sequence[str]
    """Names in the folder of the run that ``work`` always writes."""


class Stages:
    """Runs stations, or skips those that are done already.

    Args:
        output: folder of the run; the records lie in its ``stages/``.
        say: told what happens.
        fresh: forget all records.
    """

    def __init__(self, output: Path, say: Say, fresh: bool = False) -> None:
        self.output, self._say = output, say
        self._folder = output / "stages"
        self.seconds: dict[str, float] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for record in self._folder.glob("*.json"):
                record.unlink()

    def run(self, station: Station[InputsT, ResultT], inputs: InputsT) -> ResultT:
        """Result of the station, or that of an earlier run with the same inputs."""
        name = station.name
        content = {"version": __version__, "inputs": identity(inputs)}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{name}.json"
        record = _read_json(path)
        if record.get("inputs") == key and all((self.output / f).exists() for f in station.files):
            self._say(f"[{name}] done before, {record['seconds']:.0f} s")
            self.seconds[name] = record["seconds"]
            return station.result(**record["result"])
        self._say(f"[{name}]")
        if record:
            self._say("again: its settings or what it is given have changed")
        path.unlink(missing_ok=True)  # its files are about to change
        start = time.perf_counter()
        result = station.work(inputs, self.output, self._say)
        seconds = self.seconds[name] = time.perf_counter() - start
        fields: Any = result
        record = {"inputs": key, "seconds": seconds, "result": dataclasses.asdict(fields)}
        atomic_write_text(path, json.dumps(record, indent=1))
        return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
