"""Several files into one, with what each of them was: ``convert a.h5 b.h5 -o c.h5``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.data.hdf5 import HDF5Dataset, store_splits, structures_hash
from mlff_distiller.data.io import check_all, read_file, write_structures
from mlff_distiller.data.read.frame import ReadOptions
from mlff_distiller.data.read.reading import Reading
from mlff_distiller.data.splits import SPLITS
from mlff_distiller.data.structure import Structure
from mlff_distiller.data.survey import Survey, survey
from mlff_distiller.errors import InputError


@dataclass
class Joined:
    """Structures of all sources, one after another.

    Attributes:
        structures: those that stay.
        readings: one for each source.
        survey: of these.
        dropped: index among all -> why it was left out.
        attributes: teacher, versions, seed and provenance for the HDF5 file.
        splits: stored splits of the sources, as far as they have any.
        warnings: about the sources together.
    """

    structures: list[Structure]
    readings: list[Reading]
    survey: Survey
    dropped: dict[int, str]
    attributes: dict[str, Any]
    splits: dict[str, np.ndarray]
    warnings: list[str] = field(default_factory=list)


def gather(
    sources: Sequence[Path],
    options: ReadOptions | None = None,
    *,
    drop_bad: bool = False,
    new_splits: bool = False,
) -> Joined:
    """Read files and put them one after another.

    Args:
        sources: at least one; HDF5 files keep their teacher and splits.
        options: names and units of labels, for the sources that are not HDF5.
        drop_bad: leave out what survey() finds senseless or repeated.
        new_splits: leave stored splits out.

    Raises:
        InputError: a file that cannot be read, labels that would be a guess, or (without
            ``drop_bad``) a structure that is not valid.
    """
    options = options or ReadOptions()
    structures: list[Structure] = []
    readings, entries, teachers = [], [], []
    attributes: dict[str, Any] = {}
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for path in sources:
        hdf5 = path.suffix.lower() in (".h5", ".hdf5")
        found = read_file(path, ReadOptions() if hdf5 and len(sources) > 1 else options)
        if found.doubt:
            raise InputError(f"{path}: {found.doubt}")
        if not drop_bad:
            try:
                check_all(path, found)
            except InputError as error:
                raise InputError(f"{error}, or leave it out with --drop-bad") from None
        data = HDF5Dataset(path, require_labels=False) if hdf5 else None
        teachers.append(data.teacher if data else None)
        entries += _entries(path, found, data)
        if data is not None:
            attributes = {"versions": data.versions, "seed": data.seed, **attributes}
            for name, indices in ({} if new_splits else data.splits).items():
                splits[name] += [len(structures) + int(i) for i in indices]
        structures += found.structures
        readings.append(found)
    found_all = survey(structures)
    kept, dropped = list(range(len(structures))), {}
    if drop_bad:
        dropped = {**found_all.bad, **{i: f"like {j}" for i, j in found_all.duplicates.items()}}
        kept = [i for i in kept if i not in dropped]
        if not kept:
            raise InputError(
                f"{sources[0]}: no structure would be left, the first is bad: "
                f"{next(iter(dropped.values()))}; mend the file"
            )
        if dropped:
            structures = [structures[i] for i in kept]
            found_all = survey(structures)
    new_index = {old: new for new, old in enumerate(kept)}
    attributes["provenance"] = entries
    named = list(dict.fromkeys(t or "unknown" for t in teachers))
    warnings = []
    if named != ["unknown"]:
        attributes["teacher"] = " + ".join(named)
    if len(named) > 1:
        origins = ", ".join(
            f"{p} by {t or 'unknown'}" for p, t in zip(sources, teachers, strict=True)
        )
        warnings.append(
            f"labels of several origins in one file: {origins}; that is right only if all are of "
            "one level of theory"
        )
    return Joined(
        structures=structures,
        readings=readings,
        survey=found_all,
        dropped=dict(sorted(dropped.items())),
        attributes=attributes,
        splits={
            name: np.array(sorted(new_index[i] for i in indices if i in new_index), dtype=np.int64)
            for name, indices in splits.items()
        },
        warnings=warnings,
    )


def write(joined: Joined, output: Path) -> None:
    """Write the structures; an HDF5 file holds teacher, provenance and splits as well.

    Raises:
        InputError: see write_structures().
    """
    if output.suffix.lower() not in (".h5", ".hdf5"):
        write_structures(output, joined.structures)
        return
    write_structures(output, joined.structures, **joined.attributes)
    if any(len(indices) for indices in joined.splits.values()):
        store_splits(output, joined.splits)


def _entries(path: Path, found: Reading, data: HDF5Dataset | None) -> list[dict[str, Any]]:
    """What is written down about one source; a file that was joined hands on its own list."""
    if data is not None and data.provenance:
        return data.provenance
    entry: dict[str, Any] = {
        "file": str(path),
        "kind": found.kind,
        "num_structures": len(found.structures),
        "hash": structures_hash(found.structures),
    }
    if data is not None and data.teacher:
        entry["teacher"] = data.teacher
    if found.taken:
        entry["labels"] = {quantity: list(names) for quantity, names in found.taken.items()}
        entry["units"] = found.units
    return [entry]
