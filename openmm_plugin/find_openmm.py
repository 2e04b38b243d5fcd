"""Print the folder with include/ and lib/ of this Python's OpenMM: its wheel, or a conda environment.

Prints nothing where there is none; CMakeLists.txt then says what to do.
"""

import importlib.util
import sys
from pathlib import Path

# Beside this file lies a folder `openmm` that is not OpenMM.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
folders = [Path(sys.prefix)]
spec = importlib.util.find_spec("openmm")
if spec is not None and spec.submodule_search_locations:
    package = Path(next(iter(spec.submodule_search_locations)))
    folders.insert(0, package.parent / "OpenMM.libs")
print(next((str(f) for f in folders if (f / "include" / "OpenMM.h").exists()), ""))
