"""What a reader of one kind of file hands on: atoms, and possible labels under their own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ase import Atoms


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a file where it says nothing, or says it in unusual words.

    Attributes:
        energy_key, forces_key, stress_key, virial_key: names of the labels in the file.
        units: ``"kcal/mol"`` or ``"energy=Hartree,length=Bohr,forces=Hartree/Bohr,stress=kbar"``.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    units: str | None = None

    def keys(self) -> dict[str, str]:
        """Quantity -> name in the file, of those that are given."""
        given = {
            "energy": self.energy_key,
            "forces": self.forces_key,
            "stress": self.stress_key,
            "virial": self.virial_key,
        }
        return {quantity: name for quantity, name in given.items() if name}


@dataclass
class Frame:
    """One structure as the file holds it.

    Attributes:
        atoms: numbers, positions and cell in the units of the file; ``info`` without labels.
        labels: name in the file -> value, for everything whose name could be a label.
        place: where it stands, for messages: ``line 12``.
        unnamed: names of columns of three numbers that say nothing to us.
        misfits: name of a label -> value that cannot be one, as text.
    """

    atoms: Atoms
    labels: dict[str, Any] = field(default_factory=dict)
    place: str = ""
    unnamed: tuple[str, ...] = ()
    misfits: dict[str, str] = field(default_factory=dict)


@dataclass
class RawFile:
    """All frames of a file.

    Attributes:
        frames: in the order of the file.
        kind: the format, in words.
        units: quantity (energy, length, forces, stress) or name of a label -> unit, as stated.
        notes: lines for the user.
    """

    frames: list[Frame]
    kind: str
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def listed(items: Iterable[Any], most: int = 6) -> str:
    """``a, b, c, ... (9 in all)``."""
    every = [str(item) for item in items]
    text = ", ".join(every[:most])
    return text if len(every) <= most else f"{text}, ... ({len(every)} in all)"
