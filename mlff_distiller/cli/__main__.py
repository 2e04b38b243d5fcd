"""``python -m mlff_distiller.cli`` is ``mlff-distiller``."""

from mlff_distiller.cli import main

main()
