"""Can the uncertainties of atoms be believed, do they speak in time, and what do they cost?

Takes a finished run of `mlff-distiller distill` on crystalline silicon, or makes a small one from
examples/demo_silicon.yaml (no rounds: a student that knows the crystal alone, and fails outside of
it), and its teacher. Four minutes of one core with the run, two more where it has to be made.

    python benchmarks/uncertainty.py
    python benchmarks/uncertainty.py --run runs/demo
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, ratio, write_report
from benchmarks.uncertainty_report import markdown, plot
from mlff_distiller.config import DistillConfig, ModelConfig, load_config
from mlff_distiller.data import HDF5Dataset, HDF5Writer, Structure
from mlff_distiller.dynamics import MDSettings, RunStoppedError, Trajectory, run_md
from mlff_distiller.ops.engine import NativePotential
from mlff_distiller.pipeline.distill import run_distillation
from mlff_distiller.students import StudentForceField
from mlff_distiller.students.export import export_run, export_student
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor
from mlff_distiller.students.rigidity import LastLayerUncertainty
from mlff_distiller.students.uncertainty import uncertainties
from mlff_distiller.teachers import get_teacher

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "uncertainty"
#: What the frames of the student's dynamics are: K, atoms taken out, frames.
KINDS = {
    "300 K": (300.0, 0, 8),
    "900 K": (900.0, 0, 8),
    "1800 K": (1800.0, 0, 8),
    "vacancy, 600 K": (600.0, 1, 8),
}
#: Runs that leave the crystal: K and seeds; the first is labelled by the teacher on its way.
HOT, HOT_SEEDS, HOT_STEPS = 1800.0, 5, 2000
WAY = 12
#: What the cost is measured of.
NETWORKS = {
    "demo, 2 x 32": ModelConfig(hidden_dim=32, num_interactions=2, num_rbf=16),
    "small, 2 x 64": ModelConfig(hidden_dim=64, num_interactions=2),
    "base, 3 x 128": ModelConfig(),
}


def make_run(folder: Path) -> None:
    """A small student: the demo without its rounds, in two minutes of training."""
    config = load_config(ROOT / "examples" / "demo_silicon.yaml", DistillConfig)
    config = replace(
        config,
        output=str(folder),
        sampling=replace(config.sampling, num_rattle=70, num_md=12, md_interval=4, md_warmup=8),
        data=replace(config.data, valid_fraction=0.15),
        training=replace(config.training, max_minutes=2.5, threads=1),
        loop=replace(config.loop, rounds=0, minutes=None),
        engines=replace(config.engines, lammps=False, openmm=False, nve_steps=10, npt_steps=10),
    )
    run_distillation(config, quiet=True)


def crystal(vacancies: int = 0) -> Structure:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    del atoms[list(range(vacancies))]
    return Structure.from_atoms(atoms)


def dynamics(
    model: Path, start: Structure, temperature: float, steps: int, seed: int
) -> Trajectory:
    """By the student; of a run that ends early what it left."""
    settings = MDSettings(
        steps=steps, temperature=temperature, interval=10, threads=1, seed=seed, timestep=1.0
    )
    try:
        return run_md("ase", model, start, settings)
    except RunStoppedError as stopped:
        trajectory: Trajectory = stopped.trajectory
        return trajectory


def frames_of(model: Path, work: Path, teacher: str) -> list[Structure]:
    """Frames of the student's dynamics with the teacher's labels; kept for the next call.

    Those of a crystal at 1800 K are taken from its first 200 fs, before this student leaves it.
    """
    path = work / "frames.h5"
    key = str(read_metadata(model)["checksums"]["native.bin"])
    if path.exists() and HDF5Dataset(path)[0].info["model"] == key:
        return list(HDF5Dataset(path))
    frames: list[Structure] = []
    for seed, (kind, (temperature, vacancies, number)) in enumerate(KINDS.items(), start=1):
        steps = 200 if temperature > 1500 else 1000
        found = dynamics(model, crystal(vacancies), temperature, steps, seed).frames
        half = found[len(found) // 2 :]
        frames += [mark(f, kind, key) for f in half[:: max(1, len(half) // number)][:number]]
    way = dynamics(model, crystal(), HOT, HOT_STEPS, 1).frames
    chosen = np.unique(np.geomspace(5, len(way) - 1, WAY).astype(int))
    frames += [mark(way[i], "leaving the crystal", key) for i in chosen]
    labelled = get_teacher(teacher).label(frames)
    path.unlink(missing_ok=True)
    with HDF5Writer(path, teacher=teacher) as writer:
        writer.append(labelled)
    return labelled


def mark(frame: Structure, kind: str, key: str) -> Structure:
    info = {"kind": kind, "model": key, "time_fs": frame.info["time_fs"]}
    return replace(frame, energy=None, forces=None, stress=None, momenta=None, info=info)


def errors(model: Path, frames: Sequence[Structure]) -> list[np.ndarray]:
    """Lengths of the force errors, eV/Å."""
    potential = NativePotential(model, dtype="float64", threads=1)
    return [
        np.linalg.norm(
            potential.compute(s.atomic_numbers, s.positions, s.cell, s.pbc)["forces"] - s.forces,
            axis=1,
        )
        for s in frames
    ]


def plain(values: np.ndarray) -> list[float]:
    """Four digits are enough of thousands of numbers."""
    return [float(f"{v:.4g}") for v in values]


def calibration(model: Path, data: Path, labelled: Sequence[Structure]) -> dict[str, Any]:
    """Errors and predictions of all atoms, by kind."""
    student = StudentForceField.load(model)
    held_out = list(HDF5Dataset(data).subset("test"))
    kinds = {"test frames": held_out}
    for s in labelled:
        kinds.setdefault(str(s.info["kind"]), []).append(s)
    return {
        kind: {
            "frames": len(frames),
            "error": plain(np.concatenate(errors(model, frames))),
            "predicted": plain(np.concatenate(uncertainties(student, frames))),
        }
        for kind, frames in kinds.items()
    }


def warnings_in_time(model: Path) -> dict[str, Any]:
    """When the uncertainty and when the other checks of `md` first spoke, fs."""
    rows = []
    for seed in range(1, HOT_SEEDS + 1):
        trajectory = dynamics(model, crystal(), HOT, HOT_STEPS, seed)
        steps = {True: [], False: []}
        for line in trajectory.warnings:
            if line.startswith("step "):
                step = int(line.split(":")[0].split()[1])
                steps["the uncertainty" in line].append(step)
        rows.append(
            {
                "seed": seed,
                "uncertainty_fs": min(steps[True], default=None),
                "others_fs": min(steps[False], default=None),
                "time_fs": trajectory.time.tolist(),
                "largest": plain(trajectory.uncertainty),
            }
        )
    return {"temperature": HOT, "limit": UncertaintyMonitor(model).limit, "runs": rows}


def cost(work: Path, seconds: float = 0.04, rounds: int = 101) -> list[dict[str, Any]]:
    """Time of energy and forces with and without, 512 atoms of silicon, one thread, float32."""
    atoms = bulk("Si", cubic=True) * (4, 4, 4)
    atoms.rattle(0.05, seed=0)
    arrays = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    rows = []
    for name, config in NETWORKS.items():
        student = StudentForceField(config, [14])
        student.uncertainty = LastLayerUncertainty(student.painn.readout_dim)
        export_student(student, work / "cost.pt")
        potential = NativePotential(work / "cost.pt", threads=1)

        def timed(asked: bool, potential: NativePotential = potential) -> float:
            potential.compute(*arrays, uncertainties=asked)
            begin, calls = time.process_time(), 0
            while time.process_time() - begin < seconds:
                potential.compute(*arrays, uncertainties=asked)
                calls += 1
            return (time.process_time() - begin) / calls

        found = in_turn({"with": lambda: timed(True), "without": lambda: timed(False)}, rounds)
        rows.append(
            {
                "network": name,
                "atoms": len(atoms),
                "with_ms": 1e3 * float(np.median(found["with"])),
                "without_ms": 1e3 * float(np.median(found["without"])),
                "ratio": ratio(found["with"], found["without"]),
            }
        )
    return rows


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument("--run", type=Path, default=WORK / "run", help="run of distill")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is in between")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (arguments.run / "data.h5").exists():
        make_run(arguments.run)
    model = work / "student.pt"
    card = export_run(arguments.run / "training", model, data=arguments.run / "data.h5")
    labelled = frames_of(model, work, str(card["teacher"]))
    report = {
        "processor": processor(),
        "teacher": card["teacher"],
        "fit": card["uncertainty"],
        "kinds": calibration(model, arguments.run / "data.h5", labelled),
        "in_time": warnings_in_time(model),
        "cost": cost(work),
    }
    write_report(arguments.output, "uncertainty", report, markdown(report), plot)
    print(markdown(report))


if __name__ == "__main__":
    main()
