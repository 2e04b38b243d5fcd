"""Every figure that the README claims is a script here. Each starts with

    sys.path.append(str(Path(__file__).resolve().parents[1]))

(subfolders: ``parents[2]``), so that ``from benchmarks... import`` finds this package wherever it is
started from, and an installed mlff_distiller still comes before the sources beside this folder.
"""
