"""Students from networks that were trained elsewhere: read the weights, keep every digit."""

from mlff_distiller.importers.convert import convert_model, import_model

__all__ = ["convert_model", "import_model"]
