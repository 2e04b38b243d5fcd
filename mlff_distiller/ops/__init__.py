"""Python face of the native operators: schemas, fakes, argument checks.

`reference.py` holds a pure-torch twin of every operator.
"""

from mlff_distiller.ops.library import load_library
from mlff_distiller.ops.neighbors import edge_vectors, neighbor_list
from mlff_distiller.ops.reference import neighbor_list_reference

__all__ = ["edge_vectors", "load_library", "neighbor_list", "neighbor_list_reference"]
