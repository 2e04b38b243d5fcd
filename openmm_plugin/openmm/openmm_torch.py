"""openmm-torch: does it fit this torch and this OpenMM, and are its kernels there?

A plugin that was compiled for another torch loads, and crashes in the first step. So versions are
read from the installed packages before anything of it is imported.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import torch

import openmm
from mlff_distiller.errors import InputError

MODULE = "openmmtorch"
#: Wheels of the package index that name no versions: what they were compiled for, by trying.
#: (openmmtorch 1.5 crashes with torch 2.8 and 2.10.)
_COMPILED_FOR = {("openmmtorch", "1.5"): {"torch": "2.9"}}
_LIBRARY = "libOpenMMTorch"
_OTHERWISE = "or use backend='native' or 'python'"


@functools.cache
def load_openmm_torch() -> ModuleType:
    """The module ``openmmtorch``, with kernels for every platform that can have them.

    Raises:
        InputError: it is not installed, was made for other versions, or does not load.
    """
    check_versions()
    try:
        with _without_warning():
            module = import_module(MODULE)
    except (ImportError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"backend='torch' needs an openmm-torch that fits torch {torch.__version__} "
            f"({reason}); install one, {_OTHERWISE}"
        ) from None
    _load_kernels()
    return module


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """openmm-torch imports simtk.openmm, which logs that nobody should."""

    def is_news(record: logging.LogRecord) -> bool:
        return "simtk.openmm" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def check_versions() -> None:
    """Raise InputError if the packages say that they do not fit each other."""
    for name in metadata.packages_distributions().get(MODULE, ()):
        package = metadata.distribution(name)
        wanted = {**_pinned(package.requires or ()), **_known(package)}
        for other, running in (
            ("torch", torch.__version__),
            ("openmm", openmm.Platform.getOpenMMVersion()),
        ):
            release = wanted.get(other)
            if release and not f"{_release(running)}.".startswith(f"{release}."):
                raise InputError(
                    f"backend='torch': {name} {package.version} was made for {other} {release}, "
                    f"got {other} {running}, with which it would crash; "
                    f"run `pip install '{other}=={release}.*'`, {_OTHERWISE}"
                )


def _pinned(requirements: Sequence[str]) -> dict[str, str]:
    """Package -> release, of the requirements that leave one choice: ``torch==2.9.1``."""
    always = (r.partition(";")[0].strip() for r in requirements if "extra" not in r)
    found = (re.fullmatch(r"([\w.-]+)\s*\(?\s*==\s*([\d.]+?)(\.\*)?\s*\)?", r) for r in always)
    return {match[1].lower(): match[2] for match in found if match}


def _known(package: metadata.Distribution) -> dict[str, str]:
    # Compiled here (pip notes where from) or by conda, it fits the torch that was there.
    installer = (package.read_text("INSTALLER") or "").strip()
    if installer == "conda" or package.read_text("direct_url.json") is not None:
        return {}
    return _COMPILED_FOR.get((package.metadata["Name"], package.version), {})


def _release(version: str) -> str:
    """``2.9.1`` of ``2.9.1+cu128``."""
    return re.match(r"[\d.]*", version)[0].rstrip(".")  # type: ignore[index]


def _load_kernels() -> None:
    """Load the libraries with the kernels, which need torch in memory.

    OpenMM tries them when it is imported, in vain if torch came later.
    """
    failures = []
    for library in _kernel_libraries():
        try:
            openmm.Platform.loadPluginLibrary(str(library))
        except openmm.OpenMMException as error:
            failures.append(" ".join(str(error).split()))
    # Those for a GPU may fail where there is none; the Reference and CPU platforms share one.
    needed = [failure for failure in failures if f"{_LIBRARY}Reference" in failure]
    if needed:
        raise InputError(
            f"OpenMM cannot load the kernels of openmm-torch ({needed[0]}); "
            f"install an openmm-torch for torch {torch.__version__}, {_OTHERWISE}"
        )


def _kernel_libraries() -> list[Path]:
    """``libOpenMMTorchReference.so`` and its like that OpenMM has not loaded yet."""
    loaded = {Path(name).name for name in getattr(openmm, "pluginLoadedLibNames", ())}
    folders = [
        Path(openmm.Platform.getDefaultPluginsDirectory()),
        Path(openmm.version.openmm_library_path) / "plugins",
    ]
    found = {
        path.name: path
        for folder in folders
        for path in sorted(folder.glob(f"{_LIBRARY}*"))
        if path.name not in loaded
    }
    return list(found.values())
