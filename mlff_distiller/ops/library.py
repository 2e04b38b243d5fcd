"""Load the native operator library, once, and only into the torch it was compiled against."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mlff_distiller.errors import InputError
from mlff_distiller.files import native_file

LIBRARY = "lib/libmlff_ops.so"
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."

_loaded = False


def load_library() -> None:
    """Register the operators ``torch.ops.mlff.*``; further calls do nothing.

    Raises:
        InputError: the library is not built, or was built for another torch than the running one.
    """
    global _loaded
    if not _loaded:
        path = native_file(LIBRARY)
        if path is None:
            raise InputError(
                f"expected the compiled operators in mlff_distiller/{LIBRARY}, found none; "
                f'run `{REBUILD}` in the source folder, or use backend="reference"'
            )
        _load(path)
        _loaded = True


def has_kernel(operator: str, device_type: str) -> bool:
    """Whether the library can be loaded and has ``mlff::operator`` for this kind of device."""
    if device_type not in ("cpu", "cuda"):
        return False
    try:
        load_library()
    except InputError:  # not built
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mlff::{operator}", device_type.upper())


def _load(path: Path) -> None:
    """Check the build of ``path`` before the loader sees it, then load it."""
    built = build_torch_version(path)
    if built != torch.__version__:
        raise InputError(
            f"{path.name} was built for torch {built}, but torch {torch.__version__} is running; "
            f"run `{REBUILD}` in the source folder"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot load {path}: {reason}; run `{REBUILD}`") from error
    _register_fakes()


def build_torch_version(path: Path) -> str:
    """The torch that an operator library was compiled against, read without loading it."""
    match = re.search(rb"mlff_build_torch_version=([^\0]+)\0", path.read_bytes())
    return match.group(1).decode() if match else "unknown"


def _register_fakes() -> None:
    """Shapes and dtypes of the operators' results, for torch.compile and torch.export."""

    @torch.library.register_fake("mlff::neighbor_list")
    def _neighbor_list(
        positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, cutoff: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_edges = torch.library.get_ctx().new_dynamic_size()
        edge_index = positions.new_empty((2, n_edges), dtype=torch.int64)
        return edge_index, positions.new_empty((n_edges, 3), dtype=torch.int64)
