"""XYZ and extended XYZ as all programs write it, frame by frame, with line numbers for messages.

ASE's reader stops at much that is in use: lower case keys (GPUMD), stress as six numbers, Fortran
exponents, site labels, QM9. Header values are still taken apart by ASE. The comment lines of CP2K
(``i = 3, time = 1.5, E = -17.2``, Hartree; forces in the ``-frc-`` file beside it), of QM9
(``gdb 9 ...``, U0 in Hartree) and i-PI (``# CELL(abcABC): ...``, units in braces) are known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers as number_of
from ase.geometry import cellpar_to_cell
from ase.io.extxyz import key_val_str_to_dict
from ase.io.formats import open_with_compression

from mlff_distiller.data.read.frame import Frame, RawFile, ReadOptions, listed
from mlff_distiller.data.read.labels import misfits, split_labels
from mlff_distiller.data.read.units import factor, parse_units
from mlff_distiller.errors import InputError

_CP2K = re.compile(r"\s*i\s*=\s*(\d+)\s*,.*\bE\s*=\s*(\S+)")
# Keys that ASE insists on being nine numbers, whatever their case.
_NINE = re.compile(r"(?<![\w-])(lattice|stress|virial)(?=\s*=)", re.IGNORECASE)
_IPI = re.compile(r"CELL\(abcABC\):\s*((?:[-+.\deE]+\s+){6})")
_COLUMNS = {
    "pos": "positions",
    "position": "positions",
    "positions": "positions",
    "species": "symbols",
    "symbol": "symbols",
    "symbols": "symbols",
    "element": "symbols",
    "elements": "symbols",
    "z": "numbers",
    "numbers": "numbers",
    "atomic_number": "numbers",
    "atomic_numbers": "numbers",
}
_PLAIN = "species:S:1:pos:R:3"
_UNIT_KEY = re.compile(
    r"(energy|forces?|stress|virial|length|pos|positions?)_units?", re.IGNORECASE
)
_QM9_U0 = 12  # word of the comment line
_STEP = "cp2k_step"
_CELL_COLUMNS = 11  # of CP2K: step, time, nine numbers, volume


@dataclass
class _Notes:
    """Things that are worth one line for the whole file."""

    renamed: dict[str, str] = field(default_factory=dict)
    extra_columns: int = 0
    numbers: str = ""
    kinds: set[str] = field(default_factory=set)
    units: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        """Lines for the user."""
        lines = list(self.lines)
        if self.renamed:
            pairs = listed(f"{label} as {symbol}" for label, symbol in self.renamed.items())
            lines.append(f"labels of atoms taken for elements: {pairs}")
        if self.extra_columns:
            lines.append(
                f"columns without a name were left in {self.extra_columns} frames; name them in the "
                "comment line, as Properties=species:S:1:pos:R:3:forces:R:3"
            )
        if self.numbers:
            number = self.numbers.split()[-1]
            lines.append(
                f"the comment line is a number ({self.numbers}); if it is the energy, write "
                f"energy={number}"
            )
        return lines


def read(path: Path, options: ReadOptions) -> RawFile:
    """All frames.

    Raises:
        InputError: the line, what it should be and what it is.
    """
    with open_with_compression(str(path), "rb") as stream:
        content = stream.read()
    notes = _Notes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        notes.lines.append("the text is not UTF-8, read as Latin-1")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    frames = list(_frames(lines, options, notes))
    if "cp2k" in notes.kinds:
        _add_cp2k(path, frames, notes)
    kind = "QM9" if "qm9" in notes.kinds else "CP2K trajectory" if "cp2k" in notes.kinds else "xyz"
    return RawFile(frames, kind, notes.units, notes.all())


def _frames(lines: list[str], options: ReadOptions, notes: _Notes) -> Iterator[Frame]:
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        count = _count(lines[at], at)
        end = at + 2 + count
        rows = lines[at + 2 : end]
        missing = count - len(rows)
        if missing > 0 or any(not row.strip() for row in rows):
            have = next((i for i, row in enumerate(rows) if not row.strip()), len(rows))
            raise InputError(
                f"line {at + 1}: cannot be read, a frame of {count} atoms must follow, got {have}; "
                "the file was cut off (remove that frame), or the number is wrong"
            )
        vectors = []
        while end < len(lines) and re.match(r"\s*VEC\d", lines[end]):
            vectors.append(lines[end].split()[1:4])
            end += 1
        yield _frame(at, lines[at + 1], rows, vectors, options, notes)
        if lines[at + 1].split()[:1] == ["gdb"]:  # QM9: frequencies, SMILES, InChI
            end += 3
        at = end


def _count(line: str, at: int) -> int:
    word = line.split()[0]
    if not word.isdecimal():
        raise InputError(
            f"line {at + 1}: cannot be read, the number of atoms of a frame must stand here, got "
            f"{line.strip()[:40]!r}; the frame before may have a wrong number of atoms"
        )
    return int(word)


def _frame(
    at: int,
    comment: str,
    rows: list[str],
    vectors: list[list[str]],
    options: ReadOptions,
    notes: _Notes,
) -> Frame:
    place = f"line {at + 1}"
    header = _header(comment, at, notes)
    properties = str(header.pop("properties", _PLAIN))
    columns = _columns(properties, rows, at, notes)
    numbers = columns.pop("numbers", None)
    symbols = columns.pop("symbols", None)
    if symbols is not None:
        numbers = _numbers([str(s) for s in symbols], at, notes)
    positions = columns.pop("positions", None)
    if numbers is None or positions is None:
        raise InputError(
            f"line {at + 2}: Properties must name species (or Z) and pos, got {properties!r:.80}; "
            "complete it"
        )
    cell, pbc = _cell(header, vectors, at)
    atoms = Atoms(numbers=np.asarray(numbers), positions=positions, cell=cell, pbc=pbc)
    if "move_mask" in columns:
        _constrain(atoms, np.asarray(columns.pop("move_mask")).astype(bool))
    labels, rest, unnamed = split_labels(header, columns, len(atoms), options)
    atoms.info = rest
    for name, array in columns.items():
        if name not in labels and name not in atoms.arrays and array.dtype.kind in "biuf":
            atoms.set_array(name, array)
    return Frame(atoms, labels, place, unnamed, misfits(rest, columns, labels))


def _header(comment: str, at: int, notes: _Notes) -> dict[str, Any]:
    words = comment.split()
    if words[:1] == ["gdb"] and len(words) > _QM9_U0:
        if "qm9" not in notes.kinds:
            notes.kinds.add("qm9")
            notes.units["U0"] = "Hartree"
            notes.lines.append("QM9: U0 taken for the energy; it holds the zero-point energy, too")
        return {"U0": words[_QM9_U0].replace("*^", "e"), "gdb": words[1]}
    if match := _CP2K.match(comment):
        notes.kinds.add("cp2k")
        notes.units |= {"E": "Hartree"}
        return {"E": match[2], _STEP: int(match[1])}
    if match := _IPI.search(comment):
        return _ipi(match, comment, at, notes)
    if "=" not in comment:
        if len(words) == 1 and re.fullmatch(r"[-+]?\d+\.\d+([eEdD][-+]?\d+)?", words[0]):
            notes.numbers = notes.numbers or f"line {at + 2}: {words[0]}"
        return {}
    try:
        parsed = key_val_str_to_dict(_NINE.sub(r"\1__", comment))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"line {at + 2}: cannot be read as key=value ({str(error)[:80]}); correct the line"
        ) from None
    header: dict[str, Any] = {}
    for name, value in parsed.items():
        plain = name.removesuffix("__") if _NINE.match(name.removesuffix("__") + "=") else name
        lower = plain.lower()
        if lower in ("lattice", "properties", "pbc"):
            header[lower] = value
        elif match := _UNIT_KEY.fullmatch(plain):
            _state_unit(match[1].lower(), str(value), notes, at)
        elif lower in ("unit", "units") and isinstance(value, (dict, str)):  # janus-core, or plain
            for quantity, unit in _stated_units(value, notes).items():
                if match := _UNIT_KEY.fullmatch(f"{quantity}_unit"):
                    _state_unit(match[1].lower(), str(unit), notes, at)
        else:
            header[plain] = _listed_numbers(value)
    return header


def _stated_units(value: dict[str, Any] | str, notes: _Notes) -> dict[str, Any]:
    """``units=kcal/mol`` and ``units="energy=Hartree,length=Bohr"``, or the mapping of janus-core."""
    if isinstance(value, dict):
        return value
    try:
        return dict(parse_units(re.sub(r"[\s;]+(?=[A-Za-z]+\s*=)", ",", value)))
    except InputError:
        line = f"units={value!r:.40} in the header is not understood: eV and Å taken, or what "
        line += "--units says"
        if line not in notes.lines:
            notes.lines.append(line)
        return {}


def _listed_numbers(value: Any) -> Any:
    """Numbers that are written as a list (``[[1, 0, 0], ...]``), where ASE leaves the text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        array = np.array(json.loads(value))
    except ValueError:
        return value
    return array if array.dtype.kind in "if" else value


