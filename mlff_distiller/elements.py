"""Chemical elements: which there are, how they are named, and models that know only some."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from ase.data import chemical_symbols

from mlff_distiller.errors import InputError

#: The largest atomic number; tables by atomic number have ``MAX_Z + 1`` rows.
MAX_Z = 118


def symbol(z: int) -> str:
    """``Si`` of 14; ``Z=200`` of what is no element."""
    return chemical_symbols[z] if 1 <= z <= MAX_Z else f"Z={z}"


def symbols(numbers: Iterable[int], separator: str = " ") -> str:
    """Symbols of atomic numbers, for messages."""
    return separator.join(symbol(int(z)) for z in numbers)


def unknown_elements(
    atomic_numbers: Collection[int] | np.ndarray, known: Iterable[int]
) -> list[int]:
    """Atomic numbers that are not among ``known``, ascending, each once."""
    return sorted({int(z) for z in np.unique(np.asarray(atomic_numbers))} - set(known))


def check_elements(
    atomic_numbers: Collection[int] | np.ndarray, known: Iterable[int], model: str = "the model"
) -> None:
    """Raise InputError that names the atomic numbers which ``model`` does not know."""
    known = list(known)
    if unknown := unknown_elements(atomic_numbers, known):
        names = ", ".join(f"{symbol(z)} (Z={z})" if z <= MAX_Z else f"Z={z}" for z in unknown)
        raise InputError(
            f"{model} knows {symbols(known)}, got {names}; "
            "train with these elements in the data or use another model"
        )


def pair_name(a: int, b: int) -> str:
    """``Na-Cl``: the symbols of two elements in the order of their atomic numbers."""
    return "-".join(chemical_symbols[z] for z in sorted((a, b)))


def reduced_formula(atomic_numbers: np.ndarray) -> str:
    """``NaCl`` of any supercell of salt: symbols by atomic number, counts by their divisor."""
    elements, counts = np.unique(atomic_numbers, return_counts=True)
    divisor = int(np.gcd.reduce(counts))
    return "".join(
        chemical_symbols[z] + (str(n // divisor) if n != divisor else "")
        for z, n in zip(elements, counts, strict=True)
    )
