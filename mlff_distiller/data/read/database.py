"""ASE databases, those of SchNetPack (units in the metadata, labels in ``row.data``) included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.db
import numpy as np

from mlff_distiller.data.read.calculations import frame_of
from mlff_distiller.data.read.frame import RawFile, ReadOptions
from mlff_distiller.data.read.names import parse_name
from mlff_distiller.errors import InputError

# What SchNetPack keeps beside the labels.
_PER_FRAME = ("charge", "spin", "multiplicity")


def read(path: Path, options: ReadOptions) -> RawFile:
    """All rows.

    Raises:
        InputError: the metadata name a unit that is unknown.
    """
    frames = []
    with ase.db.connect(path) as database:
        metadata = dict(database.metadata or {})
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            for name, value in dict(row.data).items():
                parsed = parse_name(name)
                told = options.forces_key == name
                if np.shape(value) == (len(atoms), 3) and (
                    told or (parsed and parsed.quantity in ("forces", "gradient"))
                ):
                    atoms.arrays[name] = np.asarray(value, dtype=np.float64)
                else:
                    atoms.info[name] = _single(name, value)
            frames.append(frame_of(atoms, options, f"row {row.id}"))
    units = _units(metadata)
    kind = "SchNetPack database" if units else "ASE database"
    return RawFile(frames, kind, units)


def _units(metadata: dict[str, Any]) -> dict[str, str]:
    units = metadata.get("_property_unit_dict") or metadata.get("units") or {}
    if not isinstance(units, dict):
        raise InputError(f"the units in its metadata must be a mapping, got {units!r:.60}")
    found = {str(k): str(v) for k, v in units.items() if v is not None and _is_label(str(k))}
    length = metadata.get("_distance_unit") or metadata.get("distance_unit")
    return {**found, **({"length": str(length)} if length else {})}


def _is_label(name: str) -> bool:
    return parse_name(name) is not None


def _single(name: str, value: Any) -> Any:
    """Arrays of one number as numbers: SchNetPack keeps energies and charges so."""
    if (
        isinstance(value, np.ndarray)
        and value.size == 1
        and (_is_label(name) or name in _PER_FRAME)
    ):
        return value.reshape(-1)[0].item()
    return value