def _ipi(match: re.Match[str], comment: str, at: int, notes: _Notes) -> dict[str, Any]:
    """Cell and units of i-PI; without a unit it means atomic ones."""
    what = dict(re.findall(r"(\w+)\{(\w+)\}", comment))
    if not {"positions", "x_centroid"} & set(what) and set(what) - {"cell"}:
        raise InputError(
            f"line {at + 2}: i-PI wrote {listed(set(what) - {'cell'})} here, not positions; "
            "convert the file with the positions"
        )
    unit = what.get("positions") or what.get("x_centroid") or "atomic_unit"
    length, of_cell = (
        "Bohr" if u == "atomic_unit" else u for u in (unit, what.get("cell", "atomic_unit"))
    )
    _state_unit("length", length, notes, at)
    ratio = factor(of_cell, "length") / factor(length, "length")
    cell = cellpar_to_cell([float(w) for w in match[1].split()])
    cell[np.abs(cell) < 1e-12 * np.abs(cell).max()] = 0.0
    return {"lattice": cell.ravel() * ratio}


def _state_unit(quantity: str, unit: str, notes: _Notes, at: int) -> None:
    quantity = {"force": "forces", "energy": "energy"}.get(quantity, quantity)
    quantity = "length" if quantity.startswith("pos") else quantity
    if notes.units.setdefault(quantity, unit) != unit:
        raise InputError(
            f"line {at + 2}: the unit of {quantity} is {unit}, but {notes.units[quantity]} in an "
            "earlier frame; write the frames to separate files"
        )


