"""Students from networks that were trained elsewhere: read the weights, keep every digit."""

from mlff_distiller.importers.schnetpack import convert_schnetpack, import_schnetpack

__all__ = ["convert_schnetpack", "import_schnetpack"]
