"""Every setting of the pipeline, as frozen dataclasses, and one strict loader.

A YAML file mirrors :class:`DistillConfig`. A key that no dataclass knows is an error that names
the nearest valid key: a silently ignored ``cuttof`` would cost a day of training.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from mlff_distiller.errors import InputError
from mlff_distiller.files import atomic_write_text

ConfigT = TypeVar("ConfigT")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_seed(seed: int, key: str) -> None:
    _require(0 <= seed < 2**32, f"a seed must be 0..{2**32 - 1}, got {seed}; set {key} or --seed")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    names = ", ".join(map(repr, choices))
    _require(value in choices, f"{key} must be one of {names}, got {value!r}; set model.{key}")


CUTOFF_FUNCTIONS = ("polynomial", "cosine", "mollifier", "switch")


@dataclass(frozen=True)
class ModelConfig:
    """The PaiNN student (Schütt, Unke, Gastegger 2021, arXiv:2102.03150)."""

    hidden_dim: int = 128
    """Channels F of scalar and vector features; a multiple of 8."""
    num_interactions: int = 3
    """Message + update blocks."""
    num_rbf: int = 20
    """Radial basis functions."""
    cutoff: float = 5.0
    """Å. Neighbours at this distance and beyond do not exist."""
    rbf: str = "gaussian"
    """``gaussian``, ``bessel`` or ``chebyshev``."""
    rbf_trainable: bool = False
    """Train the radial functions too (not those of ``chebyshev``, which have no parameters)."""
    rbf_per_interaction: bool = False
    """Each interaction has radial functions of its own."""
    cutoff_function: str = "polynomial"
    """``polynomial``, ``cosine`` (the paper's; its second derivative jumps at the cutoff),
    ``mollifier`` or ``switch``."""
    cutoff_exponent: int = 6
    """p of the polynomial."""
    cutoff_onset: float | None = None
    """Å. Where the switch begins to fall."""
    norm: str = "smooth"
    """Norm of the vector features: ``smooth``, or ``paper``, whose second derivative is wrong at
    symmetric sites: for imported weights and to repeat published results."""
    norm_scale: float = 1.0
    """s of the smooth norm ``sqrt(|v|^2 + s^2) - s``."""
    norm_epsilon: float = 1e-8
    """Of the paper's norm ``sqrt(|v|^2 + epsilon)``."""
    readout_dim: int | None = None
    """Width of the last hidden layer; half of hidden_dim when left out."""
    max_z: int = 118
    """Largest atomic number that may be asked for."""
    zbl: bool = False
    """Add Ziegler-Biersack-Littmark repulsion; training then learns the difference to it."""
    zbl_switched: bool = True
    """The repulsion falls smoothly to zero; imported ones may be cut off with a jump."""

    @property
    def norm_numbers(self) -> tuple[float, float]:
        """What is added under the root of the norm, and what is subtracted from the root."""
        if self.norm == "paper":
            return self.norm_epsilon, 0.0
        return self.norm_scale**2, self.norm_scale

    @property
    def caveat(self) -> str:
        """What a user should know about the smoothness of the energy; empty if there is nothing.

        The same words as ``ModelFile::caveat`` of the engines.
        """
        clauses = []
        if self.norm_numbers[0] < 1e-4:
            clauses.append(
                "norm of the PaiNN paper, not smooth: force constants, phonons and elastic "
                "constants of symmetric crystals are wrong"
            )
        if self.zbl and not self.zbl_switched:
            clauses.append("repulsion cut off with a step in the energy")
        return "; ".join(clauses)

    def __post_init__(self) -> None:
        _require(
            self.hidden_dim > 0 and self.hidden_dim % 8 == 0,
            f"hidden_dim must be a positive multiple of 8, got {self.hidden_dim}; "
            "set model.hidden_dim to 64, 128 or 256",
        )
        _require(
            self.num_interactions >= 1,
            f"num_interactions must be >= 1, got {self.num_interactions}; "
            "set model.num_interactions",
        )
        _require(self.num_rbf >= 2, f"num_rbf must be >= 2, got {self.num_rbf}; set model.num_rbf")
        _require(self.cutoff > 0, f"cutoff must be > 0 Å, got {self.cutoff}; set model.cutoff")
        _require_choice("rbf", self.rbf, ("gaussian", "bessel", "chebyshev"))
        _require_choice("norm", self.norm, ("smooth", "paper"))
        _require_choice("cutoff_function", self.cutoff_function, CUTOFF_FUNCTIONS)
        _require(
            3 <= self.cutoff_exponent <= 64,  # below 3 the second derivative jumps at the cutoff
            f"cutoff_exponent must be 3..64, got {self.cutoff_exponent}; set model.cutoff_exponent",
        )
        _require(
            self.cutoff_function != "switch"
            or (self.cutoff_onset is not None and 0 <= self.cutoff_onset < self.cutoff),
            f"a switch needs an onset of 0..{self.cutoff} Å (the cutoff), got "
            f"{self.cutoff_onset}; set model.cutoff_onset",
        )
        for name in ("norm_scale", "norm_epsilon"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be > 0, got {value}; set model.{name}")
        _require(
            self.readout_dim is None or 1 <= self.readout_dim <= 8192,
            f"readout_dim must be 1..8192, got {self.readout_dim}; set model.readout_dim",
        )
        _require(1 <= self.max_z <= 118, f"max_z must be 1..118, got {self.max_z}; set model.max_z")


@dataclass(frozen=True)
class TeacherConfig:
    """Who labels the structures."""

    name: str = "sevennet-0"
    """A registry name (``mlff-distiller info --teachers``) or ``module:Class(kwargs)``."""
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the teacher."""
    batch_size: int = 8
    """Structures labelled between two writes to disk."""


@dataclass(frozen=True)
class SamplingConfig:
    """How structures are made from the ones that are given."""

    num_rattle: int = 100
    """Rattled (and, when periodic, strained) copies in total."""
    rattle_stdev: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.10, 0.15])
    """Å; copies take these standard deviations in turn."""
    max_strain: float = 0.04
    """Largest component of the random symmetric strain of periodic copies."""
    num_md: int = 100
    """Frames taken from molecular dynamics in total."""
    md_temperatures: list[float] = field(default_factory=lambda: [300.0, 600.0, 1200.0])
    """K; one trajectory each."""
    md_timestep: float = 1.0
    """fs."""
    md_interval: int = 10
    """Steps between two frames."""
    md_warmup: int = 50
    """Steps thrown away at the start."""
    min_distance: float = 0.6
    """Frames with a pair closer than this fraction of the sum of covalent radii are rejected."""
    max_force: float = 30.0
    """eV/Å; labelled frames with a larger force are rejected."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.num_rattle >= 0 and self.num_md >= 0,
            f"num_rattle and num_md must be >= 0, got {self.num_rattle} and {self.num_md}; "
            "set sampling.num_rattle, sampling.num_md",
        )
        _require(
            self.md_timestep > 0,
            f"md_timestep must be > 0 fs, got {self.md_timestep}; set sampling.md_timestep",
        )
        _require(
            self.md_interval >= 1,
            f"md_interval must be >= 1, got {self.md_interval}; set sampling.md_interval",
        )
        _require(
            0 < self.max_force < math.inf,
            f"max_force must be finite and > 0 eV/Å, got {self.max_force}; set sampling.max_force",
        )
        _require_seed(self.seed, "sampling.seed")


@dataclass(frozen=True)
class DataConfig:
    """Where labelled data lies and how it is split."""

    path: str | None = None
    """HDF5 file; ``distill`` makes it, ``train --data`` sets it."""
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        _require(
            0 <= self.valid_fraction < 1
            and 0 <= self.test_fraction < 1
            and self.valid_fraction + self.test_fraction < 1,
            "valid_fraction and test_fraction must be >= 0 and sum to less than 1, got "
            f"{self.valid_fraction} and {self.test_fraction}; set data.valid_fraction, "
            "data.test_fraction",
        )
        _require_seed(self.split_seed, "data.split_seed")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of the student."""

    batch_size: int = 8
    max_epochs: int = 500
    max_minutes: float | None = None
    """Stop after this wall-clock time; the schedule is fitted to it."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    schedule: str = "cosine"
    """``cosine`` (to ``final_lr_fraction``) or ``plateau``."""
    final_lr_fraction: float = 0.01
    plateau_patience: int = 20
    plateau_factor: float = 0.5
    energy_weight: float = 10.0
    """Weight of the squared error of the energy per atom, in eV/atom."""
    force_weight: float = 10.0
    """Weight of the squared error of a force component, in eV/Å."""
    stress_weight: float = 1000.0
    """Weight of the squared error of a stress component, in eV/Å^3; 0 where labels have none."""
    ema_decay: float = 0.995
    """Decay of the exponential moving average that is validated and exported; 0 turns it off."""
    gradient_clip: float = 10.0
    """Largest norm of the gradient; 0 turns it off."""
    early_stop_patience: int = 100
    """Epochs without a better validation loss."""
    reference_energies: str = "least-squares"
    """``least-squares`` over the training labels, or ``none``."""
    precision: str = "float32"
    """``float32`` or ``float64``."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    devices: int = 1
    threads: int = 2
    tensorboard: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.batch_size >= 1,
            f"batch_size must be >= 1, got {self.batch_size}; set training.batch_size",
        )
        _require(
            self.max_epochs >= 1,
            f"max_epochs must be >= 1, got {self.max_epochs}; set training.max_epochs",
        )
        _require(
            self.max_minutes is None or self.max_minutes > 0,
            f"max_minutes must be > 0, got {self.max_minutes}; set training.max_minutes",
        )
        _require(
            0 < self.learning_rate < math.inf,
            f"learning_rate must be finite and > 0, got {self.learning_rate}; set training.learning_rate",
        )
        _require(
            self.schedule in ("cosine", "plateau"),
            f"schedule must be 'cosine' or 'plateau', got {self.schedule!r}; set training.schedule",
        )
        _require(
            0 <= self.ema_decay < 1,
            f"ema_decay must be in [0, 1), got {self.ema_decay}; set training.ema_decay",
        )
        _require(
            self.precision in ("float32", "float64"),
            f"precision must be 'float32' or 'float64', got {self.precision!r}; "
            "set training.precision",
        )
        _require(
            self.reference_energies in ("least-squares", "none"),
            "reference_energies must be 'least-squares' or 'none', got "
            f"{self.reference_energies!r}; set training.reference_energies",
        )
        weights = [self.energy_weight, self.force_weight, self.stress_weight]
        _require(
            all(0 <= w < math.inf for w in weights) and any(weights),
            "energy_weight, force_weight and stress_weight must be finite, >= 0 and not all 0, got "
            f"{weights}; set training.force_weight",
        )
        for name, least in (
            ("weight_decay", 0),
            ("warmup_steps", 0),
            ("gradient_clip", 0),
            ("plateau_patience", 0),
            ("early_stop_patience", 1),
        ):
            value = getattr(self, name)
            _require(
                least <= value < math.inf,
                f"{name} must be finite and >= {least}, got {value}; set training.{name}",
            )
        for name in ("final_lr_fraction", "plateau_factor"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be 0..1, got {value}; set training.{name}")
        _require(  # absurd numbers crash OpenMP
            1 <= self.threads <= 1024,
            f"threads must be 1..1024, got {self.threads}; set training.threads",
        )
        _require_seed(self.seed, "training.seed")


@dataclass(frozen=True)
class EnginesConfig:
    """What is run with the exported student at the end of ``distill``."""

    lammps: bool = True
    openmm: bool = True
    ase: bool = True
    temperature: float = 300.0
    """K."""
    timestep: float = 1.0
    """fs."""
    nve_steps: int = 2000
    npt_steps: int = 1000
    """Periodic systems only."""
    threads: int = 1
    """Of every engine and of the teacher that they are timed against."""

    def __post_init__(self) -> None:  # else found only after hours of training
        _require(
            0 < self.timestep <= 20,
            f"timestep must be > 0 and at most 20 fs, got {self.timestep}; set engines.timestep",
        )
        _require(
            0 <= self.temperature < math.inf,
            f"temperature must be >= 0 K and finite, got {self.temperature}; set "
            "engines.temperature",
        )
        _require(
            1 <= self.threads <= 1024,
            f"threads must be 1..1024, got {self.threads}; set engines.threads",
        )


@dataclass(frozen=True)
class DistillConfig:
    """The whole run: structures -> labels -> student -> engines -> report."""

    structures: str
    """File with the starting structure(s), or ``builtin:NAME`` (silicon, aspirin, ...)."""
    output: str = "runs/distill"
    """Directory for everything that the run writes."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    engines: EnginesConfig = field(default_factory=EnginesConfig)


@dataclass(frozen=True)
class TrainConfig:
    """What ``mlff-distiller train`` reads: the same sections without sampling and teacher."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


#: Ready-made networks: `--preset`.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"hidden_dim": 64, "num_interactions": 2},
    "base": {},
    "large": {"hidden_dim": 256, "num_interactions": 3},
}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a config dataclass, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], mapping: Mapping[str, Any], where: str = "") -> ConfigT:
    """Build the dataclass ``cls`` from a mapping.

    Args:
        cls: a config dataclass.
        mapping: key -> value; nested mappings become nested dataclasses.
        where: dotted path of the mapping, for messages.

    Raises:
        InputError: unknown key (with the nearest valid one), missing key, value of a wrong type.
    """
    name = where or "the configuration"
    if not isinstance(mapping, Mapping):
        raise InputError(f"{name} must be a mapping of keys, got {mapping!r}; indent its keys")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise InputError(_unknown_key(str(key), list(fields), where))
        path = f"{where}.{key}" if where else str(key)
        values[key] = _convert(hints[key], value, path)
    for key, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise InputError(f"{name} lacks the key {key!r}; add it")
    return cls(**values)


def load_config(path: str | Path, cls: type[ConfigT]) -> ConfigT:
    """Read a YAML file into the dataclass ``cls``; see :func:`from_dict` for the errors."""
    return from_dict(cls, load_yaml(path))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping. Raises InputError otherwise."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    try:
        mapping = yaml.safe_load(text)
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
    """Write a config dataclass as YAML that :func:`load_config` reads back."""
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
        return _convert(next(m for m in members if m is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value if value is not None else {}, path)  # type: ignore[arg-type]
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{path} must be a list, got {value!r}; write it as [a, b]")
        (member,) = typing.get_args(hint)
        return [_convert(member, v, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{path} must be a mapping, got {value!r}; write it as {{key: value}}")
        return dict(value)
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint is float:
        if is_number:
            return float(value)
        try:  # YAML 1.1 reads 1e-3 as a string
            return float(value) if isinstance(value, str) else _wrong(hint, value, path)
        except ValueError:
            _wrong(hint, value, path)
    if hint is str and isinstance(value, str):
        return value
    return _wrong(hint, value, path)


def _wrong(hint: Any, value: Any, path: str) -> typing.NoReturn:
    kind = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    raise InputError(f"{path} must be {kind.get(hint, hint)}, got {value!r}; correct it")
