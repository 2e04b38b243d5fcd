"""Do the default limits of uncertainty speak where a student is wrong, and keep silent where it is not?

Scales the lattice of a finished run's crystal uniformly and compares energy, pressure and forces with
the run's teacher, perfect and rattled by 0.05 Å, beside the uncertainties and the limits above which
engines speak; and runs the student's own dynamics, 10 ps at each temperature. Two minutes.

    python benchmarks/uncertainty_limits.py --run runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.units import GPa, fs

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, parser_of, write_report
from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.students.file import read_metadata
from mlff_distiller.students.monitor import UncertaintyMonitor
from mlff_distiller.teachers import teacher_calculator

SCALES = (0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.96, 1.0, 1.04, 1.08, 1.1, 1.15, 1.25)
RATTLE = 0.05  # Å
TEMPERATURES = (300.0, 1800.0, 2500.0, 3500.0)  # K
STEPS, EVERY = 10_000, 50


def state(atoms: Atoms, calculator: Any) -> tuple[float, float, np.ndarray]:
    """Energy of an atom (meV), pressure (GPa), forces (meV/Å)."""
    atoms = atoms.copy()
    atoms.calc = calculator
    pressure = -atoms.get_stress()[:3].mean() / GPa
    return atoms.get_potential_energy() / len(atoms) * 1e3, pressure, atoms.get_forces() * 1e3


def in_dynamics(crystal: Atoms, student: Path, temperature: float) -> dict[str, float]:
    """Of atoms and of frames in a Langevin run of steps of 1 fs."""
    atoms, rng = crystal.copy(), np.random.default_rng(int(temperature))
    atoms.calc = StudentCalculator(student, threads=1)
    monitor, found = UncertaintyMonitor(student, threads=1), []
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(atoms, fs, temperature_K=temperature, friction=0.02 / fs, rng=rng)
    for _ in range(STEPS // EVERY):
        dynamics.run(EVERY)
        found.append(monitor(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc))
    of_frames = np.sqrt(np.square(found).mean(axis=1))
    return {
        "temperature": temperature,
        "frame_mean": float(of_frames.mean()),
        "frame_largest": float(of_frames.max()),
        "atom_largest": float(np.max(found)),
    }


def measure(crystal: Atoms, student: Path, teacher: str) -> dict[str, Any]:
    calculators = StudentCalculator(student), teacher_calculator(teacher)
    monitor = UncertaintyMonitor(student)
    rng, rows = np.random.default_rng(0), []
    for scale in SCALES:
        for rattle in (0.0, RATTLE):
            atoms = crystal.copy()
            atoms.set_cell(atoms.cell * scale, scale_atoms=True)
            atoms.positions += rattle * rng.normal(size=atoms.positions.shape)
            ours, theirs = (state(atoms, calculator) for calculator in calculators)
            found = monitor(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
            rows.append(
                {
                    "scale": scale,
                    "rattle": rattle,
                    "pressure_GPa": float(theirs[1]),
                    "energy_error_meV": float(ours[0] - theirs[0]),
                    "pressure_error_GPa": float(ours[1] - theirs[1]),
                    "force_error_meV": float(np.abs(ours[2] - theirs[2]).mean()),
                    "uncertainty": float(np.sqrt(np.square(found).mean())),
                    "largest": float(found.max()),
                }
            )
    return {
        "teacher": teacher,
        "crystal": f"{crystal.get_chemical_formula()}, {len(crystal)} atoms",
        "limit": monitor.limit,
        "frame_limit": monitor.frame_limit,
        "held_out": read_metadata(student)["uncertainty"],
        "rows": rows,
        "dynamics": [in_dynamics(crystal, student, temperature) for temperature in TEMPERATURES],
    }


def markdown(report: dict[str, Any]) -> str:
    held_out = report["held_out"]
    lines = [
        f"{report['crystal']}, student against {report['teacher']}; u of held-out atoms: at most "
        f"{held_out['largest']:.3f} eV/Å, of a frame {held_out['largest_frame']:.3f} (rms). Engines speak "
        f"where an atom is above {report['limit']:.2f} or a frame above {report['frame_limit']:.2f}.",
        "",
        "| scale of the lattice | rattled | teacher's pressure, GPa | energy error, meV/atom | pressure error, "
        "GPa | force error, meV/Å | u, rms | largest |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        spoken = [row["uncertainty"] > report["frame_limit"], row["largest"] > report["limit"]]
        together, one = (" **said**" if said else "" for said in spoken)
        rattled = f"{row['rattle']:g} Å" if row["rattle"] else "no"
        lines.append(
            f"| {row['scale']:g} | {rattled} | {row['pressure_GPa']:.1f} | {row['energy_error_meV']:.1f} "
            f"| {row['pressure_error_GPa']:.2f} | {row['force_error_meV']:.1f} "
            f"| {row['uncertainty']:.3f}{together} | {row['largest']:.3f}{one} |"
        )
    lines += [
        "",
        f"Its own dynamics, {STEPS} steps of 1 fs, every {EVERY}th:",
        "",
        "| K | u of a frame (rms), mean | largest | largest of an atom |",
        "|--:|--:|--:|--:|",
    ]
    for row in report["dynamics"]:
        spoken = [
            row["frame_largest"] > report["frame_limit"],
            row["atom_largest"] > report["limit"],
        ]
        frame, atom = (" **said**" if said else "" for said in spoken)
        lines.append(
            f"| {row['temperature']:g} | {row['frame_mean']:.3f} | {row['frame_largest']:.3f}{frame} "
            f"| {row['atom_largest']:.3f}{atom} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="finished run")
    parser.add_argument(
        "--structure", type=Path, help="crystal; default: the cubic cell of silicon, 2³"
    )
    parser.add_argument("--teacher", help="default: the student's")
    options = parser.parse_args()
    student = options.run / "student.pt"
    if options.structure:
        crystal = read(options.structure)
    else:
        from ase.build import bulk

        crystal = bulk("Si", cubic=True, a=5.468) * (2, 2, 2)  # SevenNet-0's lattice
    teacher = options.teacher or read_metadata(student)["teacher"]
    report = measure(crystal, student, teacher)
    text = markdown(report)
    print(text)
    write_report(options.output, "uncertainty_limits", report, text)


if __name__ == "__main__":
    main()
