"""Small labelled data sets for the tests of training, made with ASE's EMT potential."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from mlff_distiller.config import DataConfig, ModelConfig, TrainConfig, TrainingConfig
from mlff_distiller.data import HDF5Writer, Structure, ensure_splits

TINY = ModelConfig(hidden_dim=8, num_interactions=2, num_rbf=6, cutoff=3.4, zbl=False)


def emt_crystals(count: int = 16, seed: int = 0) -> list[Structure]:
    """Strained and rattled four-atom cells of copper, every other one with a silver atom."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        atoms = bulk("Cu", "fcc", a=3.65, cubic=True)
        if i % 2:
            atoms.numbers[i % 4] = 47
        atoms.set_cell(
            atoms.cell @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True
        )
        atoms.positions += rng.normal(0.0, 0.12, atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        frames.append(Structure.from_atoms(atoms))
    return frames


def emt_molecules(count: int = 6, seed: int = 0) -> list[Structure]:
    """Rattled open molecules of H, C, N and O; without stress."""
    rng = np.random.default_rng(seed)
    names = ["H2O", "CH4", "NH3", "CO2", "C2H6", "CH3OH"]
    frames = []
    for i in range(count):
        atoms = molecule(names[i % len(names)])
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces()
        frames.append(Structure.from_atoms(atoms))
    return frames


def write(path: Path, structures: list[Structure], valid: float = 0.25) -> Path:
    """Write an HDF5 file with splits."""
    with HDF5Writer(path, teacher="emt") as writer:
        writer.append(structures)
    ensure_splits(path, valid, 0.0, 0)
    return path


def tiny_config(path: Path, **training: object) -> TrainConfig:
    """A run of a second: twelve frames, five batches an epoch."""
    settings = {
        "batch_size": 5,
        "max_epochs": 4,
        "warmup_steps": 3,
        "optimizer": "adamw",  # SOAP has its own tests
        "learning_rate": 3e-3,
        "threads": 1,
        "tensorboard": False,
        **training,
    }
    return TrainConfig(
        data=DataConfig(path=str(path)), model=TINY, training=TrainingConfig(**settings)
    )
