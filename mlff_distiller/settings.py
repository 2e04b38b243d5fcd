"""Settings as frozen dataclasses whose fields say everything about themselves, and their loader.

    @dataclass(frozen=True)
    class ModelConfig(Settings, path="model"):
        cutoff: float = setting(5.0, "Neighbours beyond it do not exist.", unit="Å", above=0)

One line holds default, meaning, unit and limits: they are checked whenever an object is made,
and the JSON schema and docs/configuration.md are made of them (:mod:`mlff_distiller.schema`).
A key that no field has is an error that names the nearest one: a silently ignored ``cuttof``
would cost a day of training.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_write_text

SettingsT = TypeVar("SettingsT")

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Rule:
    """What a field means and which values it takes; of lists and mappings, each of their members."""

    meaning: str
    unit: str = ""
    above: float | None = None
    """Smaller than every value."""
    least: float | None = None
    most: float | None = None
    below: float | None = None
    """Larger than every value."""
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    advice: str = ""
    """Ends the message in place of ``set PATH.NAME``, or ``use e.g. DEFAULT`` without a path."""
    length: int | None = None
    """Of lists: the number of members."""
    lone: bool = False
    """Of lists: text that stands alone is a list of one."""
    example: Any = None
    """Stands in a new configuration where there is no default."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` keeps to all limits; NaN and infinity never do."""
        if self.choices:
            return value in self.choices
        if not isinstance(value, numbers.Real):
            return True
        value = float(value)
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    def allowed(self) -> str:
        """The limits in words, as in ``must be ...``; empty where there are none."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        unit = f" {self.unit}" if self.unit else ""
        if self.multiple_of is not None:
            return f"a positive multiple of {self.multiple_of}{unit}"
        if self.least is not None and self.most is not None:
            return f"{self.least}..{self.most}{unit}"
        if self.least is not None and self.below is not None:
            return f"in [{self.least}, {self.below}){unit}"
        parts = [
            f"{sign} {limit}"
            for sign, limit in (
                (">", self.above),
                (">=", self.least),
                ("<", self.below),
                ("at most", self.most),
            )
            if limit is not None
        ]
        return " and ".join(parts) + unit if parts else ""


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a :class:`Settings` class.

    Args:
        default: lists and dictionaries are copied for each object; ``...``: there is none.
        meaning: one or two sentences, without the unit.
        limits: see :class:`Rule`.
    """
    metadata = {"rule": Rule(meaning, **limits)}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def seed_setting(
    default: int | None = 0, meaning: str = "Same seed, same result.", **limits: Any
) -> Any:
    """A field that holds a seed."""
    return setting(default, meaning, **{"least": 0, "most": LARGEST_SEED, **limits})


def section(cls: type) -> Any:
    """A field that holds the settings ``cls``, by default as they are."""
    meaning = (cls.__doc__ or "").partition("\n")[0]
    return dataclasses.field(default_factory=cls, metadata={"rule": Rule(meaning)})


class Settings:
    """Base of all settings: a dataclass whose fields are checked when it is made.

    Rules between fields: extend ``__post_init__`` and call that of the base first.
    """

    _path: typing.ClassVar[str] = ""

    def __init_subclass__(cls, path: str = "") -> None:
        cls._path = path

    def __post_init__(self) -> None:
        """Check every field. Raises InputError that says what is allowed, got, and to be done."""
        for f, hint in fields_of(type(self)):
            value = getattr(self, f.name)
            values = value if isinstance(value, (list, tuple)) else [value]
            length = f.metadata["rule"].length
            if length is not None and len(values) != length:
                place = f"{self._path}.{f.name}" if self._path else f.name
                raise InputError(
                    f"{f.name} must be a list of {length}, got {value}; set {place} to e.g. "
                    f"{list(range(2, 2 + length))}"
                )
            named = {
                f"{f.name}[{i}]" if values is value else f.name: v for i, v in enumerate(values)
            }
            if isinstance(value, dict) and kind_of(hint) is not hint:
                named = {f"{f.name}[{key!r}]": member for key, member in value.items()}
            for name, member in named.items():
                self._check(f, hint, name, member)

    def _check(self, f: dataclasses.Field[Any], hint: Any, name: str, value: Any) -> None:
        rule: Rule = f.metadata["rule"]
        if value is None and type(None) in typing.get_args(hint):
            return
        if kind_of(hint) in (int, float) and not isinstance(value, numbers.Real):
            raise _wrong(kind_of(hint), value, name)
        if rule.allows(value):
            return
        parts = [rule.allowed()]
        if isinstance(value, numbers.Real) and not math.isfinite(value):
            parts.insert(0, "finite")
        allowed = " and ".join(part for part in parts if part)
        place = f"set {self._path}.{f.name}" if self._path else f"use e.g. {f.default}"
        advice = rule.advice or place
        raise InputError(f"{name} must be {allowed}, got {value!r}; {advice}")


