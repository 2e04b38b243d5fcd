"""Structures, the HDF5 files that hold them, and batches for the network."""

from mlff_distiller.data.batch import Batch, collate, neighbors_of
from mlff_distiller.data.hdf5 import HDF5Dataset, HDF5Writer, ensure_splits, structures_hash
from mlff_distiller.data.io import read_structures, write_structures
from mlff_distiller.data.structure import Structure, check_structure, elements_of

__all__ = [
    "Batch",
    "HDF5Dataset",
    "HDF5Writer",
    "Structure",
    "check_structure",
    "collate",
    "elements_of",
    "ensure_splits",
    "neighbors_of",
    "read_structures",
    "structures_hash",
    "write_structures",
]
