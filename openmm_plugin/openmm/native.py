"""The native backend: loading the C++ plugin and making a ``PainnForce`` without SWIG.

OpenMM's serializer makes any force whose proxy a plugin has registered, and hands it to Python as
an ordinary ``openmm.Force``. So a ``PainnForce`` starts its life as a piece of XML.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import openmm
from mlff_distiller.errors import InputError
from mlff_distiller.files import native_file, sha256

_LIBRARY = "lib/openmm/libPainnOpenMM.so"
_CUDA_LIBRARY = "lib/openmm/libPainnOpenMMCUDA.so"
_CUDA_KERNEL = "CalcPainnForce"
_STAMP = re.compile(rb"MLFF_OPENMM_BUILD=([^;\0]+);")
_REINSTALL = "run `pip install --no-build-isolation .` in mlff_distiller, with openmm installed"


def find_plugin() -> Path | None:
    """The plugin of this installation, or else the one that OpenMM has found among its own."""
    packaged = native_file(_LIBRARY)
    if packaged is not None:
        return packaged
    loaded = (Path(name) for name in getattr(openmm, "pluginLoadedLibNames", ()))
    return next((path for path in loaded if path.name == Path(_LIBRARY).name), None)


def plugin_is_built() -> bool:
    """True if the plugin exists and was built for the running OpenMM."""
    path = find_plugin()
    return path is not None and built_for(path) == openmm.Platform.getOpenMMVersion()


def built_for(library: Path) -> str:
    """OpenMM version that a plugin was built for, read from the file without loading it."""
    match = _STAMP.search(library.read_bytes())
    return match.group(1).decode() if match else "unknown"


@functools.cache
def load_plugin() -> Path:
    """Load the plugin once in this process.

    Raises:
        InputError: it was not built, or for another OpenMM: that would load, and crash later.
    """
    library = find_plugin()
    if library is None:
        raise InputError(
            f"backend='native' needs {_LIBRARY}, which was not built in this installation; "
            f"use backend='python', or {_REINSTALL}"
        )
    expected, running = built_for(library), openmm.Platform.getOpenMMVersion()
    if expected != running:
        raise InputError(
            f"{library} was built for OpenMM {expected}, this is OpenMM {running}; {_REINSTALL}"
        )
    try:
        openmm.Platform.loadPluginLibrary(str(library))
    except openmm.OpenMMException as error:
        raise InputError(f"OpenMM cannot load {library} ({error}); {_REINSTALL}") from None
    _load_cuda_kernel()
    return library


def _load_cuda_kernel() -> None:
    """Load the kernel for OpenMM's CUDA platform where this OpenMM and this installation have them.

    Without it the network runs on the CPU, also for that platform; a warning says so where the
    kernel is there and cannot be used.
    """
    library = native_file(_CUDA_LIBRARY)
    if library is None or _cuda_platform() is None or cuda_kernel_is_there():
        return
    try:
        openmm.Platform.loadPluginLibrary(str(library))
    except openmm.OpenMMException as error:
        warnings.warn(
            f"OpenMM cannot load {library} ({error}): PainnForce runs on the CPU on its CUDA "
            f"platform, too; {_REINSTALL}",
            stacklevel=2,
        )


def _cuda_platform() -> openmm.Platform | None:
    platforms = map(openmm.Platform.getPlatform, range(openmm.Platform.getNumPlatforms()))
    return next((platform for platform in platforms if platform.getName() == "CUDA"), None)


def cuda_kernel_is_there() -> bool:
    """True if OpenMM's CUDA platform computes a ``PainnForce`` itself, after :func:`load_plugin`."""
    platform = _cuda_platform()
    return platform is not None and platform.supportsKernels([_CUDA_KERNEL])


def native_force(
    path: Path,
    *,
    atomic_numbers: Sequence[int],
    particles: Sequence[int] | None,
    num_particles: int,
    bonds: Sequence[tuple[int, int]],
    periodic: bool,
    device: str,
    precision: str,
    threads: int,
    skin: float,
) -> openmm.Force:
    """A ``PainnForce``; arguments as in ``painn_force``, of devices ``auto``, ``cpu`` and ``cuda``.

    Raises:
        InputError: the plugin cannot be loaded or the model not be used.
    """
    load_plugin()
    if device == "cuda" and not cuda_kernel_is_there():
        raise InputError(
            "the native backend runs on the GPU only with OpenMM's CUDA platform and a plugin that "
            f"was built for it, got device 'cuda' without; use backend='python', or {_REINSTALL}"
        )
    everything = particles is None
    indices = range(len(atomic_numbers)) if particles is None else particles
    root = ElementTree.Element(
        "Force",
        type="PainnForce",
        version="1",
        forceGroup="0",
        name="PainnForce",
        model=str(path),
        sha256=sha256(path),
        precision=precision,
        periodic=str(int(periodic)),
        device=device,
        threads=str(int(threads)),
        skin=repr(float(skin)),
        numParticles=str(num_particles if everything else 0),
    )
    child = ElementTree.SubElement(root, "Particles")
    for index, z in zip(indices, atomic_numbers, strict=True):
        ElementTree.SubElement(child, "Particle", index=str(index), z=str(z))
    child = ElementTree.SubElement(root, "Bonds")
    for first, second in bonds:
        ElementTree.SubElement(child, "Bond", p1=str(first), p2=str(second))
    try:
        return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    except openmm.OpenMMException as error:
        raise InputError(str(error)) from None
