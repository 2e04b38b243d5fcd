"""What ``painn_force`` says to bad arguments: one line with expected, got and remedy.

OpenMM itself would take most of them and fail in the first step, or not at all.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.constants import DEFAULT_SKIN
from mlff_distiller.errors import InputError
from mlff_distiller.files import sha256

BACKENDS = ("auto", "native", "python", "torch")


def check_topology(topology: Any) -> None:
    """Raise InputError unless this is a topology that holds atoms."""
    from openmm.app import Topology

    if not isinstance(topology, Topology):
        raise InputError(
            f"topology must be an openmm.app.Topology, got {_shown(topology)}; pass e.g. "
            "PDBFile('molecule.pdb').topology or modeller.topology"
        )
    if topology.getNumAtoms() == 0:
        raise InputError("topology must hold at least one atom, got none; add atoms to it first")


def checked_model(model: Any) -> Path:
    """Absolute path of the model."""
    try:
        return Path(model).absolute()
    except TypeError:
        raise InputError(
            f"model must be the path of an exported student, got {_shown(model)}; write one with "
            "`mlff-distiller export RUN_DIR -o student.pt`"
        ) from None


def check_unchanged(path: str | Path, digest: str) -> None:
    """Raise InputError unless the model's file is still there, with the SHA-256 ``digest``."""
    if not Path(path).is_file():
        raise InputError(f"no such model file: {path}; put it back or make a new force")
    if sha256(path) != digest:
        raise InputError(
            f"{path} has changed since this force was made (SHA-256 differs); "
            "restore the file or make a new force"
        )


def check_count(count: int, num_atoms: int, particles: Sequence[int] | None) -> None:
    """Raise InputError for a System that the model's atoms do not fit.

    Args:
        count: particles of the System.
        num_atoms: atoms of the model.
        particles: their indices among all particles; None for all.
    """
    if particles is None and count != num_atoms:
        raise InputError(
            f"the model was set up for {num_atoms} atoms, the System has {count} particles; "
            "make the force from the topology of this System, or pass atoms="
        )
    if particles is not None and count <= max(particles):
        raise InputError(
            f"atoms must lie in 0..{count - 1}, got {max(particles)}; the System has {count} "
            "particles: make the force from the topology of this System"
        )


def check_choices(backend: Any, precision: Any, device: Any) -> None:
    """Raise InputError for options that are not among those offered."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if precision not in ("single", "double"):
        raise InputError(f"precision must be 'single' or 'double', got {precision!r}")
    if not isinstance(device, str):
        raise InputError(f"device must be a name such as 'cpu' or 'cuda:0', got {_shown(device)}")


def checked_periodic(periodic: Any, topology: Any) -> bool:
    """Whether the model sees periodic images; None asks the topology."""
    if periodic is None:
        return topology.getPeriodicBoxVectors() is not None
    if not isinstance(periodic, (bool, np.bool_)):
        raise InputError(
            f"periodic must be True, False or None (as the topology), got {_shown(periodic)}; "
            "leave it out if the topology is right"
        )
    return bool(periodic)


def checked_integer(name: str, value: Any, most: int, meaning: str) -> int:
    """``value`` as an integer in 0..``most``; ``meaning`` ends the message."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise InputError(f"{name} must be an integer 0..{most}, got {value!r}; {meaning}")
    return number


def checked_skin(skin: Any) -> float:
    """The skin in Å, of a number in Å or an OpenMM quantity."""
    from openmm import unit

    try:
        length = float(skin.value_in_unit(unit.angstrom) if unit.is_quantity(skin) else skin)
    except (TypeError, ValueError):
        length = math.nan
    if not 0 <= length < math.inf:
        raise InputError(
            f"skin must be a length >= 0 Å, got {_shown(skin)}; {DEFAULT_SKIN} is a good value"
        )
    return length


def checked_atoms(atoms: Iterable[int], count: int) -> list[int]:
    """Distinct indices below ``count``, in the given order."""
    try:
        given = list(atoms)
        particles = [operator.index(i) for i in given]
    except TypeError as error:
        raise InputError(
            f"atoms must be integers ({error}); pass indices such as atoms=[0, 1, 2]"
        ) from None
    if any(isinstance(i, bool) for i in given):
        raise InputError(
            "atoms must be indices, got True or False; of a mask pass numpy.flatnonzero(mask)"
        )
    if not particles:
        raise InputError("atoms must name at least one atom, got none; leave it out for all")
    outside = sorted({i for i in particles if not 0 <= i < count})
    if outside:
        raise InputError(
            f"atoms must lie in 0..{count - 1}, got {outside[:10]}; the topology has {count} atoms"
        )
    if len(set(particles)) != len(particles):
        twice = sorted(i for i, times in Counter(particles).items() if times > 1)
        raise InputError(f"atoms must differ, got {twice[:10]} more than once; remove repetitions")
    return particles


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"