def _columns(properties: str, rows: list[str], at: int, notes: _Notes) -> dict[str, np.ndarray]:
    fields = properties.split(":")
    triples = list(zip(fields[::3], fields[1::3], fields[2::3], strict=False))
    wrong = len(fields) % 3 or any(
        kind not in ("R", "I", "S", "L") or not n.isdecimal() for _, kind, n in triples
    )
    if wrong:
        raise InputError(
            f"line {at + 2}: Properties must be NAME:TYPE:COLUMNS with types R, I, S, L, got "
            f"{properties!r:.80}; correct it"
        )
    words = [row.split() for row in rows]
    needed = sum(int(n) for _, _, n in triples)
    short = next((i for i, row in enumerate(words) if len(row) < needed), None)
    if short is not None:
        raise InputError(
            f"line {at + 3 + short}: cannot be read, atom {short} must have {needed} columns, got "
            f"{len(words[short])}; correct the line"
        )
    if words and len(words[0]) > needed and "qm9" not in notes.kinds:  # QM9: charges
        notes.extra_columns += 1
    columns: dict[str, np.ndarray] = {}
    start = 0
    for name, kind, width in triples:
        stop = start + int(width)
        values = [row[start:stop] for row in words]
        array = _convert(values, kind, name, at).reshape(len(words), int(width))  # also of no atom
        columns[_COLUMNS.get(name.lower(), name)] = array[:, 0] if int(width) == 1 else array
        start = stop
    for triple in (("fx", "fy", "fz"), ("Fx", "Fy", "Fz"), ("force_x", "force_y", "force_z")):
        if all(name in columns for name in triple):
            columns["forces"] = np.stack([columns.pop(name) for name in triple], axis=1)
    return columns


def _convert(values: list[list[str]], kind: str, name: str, at: int) -> np.ndarray:
    if kind == "S":
        return np.array(values, dtype=object)
    if kind == "L":
        return np.array([[v[:1] in "Tt1" for v in row] for row in values], dtype=bool)
    dtype = np.float64 if kind == "R" else np.int64
    try:
        return np.array(values, dtype=dtype)
    except (ValueError, OverflowError):
        pass
    array = np.zeros(np.shape(values), dtype=dtype)
    for i, row in enumerate(values):
        for k, value in enumerate(row):
            plain = value.replace("*^", "e").replace("D", "E").replace("d", "e")
            try:
                array[i, k] = dtype(plain)
            except (ValueError, OverflowError):
                raise InputError(
                    f"line {at + 3 + i}: {name} of atom {i} must be a number, got {value!r:.40}; "
                    "correct the line"
                ) from None
    return array


def _numbers(symbols: list[str], at: int, notes: _Notes) -> np.ndarray:
    known: dict[str, int] = {}
    for i, label in enumerate(symbols):
        if label in known:
            continue
        if label.isdecimal():
            known[label] = int(label)
            continue
        plain = label.capitalize()
        if plain in number_of:
            if plain != label:  # CA may be calcium or a carbon atom of a protein
                notes.renamed[label] = plain
            known[label] = number_of[plain]
            continue
        letters = re.match(r"[A-Za-z]+", label)
        symbol = letters[0].capitalize() if letters else ""
        symbol = {"D": "H", "T": "H"}.get(symbol, symbol)
        if symbol not in number_of or symbol == "X":
            raise InputError(
                f"line {at + 3 + i}: atom {i} must be an element, got {label!r}; write its symbol, "
                "for instance H"
            )
        notes.renamed[label] = symbol
        known[label] = number_of[symbol]
    return np.array([known[label] for label in symbols], dtype=np.int64)


