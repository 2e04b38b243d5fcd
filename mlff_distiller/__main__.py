"""``python -m mlff_distiller`` is ``mlff-distiller``; so torchrun can start it with ``-m``."""

from mlff_distiller.cli import main

if __name__ == "__main__":  # processes of our own import this file again
    main()
