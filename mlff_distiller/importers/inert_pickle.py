"""Reading the files of ``torch.save`` without running anything that they ask for.

A saved ``nn.Module`` is a zip with a pickle. Loading a pickle the usual way imports classes and
calls whatever it names, so a file from elsewhere can run any code, and it needs the package that
wrote it. Here every class becomes an :class:`InertObject` that only remembers its name and state,
and a *call* is refused unless it is on a short list that builds tensors and plain containers.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlff_distiller.errors import InputError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

#: Calls that a file may ask for by their own name but that stay without effect: the arguments are
#: kept for whoever looks at the object.
_RECORDED_CALLS = {
    ("torch", "device"),
    ("torch", "Size"),
    ("functools", "partial"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("pathlib", "PosixPath"),
    ("graph_pes.utils.nn", "_rebuild_per_element_parameter"),
}


class _InertType(type):
    """Classes of inert objects: pickle may create instances, nobody may call them."""

    type_name: str
    callable_by_file: bool

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.callable_by_file:
            raise InputError(
                f"the file asks to call {cls.type_name} while it is read; that was refused and "
                "nothing was run: use a file from a source you trust, or save its state_dict()"
            )
        return cls.__new__(cls, *args)  # type: ignore[arg-type]


class InertObject(metaclass=_InertType):
    """Stand-in for an object of a class that is never imported.

    Attributes:
        type_name: ``module.Class`` as written in the file.
        args: what the class would have been created with.
        state: what would have become the object's attributes; empty when it had none.
    """

    type_name = ""
    callable_by_file = False
    args: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *args: Any, **_: Any) -> InertObject:
        """Remember the arguments."""
        instance = object.__new__(cls)
        instance.args = args
        instance.state = {}
        return instance

    def __setstate__(self, state: Any) -> None:
        """Keep what pickle would have set."""
        self.state = state if isinstance(state, dict) else {"state": state}

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, submodule, parameter or buffer by the name it had."""
        if name in self.state:
            return self.state[name]
        for group in ("_modules", "_parameters", "_buffers"):
            members = self.state.get(group)
            if isinstance(members, dict) and name in members:
                return members[name]
        return default

    @property
    def modules(self) -> dict[str, InertObject]:
        """Submodules by name, in the order of the file."""
        members = self.state.get("_modules") or {}
        return {k: v for k, v in members.items() if isinstance(v, InertObject)}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of this module and those below it, named as in state_dict()."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in (self.state.get(group) or {}).items():
                if isinstance(value, InertObject) and value.args:
                    value = value.args[0]  # a parameter of a class of its own: its numbers
                if isinstance(value, Tensor):
                    found[prefix + name] = value
        for name, module in self.modules.items():
            found.update(module.tensors(f"{prefix}{name}."))
        return found


def type_name(value: Any) -> str:
    """``module.Class`` of an inert object or class, for messages and comparisons."""
    if isinstance(value, (InertObject, _InertType)):
        return value.type_name
    return f"{type(value).__module__}.{type(value).__name__}"


def read_torch_file(path: str | Path) -> Any:
    """Content of a file written by ``torch.save``, with inert objects in place of classes.

    Args:
        path: file in torch's zip format (every version since 1.6).

    Returns:
        What was saved: containers, numbers, text, CPU tensors and :class:`InertObject`.

    Raises:
        InputError: missing, damaged or foreign file, or one that asks to call something.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}; check the path") from None
    except zipfile.BadZipFile:
        raise InputError(
            f"{path} is no file of torch.save in zip format, or is damaged; save it again with "
            "torch 1.6 or newer"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _read_archive(archive: zipfile.ZipFile, path: str | Path) -> Any:
    names = set(archive.namelist())
    record = next((n for n in sorted(names) if n.count("/") == 1 and n.endswith("/data.pkl")), None)
    if record is None:
        raise InputError(f"{path} is a zip file but not one of torch.save; give the trained model")
    prefix = record.removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names:
        raise InputError(
            f"{path} is a TorchScript file, expected a model of torch.save; give the one that the "
            "training program wrote (graph-pes: model.pt, not lammps_model.pt)"
        )
    if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
        raise InputError(f"{path} is compressed, torch.save never does that; save it again")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise InputError(f"{path} was saved on a big-endian machine; save it on a common one")
    unpickler = _Unpickler(archive, prefix, archive.read(record))
    try:
        return unpickler.load()
    except (InputError, OSError, zipfile.BadZipFile, MemoryError):
        raise
    except Exception as error:  # a hostile or cut pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); save the model again") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._prefix = prefix
        self._builders = _builders()
        self._types: dict[tuple[str, str], Any] = {}
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._builders:
            return self._builders[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        key = (module, name)
        if key not in self._types:
            namespace = {
                "type_name": f"{module}.{name}",
                "callable_by_file": key in _RECORDED_CALLS,
            }
            self._types[key] = _InertType("InertObject", (InertObject,), namespace)
        return self._types[key]

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise InputError(f"unknown persistent record {pid!r}; save the model again")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"numbers of type {type_name(dtype)} cannot be read; save as float32")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._prefix}data/{key}"))
            if len(data) != int(count) * dtype.itemsize:
                raise InputError(
                    f"storage {key}: expected {int(count) * dtype.itemsize} bytes, got "
                    f"{len(data)}; the file is damaged, copy it again"
                )
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self._storages[key]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """View of a storage; refuses one that would reach outside."""
    if not isinstance(storage, Tensor) or len(size) != len(stride):
        raise InputError("a tensor record is malformed; save the model again")
    if any(int(n) < 0 for n in (*size, *stride, offset)):
        raise InputError("a tensor record has a negative size; the file is damaged")
    if 0 not in size:
        last = int(offset) + sum((int(n) - 1) * int(s) for n, s in zip(size, stride, strict=True))
        if last >= storage.numel():
            raise InputError("a tensor reaches outside its storage; the file is damaged")
    return torch.as_strided(storage, tuple(size), tuple(stride), int(offset)).clone()


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Builder:
    """A function that pickle may call; made anew for each file, so that no file can alter it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _builders() -> dict[tuple[str, str], Any]:
    """Everything that a file may call for its effect."""
    return {
        ("torch._utils", "_rebuild_tensor"): _Builder(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Builder(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Builder(_parameter),
        ("collections", "OrderedDict"): collections.OrderedDict,
        **{
            (module, kind.__name__): kind
            for module in ("builtins", "__builtin__")
            for kind in (set, frozenset, list, dict, tuple)
        },
    }