def fields_of(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Fields of a :class:`Settings` class, each with its resolved type."""
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls)]  # type: ignore[arg-type]


def kind_of(hint: Any) -> Any:
    """The type of a value: ``float`` of ``float | None``, ``list[float]``, ``dict[str, float]``."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return kind_of(next(m for m in typing.get_args(hint) if m is not type(None)))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0]
    if typing.get_origin(hint) is dict and typing.get_args(hint)[1] is not Any:
        return typing.get_args(hint)[1]
    return hint


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of settings, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[SettingsT], mapping: Mapping[str, Any], where: str = "") -> SettingsT:
    """Build the settings ``cls`` from a mapping.

    Args:
        cls: a :class:`Settings` class.
        mapping: key -> value; nested mappings become nested settings.
        where: dotted path of the mapping, for messages.

    Raises:
        InputError: unknown key (with the nearest valid one), missing key, value of a wrong type
            or outside its limits.
    """
    name = where or "the configuration"
    if not isinstance(mapping, Mapping):
        raise InputError(f"{name} must be a mapping of keys, got {mapping!r}; indent its keys")
    fields = {f.name: (f, hint) for f, hint in fields_of(cls)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise InputError(_unknown_key(str(key), list(fields), where))
        path = f"{where}.{key}" if where else str(key)
        if fields[key][0].metadata["rule"].lone and isinstance(value, str):
            value = [value]
        values[key] = _convert(fields[key][1], value, path)
    for key, (f, _) in fields.items():
        if is_required(f) and key not in values:
            raise InputError(f"{name} lacks the key {key!r}; add it")
    return cls(**values)


def load_config(path: str | Path, cls: type[SettingsT]) -> SettingsT:
    """Read a YAML file into the settings ``cls``; see :func:`from_dict` for the errors."""
    return from_dict(cls, load_yaml(path))


class _Loader(yaml.SafeLoader):
    """Refuses two keys of one name in a mapping, of which YAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in lines:
                    raise _TwiceError(
                        f"has the key {key.value!r} twice, at lines {lines[key.value]} and {line}; "
                        "make one of the two"
                    )
                lines[key.value] = line
        return node


class _TwiceError(yaml.YAMLError):
    """A key is there twice; the message says where."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping. Raises InputError otherwise."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    try:
        mapping = yaml.load(text, _Loader)
    except _TwiceError as error:
        raise InputError(f"{path} {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path} is not valid YAML{line}: {getattr(error, 'problem', '')}"
        ) from None
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise InputError(f"{path} must hold keys and values, got {type(mapping).__name__}")
    return mapping


def save_yaml(config: Any, path: str | Path) -> None:
    """Write settings as YAML that :func:`load_config` reads back."""
    atomic_write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def _unknown_key(key: str, valid: list[str], where: str) -> str:
    place = f" in {where}" if where else ""
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
    return f"unknown key {key!r}{place}; {hint}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        members = typing.get_args(hint)
        if value is None and type(None) in members:
            return None
        for kind, accepted in ((list, (list, tuple)), (dict, (Mapping,))):
            for member in members:
                if typing.get_origin(member) is kind and isinstance(value, accepted):
                    return _convert(member, value, path)
        return _convert(kind_of(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value if value is not None else {}, path)  # type: ignore[arg-type]
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{path} must be a list, got {value!r}; write it as [a, b]")
        return [_convert(kind_of(hint), v, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{path} must be a mapping, got {value!r}; write it as {{key: value}}")
        kind = kind_of(hint)
        if kind is hint:
            return dict(value)
        return {str(key): _convert(kind, v, f"{path}[{key!r}]") for key, v in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint is float and is_number:
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            raise _wrong(hint, value, path) from None
    if hint is str and isinstance(value, str):
        return value
    raise _wrong(hint, value, path)


def _wrong(hint: Any, value: Any, path: str) -> InputError:
    kind = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return InputError(f"{path} must be {kind.get(hint, hint)}, got {value!r}; correct it")
