"""Multiple time steps: the teacher's averages at what fraction of its cost?

For each system, constant-energy runs from one state in equilibrium on the teacher's surface: the
teacher alone, the student alone, and the student corrected every n steps. Of each the teacher's
total energy (drift and standard deviation), g(r) and the spectrum of the velocities, with standard
errors from blocks of the run; and the time of a step, in turn with that of the teacher.

    python benchmarks/multistep.py                       # silicon and aspirin, and a bad student
    python benchmarks/multistep.py --systems copper --picoseconds 0.4      # EMT: a minute
    python benchmarks/multistep.py --systems silicon --student silicon=runs/demo/student.pt
    python benchmarks/multistep.py --report

A student that is not named is trained on two hundred rattled frames. Runs are kept in the work
folder and never repeated. SevenNet-0 takes about 0.45 s a call: silicon an hour of one core for 3 ps
with the bad student, a third of which is the teacher alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS, in_turn, parser_of, processor, ratio, write_report
from benchmarks.multistep_report import markdown, plot, statistics_of, table
from mlff_distiller.calculator import StudentCalculator
from mlff_distiller.data import Structure
from mlff_distiller.dynamics.freedom import initial_velocities
from mlff_distiller.energy_model import EnergyModel
from mlff_distiller.files import atomic_write_text
from mlff_distiller.multistep import Correction, MultipleTimeStep
from mlff_distiller.multistep.ase import InnerSteps
from mlff_distiller.multistep.interval import fastest_period
from mlff_distiller.sampling import starting_structures
from mlff_distiller.sampling.geometry import supercell
from mlff_distiller.students.energy_model import ExportedModel
from mlff_distiller.teachers import get_teacher

WORK = Path(__file__).resolve().parents[1] / "runs" / "multistep"
#: K, of the start.
TEMPERATURE = 300.0
#: ps, with a thermostat: of the student, then corrected.
SETTLE = (2.0, 1.0)
# Steps between two records of runs without impulses.
_FINE = 2


@dataclass(frozen=True)
class System:
    """What is run."""

    teacher: str
    structure: str
    repeats: tuple[int, int, int]
    timestep: float
    """fs."""
    every: tuple[int, ...]
    rattle: str
    """Å; of the frames that a student of its own learns from."""
    minutes: float
    """Of its training."""
    picoseconds: float
    labels: int = 200


_RATTLED = "0.03, 0.06, 0.1"
SYSTEMS = {
    "silicon": System(
        "sevennet-0", "silicon-8", (2, 2, 2), 1.0, (4, 8, 16), _RATTLED, 8.0, picoseconds=3.0
    ),
    "aspirin": System(
        "gfn2-xtb", "aspirin", (1, 1, 1), 0.5, (2, 4, 6, 8), "0.02, 0.04", 8.0, 20.0, labels=600
    ),
    # The proof: what a student of ten seconds gets wrong, the impulses put right.
    "bad": System(
        "sevennet-0", "silicon-8", (2, 2, 2), 1.0, (2, 4), _RATTLED, 1 / 6, 3.0, labels=20
    ),
    "copper": System("emt", "Cu", (2, 2, 2), 2.0, (2, 4, 8), _RATTLED, 0.25, picoseconds=4.0),
}


def structure_of(system: System) -> Structure:
    if system.structure == "Cu":
        from ase.build import bulk

        start = Structure.from_atoms(bulk("Cu", cubic=True))
    else:
        start = starting_structures(f"builtin:{system.structure}", lambda text: None)[-1]
    return supercell(start, list(system.repeats)) if start.pbc.all() else start


def command(*arguments: Any) -> None:
    line = [sys.executable, "-m", "mlff_distiller.cli", *map(str, arguments)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def trained(system: System, folder: Path) -> Path:
    """A student of rattled frames of a small cell, through the command line."""
    model = folder / "student.pt"
    if model.exists():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "start.extxyz"
    small = replace(system, repeats=(1, 1, 1))
    structure_of(small).to_atoms(labels=False).write(start, format="extxyz")
    stdev = f"[{system.rattle}]"
    settings = f"num_rattle: {system.labels}\nrattle_stdev: {stdev}\nisolated_atoms: false\n"
    atomic_write_text(folder / "sampling.yaml", settings)
    config = "model: {hidden_dim: 32, num_interactions: 2, num_rbf: 16}\n"
    atomic_write_text(folder / "train.yaml", config + "training: {batch_size: 4, threads: 1}\n")
    command(
        "sample", start, "-o", folder / "frames.extxyz", "--config", folder / "sampling.yaml",
        "--md", 0, "--overwrite",
    )  # fmt: skip
    labels = folder / "labels.h5"
    command("label", folder / "frames.extxyz", "--teacher", system.teacher, "-o", labels)
    command(
        "train", folder / "train.yaml", "--data", labels, "--max-minutes", system.minutes,
        "-o", folder / "run", "--overwrite",
    )  # fmt: skip
    command("export", folder / "run", "-o", model)
    return model


def errors_of(model: Path, teacher: EnergyModel, frames: list[Structure]) -> float:
    """Root mean square of the differences of force components, eV/Å."""
    student = ExportedModel(model, dtype="float64")
    rows = [teacher.compute(f).forces - student.compute(f).forces for f in frames]
    return float(np.sqrt(np.mean(np.square(rows))))


class Bench:
    """One system: its teacher, its student and what is kept of its runs."""

    def __init__(self, name: str, model: Path, work: Path, picoseconds: float, seed: int) -> None:
        self.name, self.system, self.picoseconds = name, SYSTEMS[name], picoseconds
        self.model, self.seed = model, seed
        self.teacher = get_teacher(self.system.teacher)
        self.structure = structure_of(self.system)
        self.step = self.system.timestep * units.fs
        digest = hashlib.sha256(model.read_bytes()).hexdigest()[:10]
        s = self.system
        # A good and a bad student of one teacher begin at one place, and share the teacher's run.
        self.common = work / f"{s.teacher}-{s.structure}-{s.timestep:g}fs-{seed}"
        self.folder = work / f"{name}-{digest}-{seed}"
        for folder in (self.common, self.folder):
            folder.mkdir(parents=True, exist_ok=True)

    def student(self, dtype: str = "float64") -> StudentCalculator:
        return StudentCalculator(self.model, dtype=dtype, threads=1)

    def atoms(self, calculator: Calculator, state: NDArray | None = None) -> Atoms:
        atoms = self.structure.to_atoms(labels=False)
        atoms.calc = calculator
        if state is not None:
            atoms.positions[:] = state[0]
            atoms.set_momenta(state[1])
        return atoms

    def corrected(self, atoms: Atoms, every: int, **options: Any) -> MultipleTimeStep:
        correction = Correction(self.teacher, ExportedModel(self.model, dtype="float64"))
        return MultipleTimeStep(atoms, self.step, correction, every, **options)

    def start(self) -> NDArray:
        """(2, n, 3): positions and momenta in equilibrium on the teacher's surface."""
        path = self.common / "start.npy"
        if path.exists():
            return np.load(path)
        atoms = self.atoms(self.student())
        atoms.set_velocities(initial_velocities(self.structure, TEMPERATURE, self.seed) / units.fs)
        rng = np.random.default_rng(self.seed)
        settle = [round(1000 * ps * self.scale() / self.system.timestep) for ps in SETTLE]
        InnerSteps(atoms, self.step, TEMPERATURE, rng=rng).run(settle[0])
        every = self.system.every[0]
        self.corrected(atoms, every, temperature_K=TEMPERATURE, rng=rng).run(settle[1] // every)
        momenta = atoms.get_momenta()
        masses = atoms.get_masses()[:, None]
        state = np.array([atoms.positions, momenta - masses * momenta.sum(axis=0) / masses.sum()])
        np.save(path, state)
        return state

    def scale(self) -> float:
        """Short trials settle in a short time, too."""
        return min(1.0, self.picoseconds)

    def trajectory(self, method: str) -> dict[str, Any]:
        """Energies, positions and velocities of one run, from the folder where they are there."""
        folder = self.common if method == "teacher" else self.folder
        path = folder / f"{method}-{self.picoseconds:g}ps.npz"
        if path.exists():
            with np.load(path) as data:
                return {**data}
        state = self.start()
        steps = round(1000 * self.picoseconds / self.system.timestep)
        every = int(method.removeprefix("n=")) if method.startswith("n=") else 1
        rows: dict[str, list[Any]] = {"energies": [], "positions": [], "velocities": []}
        dynamics: Any
        if method.startswith("n="):
            atoms = self.atoms(self.student(), state)
            dynamics = self.corrected(atoms, every)
            potential: Callable[[], float] = dynamics.get_teacher_energy
        else:
            alone = method == "student"
            atoms = self.atoms(self.student() if alone else self.teacher.calculator, state)
            dynamics = VelocityVerlet(atoms, self.step)
            potential = atoms.get_potential_energy

        def record() -> None:
            rows["energies"].append(potential() + atoms.get_kinetic_energy())
            rows["positions"].append(atoms.get_positions())
            rows["velocities"].append(atoms.get_velocities())

        fine = every if method.startswith("n=") else _FINE
        dynamics.attach(record, interval=fine // every)
        begin = time.perf_counter()
        dynamics.run(steps // every)
        arrays: dict[str, Any] = {key: np.array(value) for key, value in rows.items()}
        arrays["spacing"] = fine * self.system.timestep
        arrays["seconds_per_step"] = (time.perf_counter() - begin) / steps
        np.savez(path, **arrays)
        print(f"{self.name}, {method}: {steps} steps, {arrays['seconds_per_step']:.4f} s each")
        return arrays

    def speeds(self, rounds: int) -> dict[str, float]:
        """Time of a teacher's step over that of a corrected one, medians of rounds in turn."""
        state = self.start()
        longest = max(self.system.every)

        def run(make: Callable[[], Any], steps: int) -> Callable[[], float]:
            dynamics = make()
            dynamics.run(1)

            def timed() -> float:
                begin = time.perf_counter()
                dynamics.run(steps)
                return (time.perf_counter() - begin) / longest

            return timed

        # Of its own: one that others have used in between would compute its first frame again.
        own = get_teacher(self.system.teacher).calculator
        alone = lambda: VelocityVerlet(self.atoms(own, state), self.step)  # noqa: E731
        calls = {"teacher": run(alone, longest)}
        for n in self.system.every:
            make = lambda n=n: self.corrected(self.atoms(self.student("float32"), state), n)  # noqa: E731
            calls[f"n={n}"] = run(make, max(1, longest // n))
        found = in_turn(calls, rounds, rotate=True)
        for n in self.system.every:  # those that do not divide the longest made fewer steps
            share = max(1, longest // n) * n / longest
            found[f"n={n}"] = [seconds / share for seconds in found[f"n={n}"]]
        return {key: ratio(found["teacher"], times) for key, times in found.items()}

    def report(self, rounds: int) -> dict[str, Any]:
        methods = ["teacher", "student", *(f"n={n}" for n in self.system.every)]
        runs = {method: self.trajectory(method) for method in methods}
        frames = runs["teacher"]["positions"]
        chosen = frames[:: max(1, len(frames) // 8)]
        visited = [replace(self.structure, positions=positions) for positions in chosen]
        period = fastest_period(ExportedModel(self.model), self.structure)
        return {
            "teacher": self.system.teacher,
            "atoms": len(self.structure),
            "timestep_fs": self.system.timestep,
            "picoseconds": self.picoseconds,
            "force_error_ev_per_ang": errors_of(self.model, self.teacher, visited),
            "fastest_period_fs": period,
            "runs": statistics_of(runs, self.structure),
            "speedup": self.speeds(rounds),
        }


def main() -> None:
    parser = parser_of(__doc__, output=RESULTS, whole=True)
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=["silicon", "aspirin", "bad"]
    )
    parser.add_argument("--picoseconds", type=float, help="of each run, in place of its own")
    parser.add_argument(
        "--student", action="append", default=[], metavar="SYSTEM=FILE", help="in place of its own"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--work", type=Path, default=WORK, help="where students and runs are kept")
    parser.add_argument("--report", action="store_true", help="tables of what is there")
    arguments = parser.parse_args()
    path = arguments.output / "multistep.json"
    report: dict[str, Any] = {"systems": {}}
    if path.exists():
        report = json.loads(path.read_text())
    if not arguments.report:
        measure(arguments, report)
    write_report(arguments.output, "multistep", report, markdown(report), plot)
    print(markdown(report))


def measure(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Fill the report, and save it after every system."""
    given = dict(text.split("=", 1) for text in arguments.student)
    report["processor"] = processor()
    for name in arguments.systems:
        model = Path(given.get(name) or trained(SYSTEMS[name], arguments.work / name))
        length = arguments.picoseconds or SYSTEMS[name].picoseconds
        bench = Bench(name, model, arguments.work, length, arguments.seed)
        report["systems"][name] = bench.report(arguments.rounds)
        write_report(arguments.output, "multistep", report)
        print(table(name, report["systems"][name]))


if __name__ == "__main__":
    main()
