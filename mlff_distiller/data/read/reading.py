"""Read a file: pick its reader, choose labels and units for all of it, and say what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.data.read import calculations, database, deepmd, npz, units, xyz
from mlff_distiller.data.read.frame import Frame, RawFile, ReadOptions, listed
from mlff_distiller.data.read.labels import Choice, choose, number
from mlff_distiller.data.read.names import mentions_quantity, parse_name
from mlff_distiller.data.structure import Structure, full_stress
from mlff_distiller.errors import InputError
from mlff_distiller.lattice import is_left_handed


@dataclass
class Reading:
    """Structures of a file and what was made of it.

    Attributes:
        structures: not checked yet.
        places: where each stands in the file (``line 12``), or empty.
        kind: the format, in words.
        found: name of a label -> number of frames.
        taken: quantity -> names.
        units: what was converted and why, or empty.
        notes: lines for the user about the structures and the file.
        label_notes: lines for the user about the choice of labels.
        hints: what the missing labels may be called.
        doubt: why no labels were taken, and the remedy; empty when the choice was clear.
    """

    structures: list[Structure]
    places: list[str] = field(default_factory=list)
    kind: str = ""
    found: dict[str, int] = field(default_factory=dict)
    taken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: str = ""
    notes: list[str] = field(default_factory=list)
    label_notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    doubt: str = ""

    def left(self) -> dict[str, int]:
        """Names of labels that were not taken -> number of frames."""
        taken = {name for names in self.taken.values() for name in names}
        return {name: count for name, count in self.found.items() if name not in taken}


def read(path: Path, options: ReadOptions) -> Reading:
    """Read a file that is not HDF5.

    Raises:
        InputError: what is wrong, where in the file, and what helps; without the name of the file.
    """
    raw = _reader(path)(path, options)
    return assemble(raw, options)


def structure_of(atoms: Atoms) -> Structure:
    """One structure with the labels that ASE atoms hold; see :meth:`Structure.from_atoms`."""
    options = ReadOptions()
    reading = assemble(RawFile([calculations.frame_of(atoms, options)], "atoms"), options)
    if reading.doubt:
        raise InputError(reading.doubt.rpartition("; ")[0] + "; remove those you do not want")
    return reading.structures[0]


def _reader(path: Path) -> Callable[[Path, ReadOptions], RawFile]:
    if path.is_dir():
        return deepmd.read
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".xz"):
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    readers = {".xyz": xyz.read, ".extxyz": xyz.read, ".npz": npz.read, ".db": database.read}
    return readers.get(suffix, calculations.read)


def assemble(raw: RawFile, options: ReadOptions) -> Reading:
    """Structures with the labels of one set, in eV and Å."""
    stated = raw.units
    if options.units:
        told = units.parse_units(options.units)
        kept = {k: v for k, v in stated.items() if not _says(k, told)}
        stated = {**kept, **told}
    choice = choose([frame.labels for frame in raw.frames], options)
    found: Counter[str] = Counter(name for frame in raw.frames for name in frame.labels)
    reading = Reading([], kind=raw.kind, found=dict(found), taken=choice.taken)
    reading.doubt = choice.doubt
    factors = _Factors(stated)
    turned, disagree = [], []
    for i, frame in enumerate(raw.frames):
        turned += [i] if is_left_handed(np.asarray(frame.atoms.cell), frame.atoms.pbc) else []
        structure, same = _structure(frame, choice, factors, i)
        reading.structures.append(structure)
        disagree += [] if same else [i]
        reading.places.append(frame.place)
    reading.units = factors.text()
    reading.notes, reading.label_notes = list(raw.notes), choice.notes
    reading.hints = _hints(raw, choice)
    reading.label_notes += factors.doubts()
    if disagree:
        reading.label_notes.append(
            f"{choice.taken['stress'][0]} is taken, but {choice.taken['virial'][0]} is not -V times "
            f"it in {len(disagree)} frames ({listed(disagree)}): one of them has another sign or unit "
            f"(to take the virial, say --virial-key {choice.taken['virial'][0]})"
        )
    if turned:
        reading.notes.append(
            f"left-handed cells turned over in frame {listed(turned)}: lattice and positions stay, "
            "the order or direction of the vectors changes"
        )
    return reading


def _says(name: str, told: dict[str, str]) -> bool:
    """Whether the user's units overrule the file's unit of ``name``; energy rules what follows."""
    parsed = parse_name(name)
    quantity = parsed.quantity if parsed else name
    quantity = {"free_energy": "energy", "gradient": "forces"}.get(quantity, quantity)
    return quantity in told or ("energy" in told and quantity in ("forces", "virial"))


class _Factors:
    """Size of the file's units in ours, by label."""

    def __init__(self, stated: dict[str, str]) -> None:
        self._stated = stated
        self._used: dict[str, str] = {}
        self._by_name: dict[str, str] = {}
        self._assumed: dict[str, str] = {}
        self.length = self._size("length", stated.get("length", "Ang"))

    def of(self, name: str, quantity: str) -> float:
        """Factor for label ``name`` (energy, forces, stress or virial)."""
        parsed = parse_name(name)
        unit = self._stated.get(name) or (parsed.unit if parsed else "")
        if parsed and parsed.unit and unit == parsed.unit:
            self._by_name[quantity] = name
        unit = unit or self._stated.get(quantity, "")
        if unit:
            return self._size(quantity, unit)
        self._assumed.setdefault(quantity, name)
        energy = self._stated.get("energy", "eV")
        length = self._stated.get("length", "Ang")
        power = {"forces": 1, "stress": 3}.get(quantity, 0)
        size = units.factor(energy, "energy") / self.length**power
        self._note(
            quantity, energy + (f"/{length}" + (f"^{power}" if power > 1 else "")) * (power > 0)
        )
        return size

    def _size(self, quantity: str, unit: str) -> float:
        self._note(quantity, unit)
        try:  # some files state a number: the size of the unit
            return float(unit)
        except ValueError:
            return units.factor(unit, quantity)

    def _note(self, quantity: str, unit: str) -> None:
        self._used[quantity] = unit

    def doubts(self) -> list[str]:
        """A line where the name of the energy states a unit and that of its derivatives none."""
        energy = self._used.get("energy", "eV")
        assumed = [q for q in ("forces", "virial") if q in self._assumed]
        if "energy" not in self._by_name or not assumed or units.factor(energy, "energy") == 1.0:
            return []
        names = listed(self._assumed[q] for q in assumed)
        taken = listed(f"{q} {self._used[q]}" for q in assumed)
        example = {"Hartree": "Hartree/Bohr"}.get(energy, f"{energy}/Ang")
        example = f"forces={example}" if "forces" in assumed else f"virial={energy}"
        return [
            f"{self._by_name['energy']} is in {energy} by its name and {names} says no unit: {taken} "
            f"taken; if it has another, say --units {example}"
        ]

    def text(self) -> str:
        """``energy kcal/mol, forces kcal/mol/Ang`` as far as they are used."""
        return ", ".join(f"{quantity} {unit}" for quantity, unit in self._used.items())


