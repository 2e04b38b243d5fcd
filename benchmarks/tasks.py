"""Small labelled sets on which settings of training are compared.

With ``../shared/data``: rMD17 ethanol (950 + 50 frames) and acetylacetone at 300 K (450 + 50); with a
file of silicon labels (``--silicon``) that, too. What is missing is replaced by labels of ASE's EMT:
a hot cluster for the molecules, a strained and rattled alloy for the crystal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.cluster import Octahedron

from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure, ensure_splits, read_structures

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ETHANOL = Path("rmd17") / "rmd17_ethanol_train_01.npz"
ACAC = Path("acac") / "train_300K.xyz"


@dataclass(frozen=True)
class Task:
    """Labels with their splits, and the network and batches that suit them.

    Attributes:
        name: of the row in a table.
        path: HDF5 file.
        model: keys of ModelConfig.
        training: keys of TrainingConfig.
    """

    name: str
    path: Path
    model: dict[str, Any]
    training: dict[str, Any]

    @property
    def frames(self) -> int:
        """Frames that are trained on."""
        return len(HDF5Dataset(self.path).splits["train"])


_SMALL = {"hidden_dim": 64, "num_interactions": 3}
_CRYSTAL = {"hidden_dim": 64, "num_interactions": 2}


def tasks(folder: Path, shared: Path = SHARED, silicon: Path | None = None) -> list[Task]:
    """Files for the tasks in ``folder``, made where they are not there yet.

    Args:
        folder: of the files.
        shared: where the public sets lie.
        silicon: HDF5 file of labelled silicon.
    """
    found = []
    if (shared / ETHANOL).exists():
        found.append(_task(folder, "ethanol", lambda: _read(shared / ETHANOL), 0.05, _SMALL, 8))
    else:
        found.append(_task(folder, "cluster (EMT)", _clusters, 0.1, _SMALL, 8))
    if (shared / ACAC).exists():
        found.append(_task(folder, "acac", lambda: _read(shared / ACAC), 0.1, _SMALL, 8))
    if silicon is not None:
        found.append(_task(folder, "silicon", lambda: _read(silicon), 0.1, _CRYSTAL, 2))
    else:
        found.append(_task(folder, "alloy (EMT)", _alloys, 0.1, _CRYSTAL, 4))
    return found


def _task(
    folder: Path,
    name: str,
    make: Callable[[], list[Structure]],
    valid: float,
    model: dict[str, Any],
    batch: int,
) -> Task:
    path = folder / f"{name.split()[0]}.h5"
    if not path.exists():
        with HDF5Writer(path) as writer:
            writer.append(make())
        ensure_splits(path, valid, 0.0, 0)
    return Task(name, path, model, {"batch_size": batch})


def _read(path: Path) -> list[Structure]:
    """Frames with forces that dynamics would ever visit."""
    frames = read_structures(path)
    return [s for s in frames if s.forces is not None and np.abs(s.forces).max() < 15.0]


def _labelled(atoms: Atoms) -> Structure:
    atoms.calc = EMT()
    atoms.get_potential_energy()
    atoms.get_forces()
    if atoms.pbc.all():
        atoms.get_stress()
    return Structure.from_atoms(atoms)


def _clusters(count: int = 500) -> list[Structure]:
    """Nineteen atoms of copper, some of them gold or silver, rattled."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(count):
        atoms = Octahedron("Cu", 3)
        atoms.numbers[rng.permutation(len(atoms))[: i % 5]] = 79
        atoms.numbers[rng.permutation(len(atoms))[: i % 3]] = 47
        atoms.positions += rng.normal(0.0, rng.uniform(0.05, 0.25), atoms.positions.shape)
        frames.append(_labelled(atoms))
    return frames


def _alloys(count: int = 300) -> list[Structure]:
    """Copper and gold, 32 atoms, strained and rattled."""
    rng = np.random.default_rng(1)
    frames = []
    for i in range(count):
        atoms = bulk("Cu", a=3.75, cubic=True) * (2, 2, 2)
        atoms.numbers[rng.permutation(32)[: 8 * (i % 3)]] = 79
        strain = np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.02, 0.2), atoms.positions.shape)
        frames.append(_labelled(atoms))
    return frames
