"""Teachers by name. None of their packages is a dependency; a missing one names its install line."""

from __future__ import annotations

import ast
import difflib
import fnmatch
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers

from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.errors import InputError
from mlff_distiller.teachers.base import CalculatorTeacher, Teacher, quiet


def _numbers(symbols: str) -> frozenset[int]:
    return frozenset(atomic_numbers[s] for s in symbols.split())


@dataclass(frozen=True)
class Entry:
    """One line of the registry."""

    pattern: str
    """Name, or a pattern such as ``mace-*``."""
    module: str
    """Top-level module that must be importable."""
    package: str
    """Distribution, for versions."""
    install: str
    """Arguments of ``pip install``."""
    build: Callable[[str, str, dict[str, Any]], Calculator]
    """(name, device, options) -> calculator."""
    about: str
    elements: frozenset[int] | None = None
    periodic_only: bool = False


def _sevennet(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(name.replace("sevennet-", "7net-", 1), device=device, **options)


def _chgnet(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device=device, on_isolated_atoms="ignore", **options)


def _tblite(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from tblite.ase import TBLite

    method = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}[name]
    # Without the cache each label starts from the same guess, whatever came before.
    return TBLite(**{"method": method, "verbosity": 0, "cache_api": False, **options})


def _ani(name: str, device: str, options: dict[str, Any]) -> Calculator:
    import torchani

    return torchani.models.ANI2x(periodic_table_index=True, **options).to(device).ase()


def _mace(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from mace import calculators

    family, _, model = name.removeprefix("mace-").partition("-")
    if not hasattr(calculators, f"mace_{family}"):
        raise InputError(
            f"mace-{family} is not a family of MACE models; use mace-mp[-MODEL] or "
            "mace-off[-MODEL], e.g. mace-mp-small"
        )
    keywords = {"device": device, "default_dtype": "float64", **options}
    if model:
        keywords["model"] = model
    return getattr(calculators, f"mace_{family}")(**keywords)


def _mattersim(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from mattersim.forcefield import MatterSimCalculator

    size = name.removeprefix("mattersim-").removeprefix("v1-").upper()
    path = f"MatterSim-v1.0.0-{size}.pth"
    return MatterSimCalculator(**{"load_path": path, "device": device, **options})


def _orb(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from mlff_distiller.teachers.orb import orb_calculator

    return orb_calculator(name, device, **options)


def _emt(name: str, device: str, options: dict[str, Any]) -> Calculator:
    from ase.calculators.emt import EMT

    return EMT(**options)


REGISTRY: tuple[Entry, ...] = (
    Entry("sevennet-0", "sevenn", "sevenn", "sevenn==0.13.0", _sevennet,
          "SevenNet-0, Materials Project; weights in the wheel"),
    Entry("sevennet-l3i5", "sevenn", "sevenn", "sevenn==0.13.0", _sevennet,
          "SevenNet l3i5, more accurate; weights in the wheel"),
    Entry("sevennet-*", "sevenn", "sevenn", "sevenn==0.13.0", _sevennet,
          "other SevenNet models (omni, mf-ompa, omat): downloads weights"),
    Entry("chgnet", "chgnet", "chgnet", "chgnet==0.4.2", _chgnet,
          "CHGNet, Materials Project; weights in the wheel", frozenset(range(1, 95)), True),
    Entry("gfn2-xtb", "tblite", "tblite", "tblite==0.8.0", _tblite,
          "GFN2-xTB, semi-empirical", frozenset(range(1, 87))),
    Entry("gfn1-xtb", "tblite", "tblite", "tblite==0.8.0", _tblite,
          "GFN1-xTB, semi-empirical", frozenset(range(1, 87))),
    Entry("ani2x", "torchani", "torchani", "torchani", _ani,
          "ANI-2x, organic molecules", _numbers("H C N O F S Cl")),
    Entry("mace-*", "mace", "mace-torch", "mace-torch", _mace,
          "mace-mp[-small|-medium|...], mace-off[-small|...]: downloads weights"),
    Entry("mattersim-*", "mattersim", "mattersim", "mattersim", _mattersim,
          "mattersim-1m, mattersim-5m; weights in the wheel or downloaded"),
    Entry("orb-v2", "orb_models", "orb-models", "orb-models", _orb,
          "Orb-v2, direct forces: downloads weights"),
    Entry("orb-*", "orb_models", "orb-models", "orb-models", _orb,
          "orb-v3-conservative-20-omat ... every model of orb-models: downloads weights"),
    Entry("emt", "ase", "ase", "ase", _emt,
          "effective medium theory of ASE: fast, for trying things out",
          _numbers("Al Cu Ag Au Ni Pd Pt H C N O")),
)  # fmt: skip


def get_teacher(name: str, device: str = "cpu", **options: Any) -> Teacher:
    """Make a teacher.

    Args:
        name: of the registry (:data:`REGISTRY`), or ``module:Class(keyword=value, ...)`` for any
            ASE calculator (or function that returns one); values are Python literals.
        device: ``cpu`` or ``cuda``.
        options: keyword arguments of the calculator. The Orb models take ``weights="random"``
            (the architecture untrained, for tests) or ``weights="file.ckpt"``.

    Raises:
        InputError: unknown name (with the nearest), package not installed (with its install
            line), weights that cannot be had, or arguments that the calculator refuses.
    """
    if ":" in name:
        return _custom(name, options)
    entry = _find(name)
    _require(entry, name)
    with quiet():
        calculator = _build(lambda: entry.build(name, device, dict(options)), name)
    elements = entry.elements
    if elements is None and hasattr(calculator, "type_map"):  # SevenNet
        elements = frozenset(int(z) for z in calculator.type_map)
    return CalculatorTeacher(
        _full_name(name, options),
        calculator,
        packages=[entry.package],
        elements=elements,
        periodic_only=entry.periodic_only,
        # Orb's first models, and those that say so, predict forces without an energy's gradient.
        conservative=entry.module != "orb_models" or "conservative" in name,
    )


def as_teacher(teacher: str | EnergyModel | Calculator, device: str = "cpu") -> EnergyModel:
    """A teacher from its name, an ASE calculator, or one that is there.

    Args:
        teacher: see :func:`get_teacher`; calculators are named after their class.
        device: of a teacher given by name.

    Raises:
        InputError: none of these, or see :func:`get_teacher`.
    """
    if isinstance(teacher, str):
        return get_teacher(teacher, device=device)
    if isinstance(teacher, EnergyModel):
        return teacher
    if not isinstance(teacher, Calculator):
        raise InputError(
            "teacher must be a name such as 'sevennet-0' or an ASE calculator, got "
            f"{type(teacher).__name__}; see `mlff-distiller info --teachers`"
        )
    return CalculatorTeacher(type(teacher).__name__, teacher)


def package_of(name: str) -> str:
    """The distribution behind a teacher's name, without loading it. Raises InputError."""
    if ":" in name:
        return name.partition(":")[0].partition(".")[0]
    return _find(name).package


def teacher_calculator(name: str, device: str = "cpu", **options: Any) -> Calculator:
    """A teacher as an ASE calculator: to relax with, to look at, to compare a student with.

        atoms.calc = teacher_calculator("sevennet-0")

    Args, Raises: see :func:`get_teacher`.
    """
    return get_teacher(name, device=device, **options).calculator


def list_teachers() -> list[tuple[str, str, bool, str]]:
    """(name or pattern, description, installed, pip line) of every entry."""
    return [
        (e.pattern, e.about, _installed(e.module), f"pip install {e.install}") for e in REGISTRY
    ]


def _find(name: str) -> Entry:
    for entry in REGISTRY:
        if fnmatch.fnmatchcase(name, entry.pattern):
            return entry
    names = [e.pattern for e in REGISTRY]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"unknown teacher {name!r}; {hint}known: {', '.join(names)}, or module:Class(kwargs)"
    )


def _require(entry: Entry, name: str) -> None:
    try:
        with quiet():
            importlib.import_module(entry.module)
    except ImportError as error:
        missing = getattr(error, "name", None) or entry.module
        detail = "" if missing.split(".")[0] == entry.module else f" (it lacks {missing})"
        raise InputError(
            f"the teacher {name!r} needs the package {entry.package}, which is not installed"
            f"{detail}; run: pip install {entry.install}"
        ) from None


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _build(make: Callable[[], Any], name: str) -> Calculator:
    try:
        calculator = make()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # packages do whatever they like: no network ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the teacher {name!r} could not be loaded: {lines[0][:200]}; check its name, its "
            "options and, for weights that are downloaded, the network"
        ) from error
    if not callable(getattr(calculator, "get_property", None)):
        raise InputError(
            f"{name} must be an ASE calculator, got {type(calculator).__name__}; name a class "
            "derived from ase.calculators.calculator.Calculator"
        )
    return calculator


def _custom(text: str, options: dict[str, Any]) -> Teacher:
    module_name, _, call = text.partition(":")
    attribute, positional, keywords = parse_call(call)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name!r} for the teacher {text!r} ({error}); install it or "
            "put its folder on PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # its own mistakes
        raise InputError(
            f"importing {module_name!r} for the teacher {text!r} failed: {type(error).__name__}: "
            f"{error}; mend the module"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if inspect.isclass(v)]
        close = difflib.get_close_matches(attribute, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; check its spelling"
        raise InputError(f"{module_name} has no class {attribute!r}{hint}")
    with quiet():
        calculator = _build(lambda: factory(*positional, **{**keywords, **options}), text)
    package = module_name.split(".")[0]
    return CalculatorTeacher(_full_name(text, options), calculator, packages=[package])


def parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Parse ``Class`` or ``Class(1, key='value')``; arguments are literals, nothing is run.

    Returns:
        name, positional arguments, keyword arguments.

    Raises:
        InputError: anything else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        positional = [ast.literal_eval(a) for a in node.args]
        keywords = {_key(k): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InputError(
            f"a teacher must look like module:Class(key=value, ...) with literal values, got "
            f"{text!r}; quote texts and write numbers out"
        ) from None
    return node.func.id, positional, keywords


def _key(keyword: ast.keyword) -> str:
    if keyword.arg is None:  # **mapping
        raise ValueError
    return keyword.arg


def _full_name(name: str, options: dict[str, Any]) -> str:
    if not options:
        return name
    return f"{name}({', '.join(_items(options))})"


def _items(options: dict[str, Any]) -> Iterable[str]:
    return (f"{key}={value!r}" for key, value in sorted(options.items()))
