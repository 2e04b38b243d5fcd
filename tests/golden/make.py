"""Write the golden files of one generation of formats, which tests/test_golden.py reads for ever.

    python tests/golden/make.py tests/golden/v2

Run it with the version that introduces a format and commit the folder. ``export.FORMAT_VERSION``
names it; where only the format of checkpoints or data is new, append a letter (``v2b``). Never
write a committed folder again: files of users stay as they are, too.

    student_*.pt         exported students
    openmm_*.xml         OpenMM Systems with one of them; they hold its absolute path
    run/                 two epochs of training: checkpoints, history, YAML
    distill.yaml         all sections of the configuration
    data.h5.gz           molecules without and crystals with a stress, splits (mostly zeros inside)
    killed.h5.journal    what kill -9 left of labelling the same structures
    numbers.json         what the version that wrote all this makes of it
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import openmm
import torch
from ase import Atoms
from ase.build import molecule
from openmm.app import Element, Topology

from mlff_distiller import StudentCalculator, StudentForceField, __version__
from mlff_distiller.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    TrainConfig,
    TrainingConfig,
    save_yaml,
)
from mlff_distiller.data import HDF5Dataset, Structure, arrays, ensure_splits
from mlff_distiller.distill import export_run, read_history
from mlff_distiller.export import FORMAT_VERSION, export_student
from mlff_distiller.openmm import painn_force
from mlff_distiller.students import checkpoint
from mlff_distiller.teachers import get_teacher, label_dataset
from mlff_distiller.training import train

ELEMENTS = [8, 1, 6]  # nobody promised an order
TINY = {"hidden_dim": 8, "num_interactions": 2, "cutoff": 3.5}
#: ``student_NAME_DTYPE.pt``. A generation whose networks can do more adds students here.
STUDENTS = {
    "gaussian_float32": ModelConfig(**TINY, num_rbf=5, rbf="gaussian"),
    "bessel_zbl_float64": ModelConfig(**TINY, num_rbf=4, rbf="bessel", zbl=True),
    # Since version 2
    "paper_cut_float64": ModelConfig(
        **TINY,
        num_rbf=4,
        rbf="bessel",
        rbf_trainable=True,
        rbf_per_interaction=True,
        norm="paper",
        cutoff_function="cosine",
        zbl=True,
        zbl_switched=False,
    ),
    "switch_float32": ModelConfig(
        **TINY,
        num_rbf=3,
        rbf="chebyshev",
        cutoff_function="switch",
        cutoff_onset=1.0,
        norm_scale=0.5,
        readout_dim=7,
    ),
}
OPENMM_STUDENT = "student_bessel_zbl_float64.pt"


def systems() -> dict[str, Atoms]:
    """A triclinic cell of about the cutoff in OpenMM's reduced form, and open systems."""
    crystal = Atoms(
        "OHHCO",
        positions=[[0, 0, 0], [0.9, 0.3, 0.1], [-0.4, 0.8, 0.2], [1.6, 1.7, 1.4], [2.1, 2.4, 2.2]],
        cell=[[3.2, 0, 0], [0.5, 3.4, 0], [-0.4, 0.6, 3.3]],
        pbc=True,
    )
    methanol = molecule("CH3OH")
    methanol.rattle(0.05, seed=1)
    return {"crystal": crystal, "molecule": methanol, "atom": Atoms("O", [[0.1, 0.2, 0.3]])}


def write_student(name: str, config: ModelConfig) -> None:
    """Random weights, biases included."""
    torch.manual_seed(0)
    student = StudentForceField(config, ELEMENTS, [-4.25, -1.125, -3.5])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.3)
        student.painn.scales.copy_(torch.tensor([1.0, 0.75, 1.25]))
    student.to(getattr(torch, name.rpartition("_")[2]))
    export_student(student, f"student_{name}.pt", {"teacher": "none", "min_distance": 0.8})


def write_openmm(backend: str) -> None:
    atoms = systems()["crystal"]
    topology = Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    added = [
        topology.addAtom(a.symbol, Element.getByAtomicNumber(int(a.number)), residue) for a in atoms
    ]
    topology.addBond(added[0], added[1])
    topology.setPeriodicBoxVectors(atoms.cell.array / 10)  # nm
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for atom in added:
        system.addParticle(atom.element.mass)
    force = painn_force(topology, OPENMM_STUDENT, backend=backend, device="cpu", precision="double")
    system.addForce(force)
    Path(f"openmm_{backend}.xml").write_text(openmm.XmlSerializer.serialize(system))


