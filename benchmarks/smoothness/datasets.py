"""The three labelled sets of the study, made once; their splits are stored in the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mlff_distiller.config import DistillConfig, load_config
from mlff_distiller.data import HDF5Dataset, HDF5Writer, ensure_splits, read_structures
from mlff_distiller.sampling import sample, starting_structures
from mlff_distiller.teachers import get_teacher, label_dataset

ROOT = Path(__file__).resolve().parents[2]
RMD17 = ROOT.parent / "shared" / "data" / "rmd17"


@dataclass(frozen=True)
class System:
    """A labelled set and how a student is trained on it, beside the network of the demos.

    Attributes:
        title: for tables.
        demo: YAML of examples/ that gives frames, network and training; for ethanol the training only.
        epochs: the length of a run; with the size of a batch and of the set, the optimiser's steps.
        batch_size: structures.
    """

    title: str
    demo: str
    epochs: int
    batch_size: int


SYSTEMS = {
    "silicon": System("Si, SevenNet-0", "demo_silicon.yaml", 85, 2),
    "aspirin": System("aspirin, GFN2-xTB", "demo_molecule.yaml", 48, 4),
    "ethanol": System("ethanol, rMD17", "demo_molecule.yaml", 120, 8),
}
ETHANOL_FRAMES = {"train": 400, "valid": 50, "test": 500}


def demo_config(system: str) -> DistillConfig:
    return load_config(ROOT / "examples" / SYSTEMS[system].demo, DistillConfig)


def prepare(system: str, folder: Path) -> Path:
    """The labelled file of a system, made if it is not there."""
    path = folder / f"{system}.h5"
    if path.exists() and HDF5Dataset(path).splits:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if system == "ethanol":
        _ethanol(path)
    else:
        _distilled(path, demo_config(system))
    return path


def _distilled(path: Path, config: DistillConfig) -> None:
    """Sampled and labelled as ``mlff-distiller distill`` does."""
    teacher = get_teacher(config.teacher.name, device=config.teacher.device)
    frames = sample(starting_structures(config.structures), config.sampling, teacher.calculator)
    label_dataset(
        frames, teacher, path, max_force=config.sampling.max_force, seed=config.sampling.seed
    )
    data = config.data
    ensure_splits(path, data.valid_fraction, data.test_fraction, data.split_seed)


def _ethanol(path: Path) -> None:
    """The first frames of rMD17's first training and test sets, which are in random order."""
    sizes = ETHANOL_FRAMES
    train = read_structures(RMD17 / "rmd17_ethanol_train_01.npz")
    test = read_structures(RMD17 / "rmd17_ethanol_test_01.npz")
    with HDF5Writer(path, teacher="PBE/def2-SVP (rMD17)") as writer:
        writer.append(train[: sizes["train"] + sizes["valid"]] + test[: sizes["test"]])
    ends = np.cumsum(list(sizes.values()))
    with h5py.File(path, "a") as file:
        for (name, size), end in zip(sizes.items(), ends, strict=True):
            file[f"splits/{name}"] = np.arange(end - size, end, dtype=np.int64)
