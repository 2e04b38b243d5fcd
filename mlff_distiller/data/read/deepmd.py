"""DeePMD-kit: folders with type.raw, in the npy, npy/mixed and raw layouts; or a folder of such.

The mixed layout holds the element of each atom in ``set.*/real_atom_types.npy`` (-1: no atom) and
zeros in type.raw. An empty file ``nopbc`` says that nothing is periodic. Units are eV and Å, the
virial has the sign of DeePMD-kit (positive: compressed), as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from mlff_distiller.data.read.frame import Frame, RawFile, ReadOptions, listed
from mlff_distiller.errors import InputError

_LABELS = ("energy", "force", "virial")


def is_system(path: Path) -> bool:
    """Whether a folder is one system."""
    return (path / "type.raw").exists()


def systems(path: Path) -> list[Path]:
    """Systems in a folder, itself included, in order of their names."""
    if is_system(path):
        return [path]
    return sorted(p.parent for p in path.rglob("type.raw"))


def read(path: Path, options: ReadOptions) -> RawFile:
    """All frames of all systems.

    Raises:
        InputError: files that are missing or do not fit together.
    """
    raw = RawFile([], "DeePMD folder")
    mixed = 0
    for system in systems(path):
        name = "" if system == path else f"{system.relative_to(path)}, "
        found, is_mixed = _system(system, name)
        mixed += is_mixed
        raw.frames += found
    if mixed:
        raw.kind = "DeePMD folder, mixed layout"
    return raw


def _system(path: Path, name: str) -> tuple[list[Frame], bool]:
    types = np.loadtxt(path / "type.raw", dtype=np.int64).reshape(-1)
    if not (path / "type_map.raw").exists():
        raise InputError(f"{name}a DeePMD folder must hold type_map.raw (element names); add it")
    numbers = _elements(path / "type_map.raw", name)
    periodic = not (path / "nopbc").exists()
    folders = sorted(p for p in path.glob("set.*") if p.is_dir())
    frames: list[Frame] = []
    mixed = False
    if not folders:
        frames += _frames(_text(path), types, numbers, periodic, name)
    for folder in folders:
        arrays = {f.stem: np.load(f, allow_pickle=False) for f in sorted(folder.glob("*.npy"))}
        mixed |= "real_atom_types" in arrays
        frames += _frames(arrays, types, numbers, periodic, f"{name}{folder.name}, ")
    return frames, mixed


def _elements(path: Path, name: str) -> np.ndarray:
    symbols = path.read_text().split()
    wrong = [s for s in symbols if s not in number_of]
    if wrong:
        raise InputError(
            f"{name}type_map.raw must name elements, got {wrong[0]!r}; write symbols like "
            f"{chemical_symbols[8]}"
        )
    return np.array([number_of[s] for s in symbols], dtype=np.int64)


def _text(path: Path) -> dict[str, np.ndarray]:
    names = ("coord", "box", *_LABELS, "real_atom_types")
    return {
        name: np.loadtxt(path / f"{name}.raw", ndmin=2)
        for name in names
        if (path / f"{name}.raw").exists()
    }


def _frames(
    arrays: dict[str, np.ndarray],
    types: np.ndarray,
    elements: np.ndarray,
    periodic: bool,
    name: str,
) -> list[Frame]:
    if "coord" not in arrays:
        raise InputError(f"{name}coord.npy is missing; copy the folder again")
    count, atoms = len(arrays["coord"]), len(types)
    needed = {"coord": 3 * atoms, "force": 3 * atoms, "real_atom_types": atoms}
    needed |= {"virial": 9, "box": 9}
    for key, size in needed.items():
        if key in arrays and arrays[key].size != count * size:
            raise InputError(
                f"{name}{key} must hold {count} x {size} numbers ({atoms} atoms in type.raw), got "
                f"{arrays[key].shape}; copy the folder again"
            )
    if "energy" in arrays and arrays["energy"].size != count:
        raise InputError(
            f"{name}energy must hold {count} numbers like coord, got {arrays['energy'].size}; "
            "copy the folder again"
        )
    if periodic and "box" not in arrays:
        raise InputError(
            f"{name}box.npy is missing; add it, or an empty file nopbc if nothing is periodic"
        )
    real = arrays.get("real_atom_types")
    frames = []
    for i in range(count):
        mine = (types if real is None else real.reshape(count, atoms)[i]).astype(np.int64)
        if np.any(mine >= len(elements)):
            raise InputError(
                f"{name}frame {i}: types must be below the {len(elements)} elements of "
                f"type_map.raw ({listed(chemical_symbols[z] for z in elements)}), got "
                f"{int(mine.max())}; complete type_map.raw"
            )
        keep = mine >= 0
        cell = arrays["box"].reshape(count, 3, 3)[i].astype(float) if periodic else np.zeros((3, 3))
        positions = arrays["coord"].reshape(count, atoms, 3)[i].astype(np.float64)
        labels: dict[str, Any] = {}
        if "energy" in arrays:
            labels["energy"] = float(arrays["energy"].reshape(-1)[i])
        if "force" in arrays:
            labels["force"] = arrays["force"].reshape(count, atoms, 3)[i][keep].astype(np.float64)
        if "virial" in arrays and periodic:
            labels["virial"] = arrays["virial"].reshape(count, 3, 3)[i].astype(np.float64)
        frames.append(
            Frame(
                Atoms(
                    numbers=elements[mine[keep]],
                    positions=positions[keep],
                    cell=cell,
                    pbc=periodic,
                ),
                labels,
                f"{name}frame {i}",
            )
        )
    return frames