def _structure(
    frame: Frame, choice: Choice, factors: _Factors, index: int
) -> tuple[Structure, bool]:
    """One structure, and whether its stress and its virial say the same."""
    atoms = frame.atoms
    structure = Structure.from_atoms(atoms, labels=False)
    if factors.length != 1.0:
        atoms = atoms.copy()
        atoms.set_cell(atoms.cell * factors.length, scale_atoms=False)
        atoms.positions *= factors.length
        structure = Structure.from_atoms(atoms, labels=False)
    values: dict[str, Any] = {}
    for quantity, names in choice.taken.items():
        name = next((n for n in names if not _missing(frame.labels.get(n))), None)
        if name is None:
            continue
        unit = {"gradient": "forces"}.get(quantity, quantity)
        try:
            values[quantity] = _value(quantity, frame.labels[name], len(structure))
        except (TypeError, ValueError):
            where = f"{frame.place}, " if frame.place else ""
            raise InputError(
                f"{where}structure {index}: {name} must be {_SHAPES[quantity]}, got "
                f"{str(frame.labels[name])[:60]!r}; correct it, or name another label with "
                f"--{unit}-key"
            ) from None
        values[quantity] = values[quantity] * factors.of(name, unit)
    if "forces" not in values and "gradient" in values:
        values["forces"] = -values["gradient"]
    stress, same = values.get("stress"), True
    if "virial" in values and atoms.cell.volume > 0:
        by_virial = -values["virial"] / atoms.cell.volume
        if stress is None:
            stress = by_virial
        else:
            same = bool(np.abs(stress - by_virial).max() <= 0.01 * np.abs(stress).max() + 1e-6)
    structure = structure.with_labels(values.get("energy"), values.get("forces"), stress)
    return structure, same


_SHAPES = {
    "energy": "a number",
    "forces": "three numbers for each atom",
    "gradient": "three numbers for each atom",
    "stress": "6 or 9 numbers",
    "virial": "6 or 9 numbers",
}


def _value(quantity: str, value: Any, num_atoms: int) -> Any:
    if quantity == "energy":
        return number(value)
    array = np.asarray(value, dtype=np.float64)
    if quantity in ("forces", "gradient"):
        return array.reshape(num_atoms, 3)
    return full_stress(array if array.shape == (3, 3) else array.reshape(-1))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and number_or_none(value))


def number_or_none(text: str) -> bool:
    """Whether a text stands for no value."""
    try:
        return number(text) is None
    except ValueError:
        return False


def _hints(raw: RawFile, choice: Choice) -> list[str]:
    """What could have been meant, where labels are missing."""
    hints = []
    if choice.doubt:
        return []
    if "energy" not in choice.taken:
        names = {
            name
            for frame in raw.frames
            for name, value in frame.atoms.info.items()
            if isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        }
        likely = sorted(names, key=lambda n: (not mentions_quantity(n), n))
        if likely:
            hints.append(
                f"no energy was found; numbers in the header: {listed(likely)}; if one of them is "
                f"the energy, say --energy-key {likely[0]}"
            )
    if not {"forces", "gradient"} & set(choice.taken):
        unnamed = sorted({name for frame in raw.frames for name in frame.unnamed})
        if unnamed:
            hints.append(
                f"no forces were found; columns of three numbers: {listed(unnamed)}; if they are "
                f"forces, say --forces-key {unnamed[0]}"
            )
    wrong: dict[str, list[str]] = {}
    for frame in raw.frames:
        for name, text in frame.misfits.items():
            wrong.setdefault(name, []).append(f"{frame.place}: {text}" if frame.place else text)
    for name, places in wrong.items():
        hints.append(
            f"{name} in {len(places)} frames is not what its name says ({places[0]}), left there"
        )
    none = sum(any(_missing(v) for v in frame.labels.values()) for frame in raw.frames)
    if none:
        hints.append(f"{none} frames hold a label without a value (None), taken as missing")
    return hints
