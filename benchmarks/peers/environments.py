"""Which peers there are, how each is installed, and in which order they are measured."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """One row of the table."""

    name: str
    label: str
    adapter: str
    environment: str
    """Name of the virtual environment; empty for the one that runs the benchmark."""
    options: dict = field(default_factory=dict)
    warm_up: int = 2
    without: tuple[str, ...] = ()
    """Systems that it cannot do, for the reason in ``why_not``."""
    why_not: str = ""


#: pip argument lists, run one after another in a new virtual environment.
ENVIRONMENTS: dict[str, list[list[str]]] = {
    # 2.2.0 asks for Python 3.12 but runs on 3.11; 2.1.1 asks for a sympy that torch 2.13 refuses.
    "schnetpack": [
        [TORCH, "ase", "h5py", "pyyaml", "hydra-core", "pytorch-lightning", "torchmetrics",
         "hydra-colorlog", "rich", "fasteners", "dirsync", "torch-ema", "matscipy", "vesin",
         "tensorboardX", "progressbar", "tqdm"],
        ["--no-deps", "--ignore-requires-python", "schnetpack==2.2.0"],
    ],
    # Its PyTorch back end refuses torch 2.13.
    "deepmd": [["deepmd-kit[cpu]==3.2.0", "ase"]],
    "torchani": [[TORCH, "torchani==2.9.0", "ase"]],
    "sevennet": [[TORCH, "sevenn==0.13.0"]],
    "nequip": [[TORCH, "nequip==0.19.1"]],
    "mace": [[TORCH, "mace-torch==0.3.16"]],
    "chgnet": [[TORCH, "chgnet==0.4.2"]],
    "orb": [[TORCH, "orb-models==0.5.5"]],
    "graphpes": [[TORCH, "graph-pes==1.0.2"]],
}  # fmt: skip

PEERS: tuple[Peer, ...] = (
    Peer("ours", "mlff-distiller PaiNN (this)", "ours", ""),
    Peer("schnetpack", "SchNetPack PaiNN", "schnetpack_painn", "schnetpack"),
    Peer(
        "schnetpack-compiled",
        "SchNetPack PaiNN, torch.compile",
        "schnetpack_painn",
        "schnetpack",
        {"compile": True},
        warm_up=4,
    ),
    Peer(
        "deepmd",
        "DeePMD-kit se_e2_a, compressed",
        "deepmd_se_e2_a",
        "deepmd",
        {"precision": "float64"},  # its default
        warm_up=3,
    ),
    Peer(
        "deepmd-float32",
        "DeePMD-kit se_e2_a, compressed, float32",
        "deepmd_se_e2_a",
        "deepmd",
        {"precision": "float32"},
        warm_up=3,
    ),
    Peer(
        "ani",
        "ANI-1x, one network",
        "ani",
        "torchani",
        without=("silicon-512",),
        why_not="no parameters for Si",
    ),
    Peer(
        "nequip", "NequIP (l=1, 4 layers, 32 features), compiled", "nequip_l1", "nequip", warm_up=3
    ),
    Peer("graphpes", "graph-pes PaiNN", "graphpes_painn", "graphpes"),
    Peer("mace", "MACE 128x0e", "mace_128x0e", "mace"),
    Peer("sevennet", "SevenNet-0", "sevennet_0", "sevennet", warm_up=1),
    Peer("chgnet", "CHGNet", "chgnet_", "chgnet", warm_up=1),
    Peer("orb", "Orb-v2 architecture", "orb_v2", "orb", warm_up=1),
)


def python_of(environment: str, cache: Path) -> Path:
    """Interpreter of an environment. Raises RuntimeError with the reason when pip fails."""
    if not environment:
        return Path(sys.executable)
    folder = cache / "venvs" / environment
    python = folder / "bin" / "python"
    complete = folder / "complete"
    recipe = repr(ENVIRONMENTS[environment])
    if complete.exists() and complete.read_text() == recipe:
        return python
    print(f"installing {environment} ...", flush=True)
    venv.create(folder, with_pip=True)
    log = folder / "pip.log"
    for arguments in ENVIRONMENTS[environment]:
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        with log.open("a") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        if status:
            errors = [x for x in log.read_text().splitlines() if x.startswith("ERROR")]
            reason = errors[-1] if errors else f"pip ended with {status}"
            raise RuntimeError(f"not installed ({reason})")
    complete.write_text(recipe)
    return python
