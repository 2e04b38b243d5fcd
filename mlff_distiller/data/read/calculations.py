"""Everything that ASE reads: outputs and inputs of programs, trajectories, CIF, POSCAR."""

from __future__ import annotations

import warnings
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype

from mlff_distiller.data.read.frame import Frame, RawFile, ReadOptions
from mlff_distiller.data.read.labels import labels_of_atoms, misfits

_NOT_OURS = ("spacegroup", "unit_cell", "occupancy")  # of CIF files


def read(path: Path, options: ReadOptions) -> RawFile:
    """All frames of a file, with what their calculators hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ase.io.read(path, index=":")
    frames = found if isinstance(found, list) else [found]
    try:
        kind = filetype(str(path))
    except (UnknownFileTypeError, OSError):
        kind = "file that ASE reads"
    return RawFile([frame_of(atoms, options) for atoms in frames], kind)


def frame_of(atoms: Atoms, options: ReadOptions, place: str = "") -> Frame:
    """A frame of ASE atoms, whose labels are taken out."""
    labels, rest, unnamed = labels_of_atoms(atoms, options)
    wrong = misfits(rest, {}, labels)
    bare = atoms.copy()  # without the calculator
    bare.info = {k: v for k, v in rest.items() if k not in _NOT_OURS}
    for name in labels:
        bare.arrays.pop(name, None)
    return Frame(bare, labels, place, unnamed, wrong)