def write_data() -> None:
    """data.h5, and the journal of the same labelling killed between two batches."""
    frames = []
    for seed in range(5):
        for atoms in (systems()["crystal"], systems()["molecule"], molecule("H2O")):
            atoms.rattle(0.05, seed=seed)
            atoms.info.update(source="rattle", group=f"seed {seed}")
            frames.append(Structure.from_atoms(atoms))
    teacher = get_teacher("emt")
    keywords = {"batch_size": 4, "max_force": None}
    label_dataset(frames, teacher, "data.h5", progress=False, **keywords)
    ensure_splits("data.h5", valid_fraction=0.2, test_fraction=0.2)

    def kill(done: int, total: int) -> None:
        if done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(
        target=label_dataset,
        args=(frames, teacher, "killed.h5"),
        kwargs={"progress": kill, **keywords},
    )
    child.start()
    child.join()


def write_run() -> dict[str, list[float]]:
    """A run of two epochs in ``run``; the history after a third one, resumed elsewhere."""
    config = TrainConfig(
        data=DataConfig(path="data.h5"),
        model=ModelConfig(**TINY, num_rbf=6, zbl=True),
        training=TrainingConfig(
            batch_size=3,
            max_epochs=2,
            learning_rate=1e-2,
            warmup_steps=2,
            ema_decay=0.5,
            device="cpu",
            threads=1,
            tensorboard=False,
        ),
    )
    train(config, "run", progress=False)
    longer = replace(config, training=replace(config.training, max_epochs=3))
    with tempfile.TemporaryDirectory() as other:
        shutil.copytree("run", other, dirs_exist_ok=True)
        train(longer, other, resume=True, progress=False)
        history = read_history(Path(other) / "history.csv")
    return {key: history[key].tolist() for key in ("epoch", "step", "train_loss", "valid_loss")}


def numbers_of(model: Path) -> dict[str, Any]:
    """Energy (eV), forces (eV/Å) and, of the crystal, stress (eV/Å^3); portable, in float64."""
    numbers = {}
    with tempfile.TemporaryDirectory() as other:
        exported = model
        if model.suffix == ".ckpt":
            exported = Path(other) / "student.pt"
            export_run(model, exported, "float64")
        for name, atoms in systems().items():
            atoms.calc = StudentCalculator(exported, dtype="float64", backend="portable")
            numbers[name] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            if atoms.pbc.all():
                numbers[name]["stress"] = atoms.get_stress(voigt=False)
    return numbers


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.name.startswith(f"v{FORMAT_VERSION}") or folder.exists():
        sys.exit(f"the folder must be new and named v{FORMAT_VERSION}, got {folder}")
    folder.mkdir()
    os.chdir(folder)  # so that the files hold relative paths where they may
    for name, config in STUDENTS.items():
        write_student(name, config)
    for backend in ("native", "python"):
        write_openmm(backend)
    write_data()
    history = write_run()
    save_yaml(DistillConfig(structures="builtin:silicon"), "distill.yaml")
    models = [*Path().rglob("*.pt"), *Path().rglob("*.ckpt")]
    data = HDF5Dataset("data.h5")
    numbers = {
        "package_version": __version__,
        "versions": {
            "exported": FORMAT_VERSION,
            "checkpoint": checkpoint.FORMAT_VERSION,
            "data": arrays.FORMAT_VERSION,
        },
        "systems": {
            name: {
                "numbers": a.numbers,
                "positions": a.positions,
                "cell": a.cell.array,
                "pbc": a.pbc,
            }
            for name, a in systems().items()
        },
        "models": {str(m): numbers_of(m) for m in sorted(models)},
        "history": history,
        "data": {
            "hash": data.hash(),
            "splits": data.splits,
            "info": [s.info for s in data],
            "energy": [s.energy for s in data],
            "forces": [s.forces for s in data],
            "stress": [s.stress for s in data],
        },
    }
    Path("numbers.json").write_text(json.dumps(numbers, indent=1, default=lambda a: a.tolist()))
    with open("data.h5", "rb") as plain, gzip.open("data.h5.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    Path("data.h5").unlink()


if __name__ == "__main__":
    main()
