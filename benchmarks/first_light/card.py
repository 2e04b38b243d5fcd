"""Runs a script with the engine on the card; in a rehearsal the tests' emulation is in its place.

    python card.py smoke.py student.pt       # of this folder, or a path
    python card.py --versions                # of what is here
    python card.py --model student.pt        # the default network with random weights

FIRST_LIGHT_REHEARSAL=build/cuda_emulated rehearses: no GPU is needed, every kernel runs on the host.
"""

from __future__ import annotations

import os
import platform
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
#: Folder of the emulation that the tests have compiled; empty on a card.
REHEARSAL = os.environ.get("FIRST_LIGHT_REHEARSAL", "")


def native() -> Any:
    """The compiled module with ``GpuPotential``, and ``Potential`` for the CPU. Loads no torch: tools
    start faster, and cuBLAS has to be found without it."""
    if REHEARSAL:
        from mlff_distiller.ops import engine

        return engine._native
    from mlff_distiller import _native, cuda_libraries

    if not hasattr(_native, "GpuPotential"):
        raise SystemExit("the engine was compiled without CUDA; run: make cuda")
    cuda_libraries.name_cublas()
    return _native


def water(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic numbers, positions and cell of 3 side³ atoms of water at 1 g/cm³, Å."""
    rng = np.random.default_rng(0)
    spacing, bond, angle, n = 3.1043, 0.9572, np.deg2rad(104.52), side**3
    sites = np.stack(np.unravel_index(np.arange(n), (side,) * 3), axis=1) + 0.5
    frames = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    oxygens = sites * spacing + rng.normal(0, 0.1, (n, 3))
    first = oxygens + bond * frames[:, 0]
    second = oxygens + bond * (np.cos(angle) * frames[:, 0] + np.sin(angle) * frames[:, 1])
    positions = np.stack([oxygens, first, second], axis=1).reshape(-1, 3)
    return np.tile(np.array([8, 1, 1], np.int64), n), positions, np.eye(3) * spacing * side


def torch_device() -> str:
    """Where torch has its tensors."""
    return "cpu" if REHEARSAL else "cuda"


def rehearse() -> None:
    """Put the emulation where the card would be: in the engine, in torch, in LAMMPS."""
    sys.path.append(REHEARSAL)
    import _cuda_emulated as emulated

    from benchmarks import common, gpu_engines
    from mlff_distiller.ops import engine

    plugin = Path(REHEARSAL) / "lammps_plugin" / "painnplugin.so"
    parts = {name: getattr(engine._native, name) for name in ("Potential", "available_isas")}
    names = ("GpuPotential", "gpu_count", "gpu_name", "gpu_products")
    parts |= {name: getattr(emulated, name) for name in names}
    engine._native = SimpleNamespace(**parts)
    molecule = common.water
    common.water = lambda side: molecule(1)
    gpu_engines.STEPS, gpu_engines.WARM_UP = 5, 2
    gpu_engines.torch_device = torch_device
    gpu_engines.before_pair_style = lambda: f"plugin unload pair painn\nplugin load {plugin}\n"


def versions() -> None:
    import torch

    from mlff_distiller import __version__

    module = native()
    names = [module.gpu_name(k) for k in range(module.gpu_count())]
    print(
        f"mlff_distiller {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"GPUs of the engine: {', '.join(names) or 'none'}; products by {module.gpu_products()}")


def help_if_asked(doc: str | None) -> None:
    """The docstring of a script, where its first word asks for help or there is none."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(doc)
        raise SystemExit(0)


def main() -> None:
    help_if_asked(__doc__)
    sys.path.append(str(ROOT))  # last: a packed package has compiled modules, this checkout may not
    if REHEARSAL:
        rehearse()
    if sys.argv[1] == "--versions":
        versions()
    elif sys.argv[1] == "--model":
        from benchmarks.scaling import export_model

        Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
        export_model(Path(sys.argv[2]))
    else:
        script = FOLDER / sys.argv[1]
        sys.argv = sys.argv[1:]
        sys.modules["card"] = sys.modules["__main__"]
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
