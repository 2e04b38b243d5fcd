"""Structures in and out, by the name of the file.

| name                     | read | write |                                                        |
|--------------------------|------|-------|--------------------------------------------------------|
| .h5 .hdf5                | yes  | yes   | the layout of hdf5.py                                  |
| .xyz .extxyz             | yes  | yes   | energy (eV), forces (eV/Å), stress (eV/Å^3) or virial  |
| .db                      | yes  | yes   | ASE database                                           |
| .cif .vasp POSCAR CONTCAR| yes  | yes   | no labels                                              |
| .npz                     | yes  | no    | rMD17: nuclear_charges, coords, energies (kcal/mol)    |
| folder with type.raw     | yes  | no    | DeePMD-kit                                             |
| anything else            | yes  | no    | whatever ASE reads                                     |
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers as number_of

from mlff_distiller.data.constraints import selective_dynamics
from mlff_distiller.data.hdf5 import HDF5Dataset, HDF5Writer
from mlff_distiller.data.journal import journal_path
from mlff_distiller.data.structure import Structure, check_structure
from mlff_distiller.errors import InputError
from mlff_distiller.units import EV_IN_KCAL_PER_MOL

_WRITERS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".cif": "cif",
    ".vasp": "vasp",
    ".poscar": "vasp",
}


def read_structures(path: str | Path) -> list[Structure]:
    """Read and check every structure of a file; see the table at the top of this module.

    Raises:
        InputError: missing, empty, truncated or unknown file, or a structure that is not valid
            (named by its number).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return list(HDF5Dataset(path, require_labels=False, in_memory=True))
    if not path.exists():
        raise InputError(f"{path} must be a file with structures, got no such file; check the path")
    if path.is_dir() and not (path / "type.raw").exists():
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
        if path.is_dir():
            structures = _read_deepmd(path)
        elif suffix == ".npz":
            structures = _read_npz(path)
        elif suffix == ".db":
            structures = [Structure.from_atoms(atoms) for atoms in _read_database(path)]
        else:
            structures = [Structure.from_atoms(atoms) for atoms in _read_ase(path)]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise whatever they like on damaged files
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} must be a complete file of its kind, got one that cannot be read "
            f"({lines[0][:150]}); write or copy it again"
        ) from error
    if not structures:
        raise InputError(f"{path} must hold at least one structure, got none; check the file")
    for i, s in enumerate(structures):
        check_structure(s, f"{path}, structure {i}")
    return structures


def write_structures(path: str | Path, structures: Sequence[Structure], **attributes: Any) -> None:
    """Write structures, replacing the file in one step; see the table at the top of this module.

    Args:
        path: its extension says the format.
        structures: at least one, and only one for .cif and .vasp.
        attributes: ``teacher``, ``versions``, ``seed`` of an HDF5 file.

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


def _read_ase(path: Path) -> list[Atoms]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = ase.io.read(path, index=":")
    frames = frames if isinstance(frames, list) else [frames]
    for atoms in frames:
        for key in ("spacegroup", "unit_cell", "occupancy"):  # of CIF files: not ours to keep
            atoms.info.pop(key, None)
    return frames


def _read_database(path: Path) -> list[Atoms]:
    frames = []
    with ase.db.connect(path) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            atoms.info.update(dict(row.data))
            frames.append(atoms)
    return frames


def _read_npz(path: Path) -> list[Structure]:
    with np.load(path, allow_pickle=False) as data:
        keys = {"nuclear_charges": "z", "coords": "R", "energies": "E", "forces": "F"}
        found = {k: data[k] if k in data else data[v] for k, v in keys.items() if {k, v} & {*data}}
    if not {"nuclear_charges", "coords"} <= set(found):
        raise InputError("an .npz file must hold nuclear_charges and coords (rMD17); convert it")
    numbers, positions = found["nuclear_charges"], found["coords"]
    factor = 1.0 / EV_IN_KCAL_PER_MOL
    for key in ("energies", "forces"):
        if key in found and len(found[key]) != len(positions):
            raise InputError(
                f"{key} must have {len(positions)} rows like coords, got {len(found[key])}"
            )
    energies, forces = found.get("energies"), found.get("forces")
    return [
        Structure(
            atomic_numbers=numbers,
            positions=positions[i],
            energy=None if energies is None else float(np.squeeze(energies[i])) * factor,
            forces=None if forces is None else forces[i] * factor,
        )
        for i in range(len(positions))
    ]


def _read_deepmd(path: Path) -> list[Structure]:
    types = np.loadtxt(path / "type.raw", dtype=np.int64).reshape(-1)
    if not (path / "type_map.raw").exists():
        raise InputError("a DeePMD folder must hold type_map.raw (element names); add it")
    names = (path / "type_map.raw").read_text().split()
    numbers = np.array([number_of[names[t]] for t in types])
    periodic = not (path / "nopbc").exists()
    structures = []
    for folder in sorted(path.glob("set.*")):
        arrays = {f.stem: np.load(f).astype(np.float64) for f in folder.glob("*.npy")}
        for i, coordinates in enumerate(arrays["coord"]):
            cell = arrays["box"][i].reshape(3, 3) if periodic else np.zeros((3, 3))
            virial = arrays["virial"][i].reshape(3, 3) if "virial" in arrays else None
            force = arrays["force"][i].reshape(-1, 3) if "force" in arrays else None
            energy = float(arrays["energy"][i].squeeze()) if "energy" in arrays else None
            structures.append(
                Structure(
                    atomic_numbers=numbers,
                    positions=coordinates.reshape(-1, 3),
                    cell=cell,
                    pbc=np.full(3, periodic),
                    energy=energy,
                    forces=force,
                    stress=None
                    if virial is None or not periodic
                    else -virial / abs(np.linalg.det(cell)),
                )
            )
    return structures
