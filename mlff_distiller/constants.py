"""Numbers and names that more than one room must agree on."""

from __future__ import annotations

#: Arithmetic of the network; sums of energies are float64 in either case.
PRECISIONS = ("float32", "float64")
#: What a GPU rounds of a float32 network, each more than the one before; as in csrc/cuda/dense.h.
MATHS = ("float32", "half", "tf32")
#: Those of them that round factors of matrix products, for which cuBLAS is needed to be faster.
ROUNDED_PRODUCTS = ("tf32",)
#: OpenMP runtimes crash when asked for absurdly many; as in csrc/core/engine.cpp.
MAX_THREADS = 1024
#: Å. Neighbour lists reach this much beyond the cutoff and live until an atom has moved half of it.
DEFAULT_SKIN = 0.3
#: Times the largest uncertainty of held-out atoms: where users are warned unless they set a limit.
UNCERTAINTY_MARGIN = 3.0
#: Likewise of the mean square over all atoms, against the largest of a held-out frame. It scatters
#: less than a single atom, and a crystal that is pressed as a whole shows nowhere else.
FRAME_UNCERTAINTY_MARGIN = 1.5
