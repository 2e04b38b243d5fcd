"""Settings: limits of the fields, one-line messages, and what is generated from them."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import run

from mlff_distiller.config import (
    DataConfig,
    DistillConfig,
    EnginesConfig,
    ModelConfig,
    SamplingConfig,
    TeacherConfig,
    TrainConfig,
    TrainingConfig,
    from_dict,
    load_config,
    load_yaml,
    save_yaml,
    to_dict,
)
from mlff_distiller.dynamics import MDSettings
from mlff_distiller.errors import InputError
from mlff_distiller.schema import commented_yaml, json_schema
from mlff_distiller.settings import Rule, Settings, fields_of, kind_of, setting

ROOT = Path(__file__).parent.parent
SECTIONS = (
    TeacherConfig, SamplingConfig, DataConfig, ModelConfig, TrainingConfig, EnginesConfig,
    MDSettings,
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(cutoff=-1), "cutoff must be > 0 and at most 100 Å, got -1; set model.cutoff"),
        (
            lambda: ModelConfig(hidden_dim=60),
            "hidden_dim must be a positive multiple of 8, got 60; set model.hidden_dim to 64, 128 "
            "or 256",
        ),
        (
            lambda: ModelConfig(rbf="spline"),
            "rbf must be one of gaussian, bessel, chebyshev, got 'spline'; set model.rbf",
        ),
        (
            lambda: ModelConfig(cutoff_exponent=2),
            "cutoff_exponent must be 3..64, got 2; set model.cutoff_exponent",
        ),
        (
            lambda: ModelConfig(cutoff_function="switch", cutoff_onset=6.0),
            "a switch needs an onset of 0..5.0 Å (the cutoff), got 6.0; set model.cutoff_onset",
        ),
        (
            lambda: TrainingConfig(ema_decay=1.0),
            "ema_decay must be in [0, 1), got 1.0; set training.ema_decay",
        ),
        (
            lambda: TrainingConfig(learning_rate=math.inf),
            "learning_rate must be finite and > 0, got inf; set training.learning_rate",
        ),
        (
            lambda: TrainingConfig(seed=-1),
            "seed must be 0..4294967295, got -1; set training.seed or --seed",
        ),
        (
            lambda: SamplingConfig(md_temperatures=[300.0, 0.0]),
            "md_temperatures[1] must be > 0 K, got 0.0; set sampling.md_temperatures",
        ),
        (
            lambda: SamplingConfig(rattle_stdev=[]),
            "rattle_stdev must hold at least one value, got []; set sampling.rattle_stdev, in Å",
        ),
        (
            lambda: EnginesConfig(timestep=25.0),
            "timestep must be > 0 and at most 20 fs, got 25.0; set engines.timestep",
        ),
        (
            lambda: MDSettings(temperature=math.nan),
            "temperature must be finite and >= 0 K, got nan; use e.g. 300.0",
        ),
        (
            lambda: MDSettings(pressure=math.inf),
            "pressure must be finite, got inf; use e.g. 1.0",
        ),
        (
            lambda: ModelConfig(cutoff=4000.0),
            "cutoff must be > 0 and at most 100 Å, got 4000.0; set model.cutoff",
        ),
        (
            lambda: ModelConfig(cutoff="wide"),  # type: ignore[arg-type]
            "cutoff must be a number, got 'wide'; correct it",
        ),
    ],
)  # fmt: skip
def test_what_a_field_refuses(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"model": {"cuttof": 5}}, "unknown key 'cuttof' in model; did you mean 'cutoff'?"),
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": [1]}, "model must be a mapping of keys, got [1]; indent its keys"),
        ({"model": {"zbl": 1}}, "model.zbl must be true or false, got 1; correct it"),
        ({"model": {"num_rbf": 2.5}}, "model.num_rbf must be an integer, got 2.5; correct it"),
        ({"model": {"cutoff": True}}, "model.cutoff must be a number, got True; correct it"),
        ({"model": {"cutoff": "5 A"}}, "model.cutoff must be a number, got '5 A'; correct it"),
        ({"data": {"path": 3}}, "data.path must be text, got 3; correct it"),
    ],
)
def test_what_a_file_may_not_hold(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(TrainConfig, mapping)
    assert str(error.value) == message


def test_lists_mappings_and_missing_keys() -> None:
    for mapping, message in (
        ({}, "lacks the key 'structures'; add it"),
        ({"structures": "a", "sampling": {"rattle_stdev": 1}}, r"write it as \[a, b\]"),
        ({"structures": "a", "sampling": {"rattle_stdev": ["x"]}}, r"rattle_stdev\[0\] must be a"),
        ({"structures": "a", "teacher": {"options": 1}}, "write it as {key: value}"),
    ):
        with pytest.raises(InputError, match=message):
            from_dict(DistillConfig, mapping)


def test_what_a_file_may_hold() -> None:
    config = from_dict(
        DistillConfig,
        yaml.safe_load(
            "{structures: a.xyz, model: null, training: {learning_rate: 1e-2, max_epochs: 7.0, "
            "max_minutes: null}, sampling: {rattle_stdev: [1e-2, 1]}, teacher: {options: {a: [1]}}}"
        ),
    )
    assert config.training == TrainingConfig(max_epochs=7)
    assert type(config.training.max_epochs) is int
    assert config.sampling.rattle_stdev == [0.01, 1.0]
    assert config.teacher.options == {"a": [1]}
    assert config.model == ModelConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  zbl: true\ndata: {}\nmodel:\n  cutoff: 6\n", "'model' twice, at lines 1 and 4"),
        ("model:\n  cutoff: 5\n  zbl: true\n  cutoff: 6\n", "'cutoff' twice, at lines 2 and 4"),
        ("data: {path: {a.h5: 1, a.h5: 2}}", "'a.h5' twice, at lines 1 and 1"),
    ],
)
def test_a_key_stands_once(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_yaml(file)
    assert str(error.value) == f"{file} has the key {message}; make one of the two"


def test_anchors_may_be_merged_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert load_yaml(file)["b"] == {"x": 3, "y": 2}


def test_yaml_keeps_every_setting(tmp_path: Path) -> None:
    config = replace(DistillConfig("a.xyz"), model=ModelConfig(cutoff=4.5, readout_dim=3))
    save_yaml(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml", DistillConfig) == config


def test_defaults_are_not_shared() -> None:
    SamplingConfig().rattle_stdev.append(1.0)
    TeacherConfig().options["k"] = 1
    assert SamplingConfig().rattle_stdev == [0.02, 0.05, 0.10, 0.15]
    assert TeacherConfig().options == {}


@pytest.mark.parametrize("cls", SECTIONS)
def test_limits_are_kept_on_both_sides(cls: Any) -> None:
    """Each limit: the value at it, or the next one, is taken or not as the rule says."""
    for f, hint in fields_of(cls):
        rule, kind = f.metadata["rule"], kind_of(hint)
        assert rule.meaning.endswith("."), f.name

        def made(
            value: Any, name: str = f.name, many: bool = "list" in str(hint), rule: Rule = rule
        ) -> bool:
            try:
                cls(**{name: [value] * (rule.length or 1) if many else value})
            except InputError:
                return False
            return True

        step = rule.multiple_of or (1 if kind is int else 1e-9)
        if kind in (int, float):
            assert not made(math.nan)
            assert not made(math.inf)
        if rule.least is not None:
            assert made(kind(rule.least))
            assert not made(kind(rule.least - step))
        if rule.above is not None:
            assert not made(kind(rule.above))
            assert made(kind(rule.above + step))
        if rule.most is not None:
            assert made(kind(rule.most))
            assert not made(kind(rule.most) + step)
        if rule.below is not None:
            assert not made(kind(rule.below))
        for choice in rule.choices:
            assert made(choice) or choice == "switch"  # which needs an onset
        assert not rule.choices or not made("no-such-choice")


def test_rules_in_words() -> None:
    @dataclass(frozen=True)
    class Box(Settings, path="box"):
        edge: float = setting(1.0, "Edge.", unit="nm", above=0, below=3)

    with pytest.raises(InputError, match=r"must be > 0 and < 3 nm, got 3\.5; set box\.edge"):
        Box(3.5)
    assert Rule("Anything.").allowed() == ""


def test_generated_files_are_up_to_date() -> None:
    """CHANGED A SETTING? `make docs` writes these files."""
    for name, content in runpy.run_path(str(ROOT / "docs" / "generate.py"))["files"]().items():
        stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert stored == content, f"docs/{name} is out of date; run make docs"


def test_page_and_schema_name_every_key() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "docs" / "distill.schema.json").read_text(encoding="utf-8"))
    for key, value in to_dict(DistillConfig("a")).items():
        assert key in schema["properties"]
        for name in value if isinstance(value, dict) else []:
            assert name in schema["properties"][key]["properties"]
            nested = isinstance(value[name], dict) and name not in (
                "options", "learning_rate_factors",
            )  # fmt: skip
            assert (f"## {key}.{name}\n" if nested else f"| `{name}` |") in page
            for inner in value[name] if nested else []:
                assert f"| `{inner}` |" in page
    cutoff = schema["properties"]["model"]["properties"]["cutoff"]
    assert cutoff["exclusiveMinimum"] == 0
    assert cutoff["default"] == 5.0
    assert schema["properties"]["training"]["properties"]["max_minutes"]["type"] == [
        "number", "null",
    ]  # fmt: skip


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")))
def test_examples_keep_to_the_schema(example: Path) -> None:
    first = example.read_text().splitlines()[0]
    target = first.removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((example.parent / target).read_text())
    assert schema == json_schema(DistillConfig)
    assert_valid(yaml.safe_load(example.read_text()), schema)
    load_config(example, DistillConfig)


def assert_valid(value: Any, schema: dict[str, Any]) -> None:
    """The part of JSON schema that ours uses."""
    kinds = {
        "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
        "number": (int, float), "null": type(None),
    }  # fmt: skip
    if "anyOf" in schema:
        schema = schema["anyOf"][isinstance(value, list)]
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[name]) for name in names), (value, schema)
    if isinstance(value, dict) and "properties" in schema:
        assert value.keys() <= schema["properties"].keys()
        for key, member in value.items():
            assert_valid(member, schema["properties"][key])
    for member in value if isinstance(value, list) else []:
        assert_valid(member, schema["items"])
    assert value in schema.get("enum", [value])


@pytest.mark.parametrize("cls", [DistillConfig, TrainConfig])
def test_commented_yaml_is_the_defaults(cls: Any) -> None:
    text = commented_yaml(cls)
    defaults = cls(structures="builtin:silicon") if cls is DistillConfig else cls()
    assert from_dict(cls, yaml.safe_load(text)) == defaults
    assert all("#" in line for line in text.splitlines() if line)


def test_init_and_schema(tmp_path: Path) -> None:
    run("init", "new.yaml", cwd=tmp_path)
    assert load_config(tmp_path / "new.yaml", DistillConfig).structures == ["builtin:silicon"]
    refused = run("init", "new.yaml", code=2, cwd=tmp_path).stderr
    assert "new.yaml exists already" in refused
    assert "--overwrite" in refused
    run("init", "new.yaml", "--train", "--overwrite", cwd=tmp_path)
    assert load_config(tmp_path / "new.yaml", TrainConfig) == TrainConfig()
    run("schema", "-o", "s.json", cwd=tmp_path)
    assert json.loads((tmp_path / "s.json").read_text()) == json_schema(DistillConfig)
    assert json.loads(run("schema", "--train", cwd=tmp_path).stdout) == json_schema(TrainConfig)