def _cell(
    header: dict[str, Any], vectors: list[list[str]], at: int
) -> tuple[np.ndarray | None, Any]:
    lattice, pbc = header.pop("lattice", None), header.pop("pbc", None)
    cell = None
    if vectors:
        cell = np.zeros((3, 3))
        cell[: len(vectors)] = np.array(vectors, dtype=np.float64)
        return cell, [i < len(vectors) for i in range(3)]
    if lattice is not None:
        if np.size(lattice) != 9 or np.asarray(lattice).dtype.kind not in "if":
            raise InputError(
                f"line {at + 2}: Lattice must be 9 numbers, got {str(lattice)[:60]!r}; correct it"
            )
        cell = np.asarray(lattice, dtype=np.float64).reshape(3, 3)
    if pbc is None:
        return cell, [cell is not None] * 3
    return cell, _flags(pbc, at)


def _flags(pbc: Any, at: int) -> list[bool]:
    words = pbc.replace(",", " ").split() if isinstance(pbc, str) else np.ravel(pbc).tolist()
    flags = [str(w).strip(".").lower() in ("t", "true", "1") for w in words]
    known = all(str(w).strip(".").lower() in ("t", "true", "1", "f", "false", "0") for w in words)
    if len(flags) == 1:
        flags = flags * 3
    if len(flags) != 3 or not known:
        raise InputError(
            f'line {at + 2}: pbc must be like pbc="T T F", got {str(pbc)[:40]!r}; correct it'
        )
    return flags


def _constrain(atoms: Atoms, move: np.ndarray) -> None:
    if move.ndim == 1:
        atoms.set_constraint(FixAtoms(mask=~move))
    else:
        atoms.set_constraint(
            [FixCartesian(i, mask=~row) for i, row in enumerate(move) if not row.all()]
        )


def _add_cp2k(path: Path, frames: list[Frame], notes: _Notes) -> None:
    """Cell and forces of the ``.cell`` and ``-frc-`` files beside a ``-pos-`` file."""
    if "-frc-" in path.name:
        raise InputError("these are the forces of a CP2K run; convert the -pos- file beside it")
    about = "CP2K trajectory: energies in Hartree, positions in Å; "
    cells = path.with_name(path.name.replace("-pos-", "-")).with_suffix(".cell")
    if "-pos-" in path.name and cells.exists():
        _add_cp2k_cells(cells, frames)
        notes.lines.append(f"{about}cells taken from {cells.name}, periodic in all directions")
    else:
        beside = f", and there is no {cells.name} beside it" if "-pos-" in path.name else ""
        notes.lines.append(f"{about}it holds no cell{beside}")
    for frame in frames:
        frame.atoms.info.pop(_STEP, None)
    forces = path.with_name(path.name.replace("-pos-", "-frc-"))
    if forces == path or not forces.exists():
        return
    other = _Notes()
    lines = forces.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    found = list(_frames(lines, ReadOptions(), other))
    if len(found) != len(frames):
        raise InputError(
            f"{forces.name} beside it must hold {len(frames)} frames, too, got {len(found)}; "
            "convert steps that both have"
        )
    for frame, its in zip(frames, found, strict=True):
        if not np.array_equal(frame.atoms.numbers, its.atoms.numbers):
            raise InputError(f"{forces.name} holds other atoms at {its.place}; move it away")
        frame.labels["forces"] = its.atoms.positions
    notes.units["forces"] = "Hartree/Bohr"
    notes.lines.append(f"forces taken from {forces.name} (Hartree/Bohr)")


def _add_cp2k_cells(path: Path, frames: list[Frame]) -> None:
    """Cells by the number of the step; the file is in Å."""
    cells: dict[int, np.ndarray] = {}
    for at, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            numbers = [float(word) for word in words[2:_CELL_COLUMNS]]
            cells[int(words[0])] = np.array(numbers).reshape(3, 3)
        except ValueError:
            raise InputError(
                f"{path.name} beside it, line {at + 1}: a step, a time and nine numbers must stand "
                f"here, got {line.strip()[:60]!r}; correct it or move the file away"
            ) from None
    for frame in frames:
        step = frame.atoms.info[_STEP]
        if step not in cells:
            raise InputError(
                f"{path.name} beside it lacks step {step} of the frame at {frame.place}; convert "
                "steps that both have, or move the file away"
            )
        frame.atoms.set_cell(cells[step])
        frame.atoms.pbc = True
