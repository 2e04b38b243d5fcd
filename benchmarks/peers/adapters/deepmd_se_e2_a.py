"""DeePMD-kit: descriptor se_e2_a with its documented water settings, frozen and compressed.

The weights come from one training step: time does not depend on them.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
from ase.neighborlist import neighbor_list

RCUT = 6.0  # Å


def calculator(atoms, folder: Path, threads: int, options: dict):
    for name in ("TF_INTRA_OP_PARALLELISM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS"):
        os.environ[name] = str(threads)
    for name in ("TF_INTER_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS"):
        os.environ[name] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    symbols = sorted(set(atoms.get_chemical_symbols()))
    precision = options["precision"]
    path = folder / "deepmd" / f"{''.join(symbols)}-{precision}.pb"
    if not path.exists():
        _make(atoms, symbols, precision, path)
    from deepmd.calculator import DP

    return DP(str(path))


def _make(atoms, symbols: list[str], precision: str, path: Path) -> None:
    work = path.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    data = work / "data" / "set.000"
    data.mkdir(parents=True)
    types = [symbols.index(s) for s in atoms.get_chemical_symbols()]
    (work / "data" / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    (work / "data" / "type_map.raw").write_text("\n".join(symbols) + "\n")
    rng = np.random.default_rng(0)
    frames = [atoms.positions + rng.normal(scale=0.05, size=(len(atoms), 3)) for _ in range(4)]
    cell = atoms.cell.array if atoms.pbc.all() else np.eye(3) * 60.0
    np.save(data / "coord.npy", np.reshape(frames, (4, -1)))
    np.save(data / "box.npy", np.tile(cell.reshape(1, 9), (4, 1)))
    np.save(data / "energy.npy", rng.normal(size=4))
    np.save(data / "force.npy", rng.normal(scale=0.1, size=(4, 3 * len(atoms))))
    model = {
        "type_map": symbols,
        "descriptor": {
            "type": "se_e2_a",
            "sel": _selection(atoms, types, len(symbols)),
            "rcut_smth": 0.5,
            "rcut": RCUT,
            "neuron": [25, 50, 100],
            "resnet_dt": False,
            "axis_neuron": 16,
            "precision": precision,
            "seed": 1,
        },
        "fitting_net": {
            "neuron": [240, 240, 240],
            "resnet_dt": True,
            "precision": precision,
            "seed": 1,
        },
    }
    settings = {
        "model": model,
        "learning_rate": {"type": "exp", "decay_steps": 1, "start_lr": 1e-8, "stop_lr": 1e-9},
        "loss": {"type": "ener"},
        "training": {
            "training_data": {"systems": ["data"], "batch_size": 1},
            "numb_steps": 1,
            "seed": 1,
            "disp_freq": 1,
            "save_freq": 1,
        },
    }
    (work / "input.json").write_text(json.dumps(settings))
    for arguments in (
        ["train", "input.json", "--skip-neighbor-stat"],
        ["freeze", "-o", "frozen.pb"],
        ["compress", "-i", "frozen.pb", "-o", "compressed.pb", "-t", "input.json"],
    ):
        command = [sys.executable, "-m", "deepmd", "--tf", *arguments]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"dp {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")
    (work / "compressed.pb").replace(path)


def _selection(atoms, types: list[int], num_types: int) -> list[int]:
    """Most neighbours of each type and a fifth to spare, its documentation's advice and more."""
    i, j = neighbor_list("ij", atoms, RCUT + 0.1)
    counts = np.zeros((len(atoms), num_types), int)
    np.add.at(counts, (i, np.asarray(types)[j]), 1)
    return [int(-(-1.2 * n // 2) * 2) for n in counts.max(axis=0)]


def version() -> str:
    return package_version("deepmd-kit")
