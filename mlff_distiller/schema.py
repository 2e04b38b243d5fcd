"""What :mod:`mlff_distiller.settings` knows, for editors and readers: schema, page, starting file."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import yaml

from mlff_distiller.settings import Rule, fields_of, is_required, kind_of

_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text"}


def json_schema(cls: Any) -> dict[str, Any]:
    """JSON schema (2020-12) of the settings ``cls``, for completion and checks in an editor."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mlff-distiller {cls.__name__}",
        **_object(cls),
    }


def markdown(cls: Any, path: str = "") -> str:
    """Tables of all keys of the settings ``cls``, one for each section.

    Args:
        cls: a settings class; its nested settings get sections of their own, after it.
        path: heading of its own table; nested ones are headed by their keys.
    """
    keys = [(f, hint) for f, hint in fields_of(cls) if not dataclasses.is_dataclass(hint)]
    parts = []
    if keys:
        rows = [_row(f, hint) for f, hint in keys]
        doc = " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
        table = ["| key | default | unit | takes | meaning |", "|---|---|---|---|---|", *rows]
        parts.append("\n".join([*([f"## {path}", ""] if path else []), doc, "", *table]))
    parts += [
        markdown(hint, f"{path}.{f.name}" if path else f.name)
        for f, hint in fields_of(cls)
        if dataclasses.is_dataclass(hint)
    ]
    return "\n\n".join(parts)


def commented_yaml(cls: Any, indent: str = "") -> str:
    """A YAML file of every key of ``cls`` at its default, each with its meaning beside it."""
    lines = []
    for f, hint in fields_of(cls):
        rule: Rule = f.metadata["rule"]
        if dataclasses.is_dataclass(hint):
            lines += ["", f"{indent}{f.name}:  # {_plain(rule.meaning)}"]
            lines += commented_yaml(hint, indent + "  ").splitlines()  # type: ignore[arg-type]
        else:
            value = rule.example if is_required(f) else default_of(f)
            comment = ". ".join(t for t in (_plain(rule.meaning), takes(f, hint)) if t)
            lines.append(f"{indent}{f'{f.name}: {_scalar(value)}':<36}  # {comment}")
    return "\n".join(lines).lstrip("\n") + "\n"


def default_of(f: dataclasses.Field[Any]) -> Any:
    """The default of a field that has one."""
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def takes(f: dataclasses.Field[Any], hint: Any) -> str:
    """The values of a field in words: type, limits and unit."""
    rule: Rule = f.metadata["rule"]
    kind = kind_of(hint)
    words = _WORDS.get(kind, "mapping")
    if rule.choices:
        words = ", ".join(rule.choices)
    elif rule.allowed():
        words = rule.allowed() if rule.multiple_of else f"{words} {rule.allowed()}"
    elif rule.unit:
        words += f", {rule.unit}"
    if typing.get_origin(hint) is list:
        several = "list" if rule.length is None else f"list of {rule.length}"
        words = f"{words}, or a list of it" if rule.lone else f"{several}, each {words}"
    if typing.get_origin(hint) is dict and kind is not hint:
        words = f"mapping, each value {words}"
    if type(None) in typing.get_args(hint):
        words += ", or null"
    return words


def _object(cls: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {f.name: _property(f, hint) for f, hint in fields_of(cls)},
    }
    required = [f.name for f, _ in fields_of(cls) if is_required(f)]
    return {**schema, "required": required} if required else schema


def _property(f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    rule: Rule = f.metadata["rule"]
    if dataclasses.is_dataclass(hint):
        return {"description": _plain(rule.meaning), **_object(hint)}  # type: ignore[arg-type]
    optional = type(None) in typing.get_args(hint)
    one: dict[str, Any] = {"type": _JSON_TYPES.get(kind_of(hint), "object")}
    if optional:
        one["type"] = [one["type"], "null"]
    limits = {
        "exclusiveMinimum": rule.above,
        "minimum": rule.least,
        "maximum": rule.most,
        "exclusiveMaximum": rule.below,
        "multipleOf": rule.multiple_of,
        "enum": list(rule.choices) or None,
    }
    one.update({key: limit for key, limit in limits.items() if limit is not None})
    if typing.get_origin(hint) is dict and kind_of(hint) is not hint:
        one = {"type": "object", "additionalProperties": one}
    if typing.get_origin(hint) is list:
        several: dict[str, Any] = {"type": "array", "items": one}
        if rule.length is not None:
            several |= {"minItems": rule.length, "maxItems": rule.length}
        one = {"anyOf": [one, several]} if rule.lone else several
    unit = f" Unit: {rule.unit}." if rule.unit else ""
    schema = {"description": rule.meaning + unit, **one}
    return schema if is_required(f) else {**schema, "default": default_of(f)}


def _row(f: dataclasses.Field[Any], hint: Any) -> str:
    rule: Rule = f.metadata["rule"]
    default = "(none: must be given)" if is_required(f) else f"`{_scalar(default_of(f))}`"
    unit = f" {rule.unit}" if rule.unit else ""
    words = takes(f, hint).replace(f",{unit}", "").replace(unit, "") if unit else takes(f, hint)
    cells = [f"`{f.name}`", default, rule.unit, words, rule.meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return text.replace("`", "").rstrip(".")


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip()
