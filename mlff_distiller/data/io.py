"""Structures in and out.

Files are read by what they say, see ``read/`` and docs/data.md. Written are, by extension: .h5
(the layout of hdf5.py), .extxyz and .xyz, .db (ASE), .cif, .vasp and POSCAR (no labels).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io

from mlff_distiller.data.constraints import selective_dynamics
from mlff_distiller.data.hdf5 import HDF5Dataset, HDF5Writer
from mlff_distiller.data.journal import journal_path
from mlff_distiller.data.read import deepmd, reading
from mlff_distiller.data.read.frame import ReadOptions
from mlff_distiller.data.read.reading import Reading
from mlff_distiller.data.structure import Structure, check_structure
from mlff_distiller.errors import InputError

logger = logging.getLogger(__name__)

_WRITERS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".cif": "cif",
    ".vasp": "vasp",
    ".poscar": "vasp",
}


def read_structures(
    path: str | Path,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    virial_key: str | None = None,
    units: str | None = None,
) -> list[Structure]:
    """Read and check every structure of a file of any kind; see docs/data.md.

    What was decided (sets of labels passed over, units assumed) is logged as a warning.

    Args:
        path: file, or a DeePMD folder.
        energy_key, forces_key, stress_key, virial_key: names of the labels, where the file has
            several or unusual ones.
        units: ``"kcal/mol"`` or ``"energy=Hartree,length=Bohr,stress=kbar"``, where the file does
            not say them.

    Raises:
        InputError: missing, empty, truncated or unknown file, several sets of labels, or a
            structure that is not valid (named by its number and place).
    """
    options = ReadOptions(energy_key, forces_key, stress_key, virial_key, units)
    found = read_file(path, options)
    if found.doubt:
        raise InputError(f"{path}: {found.doubt}")
    for note in found.notes + found.label_notes:
        logger.warning("%s: %s", path, note)
    check_all(path, found)
    return found.structures


def read_file(path: str | Path, options: ReadOptions | None = None) -> Reading:
    """Like :func:`read_structures`, with all that was found; structures are not checked.

    Raises:
        InputError: missing, empty, truncated or unknown file.
    """
    path, options = Path(path), options or ReadOptions()
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        if options != ReadOptions():
            raise InputError(
                f"{path} says itself which labels it holds and in which units; leave the options "
                "for names and units out"
            )
        structures = HDF5Dataset(path, require_labels=False, in_memory=True).unchecked()
        return Reading(structures, [""] * len(structures), kind="HDF5 data")
    if not path.exists():
        raise InputError(f"{path} must be a file with structures, got no such file; check the path")
    if path.is_dir() and not deepmd.systems(path):
        raise InputError(
            f"{path} must be a file, or a DeePMD folder with type.raw, got another folder; name a "
            "file in it"
        )
    if suffix in (".pt", ".ckpt", ".pth"):
        raise InputError(
            f"{path} is a model, expected structures (extxyz, ASE db, CIF, POSCAR, HDF5); "
            "`mlff-distiller info` shows what is in a student"
        )
    try:
        found = reading.read(path, options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise whatever they like on damaged files
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0][:150]}".rstrip(": ")
        raise InputError(
            f"{path} must be a complete file of the kind that its name says, got one that cannot "
            f"be read ({reason}); copy it again, or convert it with the program that wrote it to "
            "extxyz"
        ) from error
    if not found.structures:
        raise InputError(f"{path} must hold at least one structure, got none; check the file")
    return found


def check_all(path: str | Path, found: Reading) -> None:
    """Raise InputError for the first structure that cannot be used."""
    for i, s in enumerate(found.structures):
        check_structure(s, place_of(path, found, i))


def place_of(path: str | Path, found: Reading, index: int) -> str:
    """How to call a structure in messages."""
    place = f", {found.places[index]}" if found.places and found.places[index] else ""
    return f"{path}{place}, structure {index}"


def write_structures(path: str | Path, structures: Sequence[Structure], **attributes: Any) -> None:
    """Write structures, replacing the file in one step; see the top of this module.

    Args:
        path: its extension says the format.
        structures: at least one, and only one for .cif and .vasp.
        attributes: ``teacher``, ``versions``, ``seed``, ``provenance`` of an HDF5 file.

    Raises:
        InputError: unknown extension, no structures, a disk that is full.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.name.upper() in ("POSCAR", "CONTCAR"):
        suffix = ".vasp"
    if not structures:
        raise InputError(f"{path} would hold no structures; give at least one")
    if suffix not in (*_WRITERS, ".h5", ".hdf5", ".db"):
        known = ", ".join([*_WRITERS, ".h5", ".db"])
        raise InputError(f"cannot write {path.name}: unknown extension; use one of {known}")
    if suffix in (".cif", ".vasp", ".poscar") and len(structures) > 1:
        raise InputError(f"{path.name} holds one structure, got {len(structures)}; use .extxyz")
    for i, s in enumerate(structures):
        check_structure(s, f"structure {i}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if suffix in (".h5", ".hdf5"):
            with HDF5Writer(temporary, **attributes) as writer:
                writer.append(structures)
            journal_path(path).unlink(missing_ok=True)
        elif suffix == ".db":
            with ase.db.connect(temporary, type="db") as database:
                for s in structures:
                    database.write(s.to_atoms(dynamics=True), data=s.info)
        else:
            atoms = [s.to_atoms(dynamics=True) for s in structures]
            if _WRITERS[suffix] == "vasp":
                atoms[0].set_constraint(selective_dynamics(atoms[0]))
            ase.io.write(temporary, atoms, format=_WRITERS[suffix])
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room, or write elsewhere"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
        journal_path(temporary).unlink(missing_ok=True)
